"""A conversation of `trainhop chat`: where it is asked, what is typed, and what is kept of it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError

from orchestrator.adapters.chat_endpoint import EndpointChat
from orchestrator.adapters.chat_process import ChatProcess
from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.cli.chat_view import Answers, View, view_for
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import clean, put_json_line, say
from orchestrator.ports.chats import ChatAddress
from trainhop.connection import find_job
from trainhop.download import save_adapter
from worker.shared.chat import ChatEvent, ChatTurn, Kind, Question
from worker.shared.chat_limits import IDLE_S, MAX_TEXT
from worker.shared.evaluation_units import Arm
from worker.shared.files import temporary_folder
from worker.shared.plain_errors import in_words

KEY = "TRAINHOP_CHAT_KEY"
NEW = "/new"
Ask = Callable[[Question, threading.Event], Iterator[ChatEvent]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of every question. `only` is the one model that is asked."""

    system: str
    only: str | None
    max_tokens: int
    temperature: float
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address, and what the models are called there."""

    url: str
    model: str
    base_model: str
    lora: int | None
    asks_for_key: bool


@contextmanager
def on_this_computer(context: typer.Context, source: str, base: str | None) -> Generator[Ask]:
    """Load the adapter of a PEFT folder or of a job with its base model, for as long as the block runs."""
    # A folder may have the name of a job.
    if (Path(source) / "adapter_config.json").is_file():
        with closing(ChatProcess(Path(source).absolute(), base, local_only=False)) as process:
            yield process.ask
        return
    client = connect(context)
    record = find_job(client, source)
    with temporary_folder("trainhop-chat-", None) as temporary:
        save_adapter(client, record, temporary / "adapter")
        with closing(ChatProcess(temporary / "adapter", base, local_only=False)) as process:
            yield process.ask


def on_a_machine(context: typer.Context, source: str, minutes: int) -> Ask:
    """Ask in the session of a job on a machine, which is started if there is none."""
    client = connect(context)
    job = find_job(client, source)["id"]
    session = client.post(f"/jobs/{job}:chat", {"minutes": minutes})
    hint = f"It ends after {IDLE_S / 60:.0f} minutes without a question, or with `trainhop cancel {session['id']}`"
    say(f"{session['id']} is the session of this chat. {hint}")

    def ask(question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        body = question.model_dump(mode="json") | {"on_machine": True}
        with client.stream(f"/jobs/{job}/chat", {}, body) as answer:
            for line in answer.iter_lines():
                if cancelled.is_set():
                    return
                if line.startswith("data:"):
                    yield ChatEvent.of(json.loads(line.removeprefix("data:")))

    return ask


def at_an_address(there: Endpoint) -> Ask:
    """Ask at an endpoint. Its key is in a variable or is asked for."""
    chats = EndpointChat()
    try:
        url = chats.check(there.url, anywhere=True)
    except InvalidError as error:
        raise CommandError(Exit.USAGE, str(error)) from None
    key = os.environ.get(KEY, "")
    if there.asks_for_key:
        key = str(typer.prompt("Key", hide_input=True, err=True))
    models = {Arm.ADAPTER: there.model, Arm.BASE: there.base_model or there.model}
    where = ChatAddress(url=url, models=models, lora=there.lora, key=key.strip(), anywhere=True)
    return lambda question, cancelled: chats.ask(where, question, cancelled)


def converse(ask: Ask, settings: Settings, prompt: str | None) -> None:
    """Ask one question, or those that are typed. A question that fails ends a conversation of one."""
    view = view_for(as_json=settings.as_json, both=settings.only is None)
    if prompt is not None:
        _answer(ask, _question(settings, prompt, ()), view, settings)
        return
    turns: list[ChatTurn] = []
    if sys.stdin.isatty():
        say(f"Ask a question. {NEW} begins a new conversation, Ctrl-C stops an answer, Ctrl-D ends.")
    for text in _typed():
        if text == NEW:
            turns = []
            continue
        try:
            found = _answer(ask, _question(settings, text, tuple(turns)), view, settings)
        except KeyboardInterrupt:
            say("stopped")
            continue
        except CommandError as error:
            if not sys.stdin.isatty():
                raise
            say("\n".join(error.lines))
            continue
        turns.append(
            ChatTurn(question=text, base=found.text(Arm.BASE)[:MAX_TEXT], adapter=found.text(Arm.ADAPTER)[:MAX_TEXT])
        )


def _typed() -> Iterator[str]:
    """Lines that are not empty, until the end of input."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)  # noqa: T201
        line = sys.stdin.readline()
        if not line:
            return
        if text := line.strip():
            yield text


def _question(settings: Settings, text: str, turns: tuple[ChatTurn, ...]) -> Question:
    try:
        return Question.model_validate(
            {
                "question": text,
                "system": settings.system,
                "turns": turns,
                "only": settings.only,
                "max_tokens": settings.max_tokens,
                "temperature": settings.temperature,
            }
        )
    except ValidationError as error:
        fault = error.errors()[0]
        words = f"{'.'.join(map(str, fault['loc'][:1]))}: {in_words(fault)}. {NEW} begins a new conversation."
        raise CommandError(Exit.USAGE, words) from None


def _answer(ask: Ask, question: Question, view: View, settings: Settings) -> Answers:
    answers = Answers(question)
    with view.showing(answers) as shown:
        for event in ask(question, threading.Event()):
            if event.kind is Kind.FAILED:
                raise CommandError(Exit.FAILED, clean(event.text))
            if event.kind is Kind.LOADING:
                say(clean(event.text))
            answers.add(event)
            shown(event)
    if settings.as_json:
        put_json_line(answers.to_json())
    return answers
