"""HTTP endpoint for adapters that jobs continue from. The raw archive is the request body."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.api.datasets import RAW_BODY
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.services import start_adapters

router = APIRouter(prefix=PREFIX, tags=["datasets"], route_class=ApiRoute, responses=PROBLEMS)


@router.post(
    "/adapters", status_code=201, operation_id="upload_adapter", summary="Upload an adapter", openapi_extra=RAW_BODY
)
async def upload(
    server: ServerDep,
    me: CurrentUser,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The name of its folder.")],
) -> responses.Dataset:
    """A zip file with `adapter_config.json` and `adapter_model.safetensors`, for a job's `lora_model_dir`.

    The adapter is one of your data files: it is listed and deleted as they are. Use it as `sha256:HEX`.
    """
    async with spooled(request, server.app.settings.folder) as path:
        found = await run_in_threadpool(partial(start_adapters.bring, server.ctx, me.member_id, path, name))
    return await run_in_threadpool(responses.Dataset.model_validate, found)
