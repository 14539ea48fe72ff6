"""HTTP endpoints for your Hugging Face token. It is stored encrypted, used only by the server, and never returned."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, SecretStr

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import hub_tokens

router = APIRouter(prefix=f"{PREFIX}/hub-token", tags=["people"], route_class=ApiRoute, responses=PROBLEMS)


class HubTokenUpdate(requests.RequestModel):
    """A read token from https://huggingface.co/settings/tokens."""

    token: Annotated[SecretStr, Field(min_length=1, max_length=hub_tokens.MAX_TOKEN)]


class HubToken(responses.ResponseModel):
    """Whether your token is stored, and the name of its Hugging Face account."""

    stored: bool
    account: str


@router.get("", operation_id="get_hub_token", summary="Get the state of your Hugging Face token")
def show(server: ServerDep, me: CurrentUser) -> HubToken:
    """The token is not returned."""
    return HubToken.model_validate(hub_tokens.stored(server.ctx, me.member_id))


@router.put("", operation_id="set_hub_token", summary="Store your Hugging Face token")
def put(server: ServerDep, me: CurrentUser, request: HubTokenUpdate) -> HubToken:
    """The token is checked first. With it, the server gives your jobs access to gated and private models."""
    return HubToken.model_validate(hub_tokens.set_token(server.ctx, me.member_id, request.token.get_secret_value()))


@router.delete("", status_code=204, operation_id="remove_hub_token", summary="Remove your Hugging Face token")
def remove(server: ServerDep, me: CurrentUser) -> None:
    """Running sessions continue. New sessions on gated and private models cannot start."""
    hub_tokens.forget_token(server.ctx, me.member_id)
