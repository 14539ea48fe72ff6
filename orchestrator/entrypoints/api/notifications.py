"""HTTP endpoints for notification channels and their deliveries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from orchestrator.domain.notifications import ChannelKind, DeliveryState, Topic
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import notifications

router = APIRouter(prefix=f"{PREFIX}/notifications", tags=["notifications"], route_class=ApiRoute, responses=PROBLEMS)
ChannelId = Annotated[str, Path(max_length=64)]
DELIVERIES_SHOWN = 100


class ChannelCreate(requests.RequestModel):
    """A channel to add: an Apprise URL, or an http(s) URL for a signed webhook, for one job or all your jobs."""

    url: Annotated[str, Field(min_length=3, max_length=2_000)]
    topics: Annotated[tuple[Topic, ...], Field(min_length=1, max_length=len(Topic))] = tuple(Topic)
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
    """A new channel. `secret` verifies a webhook's signatures and is returned only once."""

    channel: Channel
    secret: str | None


class Delivery(responses.ResponseModel):
    """One message and the result of its delivery."""

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


@router.get("", operation_id="list_channels", summary="List notification channels")
def list_channels(server: ServerDep, me: CurrentUser) -> responses.Items[Channel]:
    """Your own channels."""
    found = notifications.channels(server.app.notifications, me)
    return responses.Items[Channel].model_validate({"items": found})


@router.post("", status_code=201, operation_id="add_channel", summary="Add a notification channel")
def add_channel(server: ServerDep, me: CurrentUser, asked: ChannelCreate) -> NewChannel:
    """Addresses are stored encrypted and never returned."""
    made, secret = notifications.add_channel(
        server.app.notifications, me, url=asked.url, topics=list(asked.topics), job_id=asked.job
    )
    return NewChannel(channel=Channel.model_validate(made), secret=secret)


@router.delete("/{channel_id}", status_code=204, operation_id="remove_channel", summary="Remove a notification channel")
def remove_channel(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> None:
    """Deletes the address and the log."""
    notifications.remove_channel(server.app.notifications, me, channel_id)


@router.post("/{channel_id}:test", operation_id="test_channel", summary="Send a test message")
def test_channel(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> Delivery:
    """The result is in the answer and in the log."""
    return Delivery.model_validate(notifications.send_test(server.app.notifications, me, channel_id))


@router.get("/{channel_id}/deliveries", operation_id="list_deliveries", summary="List a channel's messages")
def list_deliveries(server: ServerDep, me: CurrentUser, channel_id: ChannelId) -> responses.Items[Delivery]:
    """Newest first."""
    shown = notifications.deliveries(server.app.notifications, me, channel_id, DELIVERIES_SHOWN)
    return responses.Items[Delivery].model_validate({"items": shown})
