"""Your token for the Hugging Face hub, over HTTP: kept sealed, used by the server alone, in no answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, SecretStr

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, PlainTextRoute, ServerDep
from orchestrator.services import hub_tokens

router = APIRouter(prefix="/hub-token", tags=["people"], route_class=PlainTextRoute, responses=PROBLEMS)


class HubTokenAsked(requests.RequestModel):
    """A token that may read, from https://huggingface.co/settings/tokens."""

    token: Annotated[SecretStr, Field(min_length=1, max_length=hub_tokens.MAX_TOKEN)]


class HubToken(responses.ResponseModel):
    """Whether you have a token here, and the name of the hub account that it belongs to."""

    stored: bool
    account: str


@router.get("", operation_id="get_hub_token", summary="Whether your hub token is here")
def show(server: ServerDep, me: CurrentUser) -> HubToken:
    """Never the token itself."""
    return HubToken.model_validate(hub_tokens.stored(server.ctx, me.member_id))


@router.put("", operation_id="set_hub_token", summary="Keep your hub token")
def put(server: ServerDep, me: CurrentUser, asked: HubTokenAsked) -> HubToken:
    """It is tried first. With it the server opens the files of gated and private models to the machines of your jobs."""
    return HubToken.model_validate(hub_tokens.set_token(server.ctx, me.member_id, asked.token.get_secret_value()))


@router.delete("", status_code=204, operation_id="remove_hub_token", summary="Forget your hub token")
def remove(server: ServerDep, me: CurrentUser) -> None:
    """Sessions that have begun go on; the next one of a gated or private model cannot begin."""
    hub_tokens.forget_token(server.ctx, me.member_id)
