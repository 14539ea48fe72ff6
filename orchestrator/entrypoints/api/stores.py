"""Where checkpoints lie, over HTTP; for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, PlainTextRoute, ServerDep
from orchestrator.services import stores

router = APIRouter(route_class=PlainTextRoute, responses=PROBLEMS, tags=["stores"])
Name = Annotated[str, Path(max_length=32, pattern=r"^[a-z0-9-]+$")]


@router.get("/stores", operation_id="list_stores", summary="Stores, and the space in them")
def list_stores(server: ServerDep, _: Admin) -> responses.Items[responses.Store]:
    """The local folder, and what else was set up."""
    return responses.Items[responses.Store].model_validate({"items": stores.list_stores(server.ctx)})


@router.put("/stores/{name}", operation_id="use_store", summary="Keep new files there")
def use_store(server: ServerDep, _: Admin, name: Name, asked: requests.StoreUpdate) -> responses.Store:
    """It is tried out first. What lies elsewhere stays there and is still used."""
    credentials = asked.credentials.get_secret_value() if asked.credentials else None
    return responses.Store.model_validate(stores.use_store(server.ctx, name, credentials))


@router.post("/stores/{name}:check", operation_id="check_store", summary="Write, read back and delete a small file")
def check_store(server: ServerDep, _: Admin, name: Name) -> responses.Store:
    """The store as it is afterwards; an error says what is wrong with it."""
    return responses.Store.model_validate(stores.check_store(server.ctx, name))
