"""Chats on a job's page: streamed from the API by the script, or as a page with both answers without it."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.entrypoints.api.requests import ChatCreate
from orchestrator.entrypoints.dashboard.curve import OwnedJob
from orchestrator.entrypoints.dashboard.render import Viewer, acted, by_script, page, piece
from orchestrator.entrypoints.http import answers
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import chats, jobs, machine_chats
from worker.shared.chat import ChatTurn, Kind
from worker.shared.chat_limits import (
    ANSWER_TOKENS,
    IDLE_S,
    LEAST_MINUTES,
    MAX_ANSWER_TOKENS,
    MAX_MINUTES,
    MAX_TEXT,
    MAX_TURNS,
    MINUTES,
)
from worker.shared.evaluation_units import Arm
from worker.shared.plain_errors import in_words

router = APIRouter(include_in_schema=False)
Row = dict[str, Any]


class ChatForm(BaseModel):
    """The fields of the form. `turns` has the conversation so far, as JSON."""

    model_config = ConfigDict(extra="ignore")

    question: str = Field(max_length=MAX_TEXT)
    system: str = Field("", max_length=MAX_TEXT)
    max_tokens: str = Field(str(ANSWER_TOKENS), max_length=10)
    place: Literal["here", "machine", "address"] = "here"
    url: str = Field("", max_length=1_000)
    model: str = Field("", max_length=200)
    base_model: str = Field("", max_length=200)
    lora: str = Field("", max_length=10)
    key: SecretStr = Field(SecretStr(""), max_length=2_048)
    turns: str = Field("[]", max_length=1 << 20)

    def asked(self) -> ChatCreate:
        """The same as the API's request. Raises `InvalidError`."""
        try:
            body: Row = {
                "question": self.question,
                "system": self.system,
                "max_tokens": self.max_tokens,
                "turns": json.loads(self.turns),
            }
            if self.place == "machine":
                body["on_machine"] = True
            if self.place == "address":
                key = self.key.get_secret_value()
                there = {"url": self.url, "model": self.model, "base_model": self.base_model, "key": key}
                body["endpoint"] = there | ({"lora": self.lora} if self.lora.strip() else {})
                if not self.base_model and not self.lora.strip():
                    body["only"] = Arm.ADAPTER
            return ChatCreate.model_validate(body)
        except (ValidationError, ValueError, RecursionError) as error:
            fault = error.errors()[0] if isinstance(error, ValidationError) else None
            words = f"{'.'.join(map(str, fault['loc']))}: {in_words(fault)}" if fault else "The turns are not valid"
            raise InvalidError(f"{words}. Correct it and try again.") from None


def section(server: Server, me: Actor, job: Row) -> Row | None:
    """The values of the section on a job's page. None where there is nothing to chat with."""
    if not job["adapter"] or job["member_id"] != me.member_id or job["spec"].get("evaluation"):
        return None
    obstacle = server.app.chats.obstacle()
    typed: Row = {"question": "", "system": "", "url": "", "model": "", "base_model": "", "lora": ""}
    there = _session(server, job["id"])
    place = "machine" if there["session"] is not None else "address" if obstacle else "here"
    typed |= {"max_tokens": ANSWER_TOKENS, "place": place}
    limits = {"text": MAX_TEXT, "tokens": MAX_ANSWER_TOKENS, "turns": MAX_TURNS}
    return {"obstacle": obstacle, "typed": typed, "turns": "[]", "limits": limits, **there}


def _session(server: Server, job_id: str, problem: str = "") -> Row:
    """The session on a machine, for the part of the section that is asked for again."""
    minutes = {"usual": MINUTES, "least": LEAST_MINUTES, "most": MAX_MINUTES, "idle": round(IDLE_S / 60)}
    return {"session": machine_chats.session_of(server.ctx, job_id), "minutes": minutes, "problem": problem}


def _show(request: Request, server: Server, job_id: str, problem: str = "") -> Response:
    if not by_script(request):
        return RedirectResponse(f"/jobs/{job_id}#chat", 303)
    now = server.ctx.clock.now()
    chat = _session(server, job_id, problem)
    return piece("chat_session.html", job=server.queries.job(job_id, now), chat=chat, now=now)


@router.get("/jobs/{job_id}/chat-session")
def session(request: Request, server: ServerDep, job_id: OwnedJob) -> Response:
    """What the session does, which the page asks for again while there is one."""
    return _show(request, server, job_id)


@router.post("/jobs/{job_id}/chat-session")
def start(
    request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob, minutes: Annotated[int, Form()] = MINUTES
) -> Response:
    """Queue a session on a machine."""
    return acted(
        request,
        lambda: machine_chats.start(server.ctx, me, job_id, minutes),
        lambda problem: _show(request, server, job_id, problem),
    )


@router.post("/jobs/{job_id}/chat-session/end")
def end(request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob) -> Response:
    """End the session, so that its machine is free."""

    def act() -> None:
        if (found := machine_chats.session_of(server.ctx, job_id)) is not None:
            jobs.cancel(server.ctx, me, found.job.id)

    return acted(request, act, lambda problem: _show(request, server, job_id, problem))


@router.post("/jobs/{job_id}/chat")
async def chat(
    request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob, form: Annotated[ChatForm, Form()]
) -> Response:
    """Answer a question, and show the conversation as a page when both answers are complete."""
    row = server.queries.job(job_id, server.ctx.clock.now())
    values = section(server, me, row) if row is not None else None
    if values is None:
        raise InvalidError("This job has no adapter that you can chat with.")
    values["typed"] = form.model_dump(exclude={"key", "turns"})
    turns, problem = list[ChatTurn](), ""
    try:
        body = form.asked()
        turns = list(body.turns)
        asked = chats.ask(
            server.app.chatting, me, job_id, body.as_question(), body.as_endpoint(), on_machine=body.on_machine
        )
        texts, problem = await _answered(request, asked)
        if not problem:
            turns.append(ChatTurn(question=body.question, **texts))
            values["typed"]["question"] = ""
    except TrainhopError as error:
        problem = str(error)
    values["turns"] = json.dumps([turn.model_dump() for turn in turns])
    shown = {"job": row, "chat": values, "turns": turns, "problem": problem, "faults": ()}
    return page(request, "chat.html", me, status=422 if problem else 200, **shown)


async def _answered(request: Request, asked: chats.PendingAnswer) -> tuple[dict[str, str], str]:
    """Both texts, and why there are none. They are not generated for somebody who has left."""
    texts = {arm.value: "" for arm in Arm}
    async with aclosing(answers.events(asked)) as events:
        async for event in events:
            if event.kind is Kind.FAILED:
                return texts, event.text
            if event.kind is Kind.TEXT and event.arm is not None:
                texts[event.arm] = (texts[event.arm] + event.text)[:MAX_TEXT]
            if await request.is_disconnected():
                break
    return texts, ""
