"""HTTP endpoint for searching base models on the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import model_search

router = APIRouter(prefix=PREFIX, tags=["models"], route_class=ApiRoute, responses=PROBLEMS)


class FoundModel(responses.ResponseModel):
    """A base model. An empty `licence` or a null `parameters` is not known, and so is a size of 0 bytes.

    `adapter` is how it would be trained, and the bytes are about what that needs with rows of 1,024 tokens. `fits` are
    the accounts with machines that have this memory, `unknown_memory` those with an unknown memory, and `largest_bytes`
    is the most that one of them has.
    """

    id: str
    parameters: int | None
    licence: str
    gated: bool
    private: bool
    downloads: int
    adapter: str
    gpu_bytes: int
    host_bytes: int
    fits: list[str]
    largest_bytes: int
    unknown_memory: list[str]


@router.get("/base-models", operation_id="search_models", summary="Search base models on Hugging Face")
def search(
    server: ServerDep, me: CurrentUser, search: Annotated[str, Query(min_length=1, max_length=model_search.MAX_WORDS)]
) -> responses.Items[FoundModel]:
    """Text models with these words in their name, most downloaded first. Your token is used if there is one."""
    return responses.Items[FoundModel].model_validate({"items": model_search.search(server.ctx, me, search)})
