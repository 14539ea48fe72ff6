"""HTTP endpoints for the installed providers."""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.entrypoints.api import kind_responses, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import providers

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS, tags=["accounts"])


@router.get("/providers", operation_id="list_providers", summary="Kinds of machines, and what an account there needs")
def list_providers(server: ServerDep, _: CurrentUser) -> responses.Items[kind_responses.Provider]:
    """Every installed driver. `problem` is the reason why one is unusable."""
    found = [{**vars(each.texts), **vars(each)} for each in providers.list_providers(server.ctx)]
    return responses.Items[kind_responses.Provider].model_validate({"items": found})
