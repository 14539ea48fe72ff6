"""Channels over HTTP: where you want to be told of what, and what you were told."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, PlainTextRoute, ServerDep
from orchestrator.ports.notifications import ChannelKind, DeliveryState, Topic
from orchestrator.services import notifications

router = APIRouter(prefix="/notifications", tags=["notifications"], route_class=PlainTextRoute, responses=PROBLEMS)
ChannelId = Annotated[str, Path(max_length=64)]
DELIVERIES_SHOWN = 100


class ChannelCreate(requests.RequestModel):
    """Where to, about what: an Apprise address, or an http(s) address for signed webhooks; of one job, or of all of yours."""

    url: Annotated[str, Field(min_length=3, max_length=2_000)]
    topics: Annotated[tuple[Topic, ...], Field(min_length=1)] = tuple(Topic)
    job: Annotated[str, Field(max_length=64)] | None = None


class Channel(responses.ResponseModel):
    """A channel without its secrets."""

    id: str
    kind: ChannelKind
    label: str
    topics: list[Topic]
    job: str | None = Field(validation_alias="job_id")
    active: bool
    created_at: responses.Time


class NewChannel(responses.ResponseModel):
    """A fresh channel; `secret` checks a webhook's signatures and is shown this once."""

    channel: Channel
    secret: str | None


class Delivery(responses.ResponseModel):
    """One message and how it went."""

    id: str
    topic: str
    title: str
    text: str
    state: DeliveryState
    attempts: int
    detail: str
    created_at: responses.Time
    sent_at: responses.Time | None
    body: dict[str, Any]


@router.get("", operation_id="list_channels", summary="Where you are told of what")
def list_channels(server: ServerDep, me: CurrentUser) -> responses.Items[Channel]:
    """Your own channels."""
    found = notifications.channels(server.app.office, me)
    return responses.Items[Channel].model_validate({"items": found})


@router.post("", status_code=201, operation_id="add_channel", summary="Be told of something")
def add_channel(server: ServerDep, me: CurrentUser, asked: ChannelCreate) -> NewChannel:
    """From now on; addresses are kept sealed and never shown again."""
    made, secret = notifications.add_channel(
        server.app.office, me, url=asked.url, topics=list(asked.topics), job_id=asked.job
    )
    return NewChannel(channel=Channel.model_validate(made), secret=secret)


@router.delete("/{channel_id}", status_code=204, operation_id="remove_channel", summary="Be told no more")
def remove_channel(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> None:
    """The address and the log are forgotten."""
    notifications.remove_channel(server.app.office, me, channel_id)


@router.post("/{channel_id}:test", operation_id="test_channel", summary="Send a test message now")
def test_channel(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> Delivery:
    """How it went is in the answer and in the log."""
    return Delivery.model_validate(notifications.send_test(server.app.office, me, channel_id))


@router.get("/{channel_id}/deliveries", operation_id="list_deliveries", summary="What a channel was told")
def list_deliveries(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> responses.Items[Delivery]:
    """Newest first."""
    found = notifications.channel(server.app.office, me, channel_id)
    return responses.Items[Delivery].model_validate({"items": server.app.book.deliveries(found.id, DELIVERIES_SHOWN)})
