"""HTTP endpoints for stores, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.entrypoints.api import kind_responses, requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import stores

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS, tags=["stores"])
Name = Annotated[str, Path(max_length=32, pattern=r"^[a-z0-9-]+$")]


@router.get("/stores", operation_id="list_stores", summary="List stores with their space")
def list_stores(server: ServerDep, _: Admin) -> responses.Items[responses.Store]:
    """The local folder and other stores that were set up."""
    return responses.Items[responses.Store].model_validate({"items": stores.list_stores(server.ctx)})


@router.put("/stores/{name}", operation_id="use_store", summary="Use a store for new files")
def use_store(server: ServerDep, _: Admin, name: Name, asked: requests.StoreUpdate) -> responses.Store:
    """The store is checked first. Files in other stores stay there and remain in use."""
    credentials = asked.credentials.get_secret_value() if asked.credentials else None
    return responses.Store.model_validate(stores.use_store(server.ctx, name, credentials, asked.config))


@router.get("/stores/{name}/kind", operation_id="get_store_kind", summary="What a store needs to be set up")
def kind(server: ServerDep, _: Admin, name: Name) -> kind_responses.StoreKind:
    """The settings of an installed kind of store, whether it is in use or not."""
    found = stores.kind(server.ctx, name)
    return kind_responses.StoreKind(
        name=found.name,
        title=found.texts.title,
        credentials=found.texts.credentials,
        settings=found.options.model_json_schema(),
        set_up=stores.is_set_up(server.ctx, name),
    )


@router.post("/stores/{name}:check", operation_id="check_store", summary="Check a store")
def check_store(server: ServerDep, _: Admin, name: Name) -> responses.Store:
    """Writes, reads and deletes a small file. Returns the store, or an error with the cause."""
    return responses.Store.model_validate(stores.check_store(server.ctx, name))
