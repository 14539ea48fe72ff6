"""HTTP endpoints of chats with a job's adapter and its base model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.api.jobs import created
from orchestrator.entrypoints.http import answers
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import chats, machine_chats

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)


def _asked(
    server: ServerDep, me: CurrentUser, job_id: JobId, body: requests.ChatCreate
) -> Generator[chats.PendingAnswer]:
    """Refusals become problem documents, as they come before the stream. The end of the request ends the answer."""
    asked = chats.ask(
        server.app.chatting, me, job_id, body.as_question(), body.as_endpoint(), on_machine=body.on_machine
    )
    try:
        yield asked
    finally:
        asked.cancelled.set()
        if not asked.is_begun:
            asked.end()


@router.post(
    "/jobs/{job_id}/chat",
    operation_id="chat",
    summary="Ask the adapter and its base model",
    response_class=EventSourceResponse,
)
async def chat(asked: Annotated[chats.PendingAnswer, Depends(_asked)]) -> AsyncIterator[ServerSentEvent]:
    """Streams both answers: events `loading`, `ready`, `text` and `end`, then `failed` or `done`.

    Their data is JSON with `arm` (`base` or `adapter`) and `text`. Nothing of a conversation is stored: `turns` has the
    earlier questions with their answers. Closing the connection stops the answers. Only the job's owner may ask.
    With `on_machine`, events `loading` say what the session waits for until it can answer.
    """
    async with aclosing(answers.events(asked)) as events:
        async for event in events:
            yield ServerSentEvent(data=event.to_json(), event=event.kind)


@router.post(
    "/jobs/{job_id}:chat",
    status_code=201,
    operation_id="chat_on_machine",
    summary="Start a session for chats on a machine",
    response_model=responses.SubmittedJob,
)
def start(server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.ChatSessionCreate) -> Response:
    """Queue a job that loads base model and adapter on a machine, then answers questions.

    It ends when its minutes are over, or after five minutes without a question. A session of this job that has not
    ended is returned in place of a second one. Cancel it to end it.
    """
    made = machine_chats.start(server.ctx, me, job_id, asked.minutes)
    return created(server, made.job.id, made.notes)
