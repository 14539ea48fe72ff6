"""Chats at an OpenAI-compatible address: two models by name, llama-server's scale of an adapter, and every fault."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.adapters import private_networks
from orchestrator.adapters.chat_endpoint import EndpointChat
from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.cli.main import app
from orchestrator.ports.chats import ChatAddress
from tests.emulators.chat import ChatEmulator, Fault
from tests.helpers.ports import quiet_port
from trainhop.errors import Error
from worker.shared.chat import ChatEvent, Kind, Question
from worker.shared.evaluation_units import Arm

ASKED = Question(question="hello")
ALONE = Question(question="hello", only="adapter")


def ask(url: str, question: Question = ASKED, *, chat: EndpointChat | None = None, **more: Any) -> list[ChatEvent]:
    where = {"models": {Arm.BASE: "base", Arm.ADAPTER: "adapter"}, "anywhere": True} | more
    return list((chat or EndpointChat()).ask(ChatAddress(url=url, **where), question, threading.Event()))


def refusal(url: str, question: Question = ALONE, **more: Any) -> str:
    last = ask(url, question, **more)[-1]
    assert last.kind is Kind.FAILED
    assert last.text.endswith(".")
    assert "\n" not in last.text
    return last.text


def test_two_models_by_their_names(endpoint: ChatEmulator) -> None:
    events = ask(endpoint.url)
    texts = {arm: "".join(e.text for e in events if e.arm is arm and e.kind is Kind.TEXT) for arm in Arm}
    assert texts == {arm: f"I am {arm} and you said hello" for arm in Arm}
    assert sum(event.kind is Kind.TEXT for event in events) == 14
    assert events[-1].kind is Kind.DONE


def test_one_model_with_its_adapter_off_for_the_base(endpoint: ChatEmulator) -> None:
    """Guard: with the same scale for both, the base answered as the adapter."""
    events = ask(endpoint.url, models={}, lora=0)
    texts = {arm: "".join(e.text for e in events if e.arm is arm and e.kind is Kind.TEXT) for arm in Arm}
    assert "at 0.0 " in texts[Arm.BASE]
    assert "at 1.0 " in texts[Arm.ADAPTER]
    assert all("model" not in body for body in endpoint.seen)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(kind="text/html", body=b"<html>log in</html>"), "not that of an OpenAI-compatible chat endpoint"),
        (Fault(kind="application/json", body=b"{}"), "does not stream its answers"),
        (Fault(status=401), r"needs a key \(401\)"),
        (Fault(status=404), r"no such model at this address.*\(404\)"),
        (Fault(status=429), r"wants fewer requests \(429\)"),
        (Fault(status=500), r"has a problem of its own \(500\)"),
        (Fault(status=302), "redirects to another address"),
        (Fault(cut_after=2), "broke off in the middle"),
        (Fault(body=b"data: {not json\n\n"), "not that of an OpenAI-compatible chat endpoint"),
        (Fault(body=b'data: {"error": {"message": "secret"}}\n\n'), "reports an error of its own in its answer"),
        (Fault(body=b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'), "not that of an OpenAI"),
        (Fault(body=b"data: " + b"x" * 300_000), "does not end"),
    ],
)
def test_every_fault_is_one_sentence(endpoint: ChatEmulator, fault: Fault, words: str) -> None:
    endpoint.fault = fault
    found = refusal(endpoint.url)
    assert re.search(words, found), found


def test_which_model_failed_is_said(endpoint: ChatEmulator) -> None:
    endpoint.models = ("adapter",)
    assert refusal(endpoint.url, ASKED).startswith("No answer of the base model: There is no such model")


def test_a_server_that_answers_one_request_at_a_time(endpoint: ChatEmulator) -> None:
    """Guard: without the second attempt, the request that was given up for the other one failed the question."""
    endpoint.fault = Fault(gives_up=True)
    events = ask(endpoint.url)
    assert events[-1].kind is Kind.DONE
    assert {event.arm for event in events if event.kind is Kind.TEXT} == set(Arm)
    assert len(endpoint.seen) == 3


def test_an_endless_answer_is_cut_off(endpoint: ChatEmulator) -> None:
    """Guard: without the limit of bytes it went on until the deadline."""
    endpoint.fault = Fault(endless=True)
    assert "does not end" in refusal(endpoint.url, chat=EndpointChat(max_bytes=100_000))
    assert endpoint.hung_up.wait(20)


def test_a_slow_answer_is_ended(endpoint: ChatEmulator) -> None:
    """Guard: without the deadline for all of it, signs of life kept it open for ever."""
    endpoint.fault = Fault(hold_after=2)
    assert "within the time limit" in refusal(endpoint.url, chat=EndpointChat(whole_s=0.3))


def test_an_address_that_is_down() -> None:
    assert "cannot be reached" in refusal(f"http://127.0.0.1:{quiet_port()}/v1")


def test_closing_a_chat_hangs_up(endpoint: ChatEmulator) -> None:
    """Guard: without `cut` the endpoint went on generating for nobody."""
    endpoint.fault = Fault(hold_after=2)
    where = ChatAddress(url=endpoint.url, models={}, anywhere=True)
    events = EndpointChat().ask(where, ALONE, threading.Event())
    assert next(events).kind is Kind.TEXT
    events.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
    assert endpoint.hung_up.wait(20)


def test_only_an_admin_may_ask_inside(endpoint: ChatEmulator) -> None:
    """Guard: without the transport that looks at the address, a name that changed led inside after the check."""
    with pytest.raises(InvalidError, match="in the server's own network"):
        EndpointChat().check(endpoint.url, anywhere=False)
    answers = iter([["1.1.1.1"], ["127.0.0.1"]])
    chat = EndpointChat(lambda _: next(answers), private_networks.is_inside)
    port = endpoint.url.rpartition(":")[2]
    with pytest.raises(InvalidError, match="unprotected"):
        chat.check(f"http://name.example:{port}", anywhere=False)
    assert "in the server's own network" in refusal(f"https://name.example:{port}", chat=chat, anywhere=False)
    assert endpoint.seen == []


def test_the_key_is_in_a_variable_and_not_in_a_word(endpoint: ChatEmulator) -> None:
    endpoint.key = "sk-canary"
    words = ["chat", "--endpoint", endpoint.url, "--model", "adapter", "--base-model", "base", "--prompt", "hello"]
    with pytest.raises(Error, match="needs a key") as found:
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert "canary" not in str(found.value)
    done = CliRunner().invoke(app, words, env={"TRAINHOP_CHAT_KEY": "sk-canary"}, catch_exceptions=False)
    assert done.stdout == "base:\nI am base and you said hello\n\nadapter:\nI am adapter and you said hello\n\n" or (
        done.stdout == "adapter:\nI am adapter and you said hello\n\nbase:\nI am base and you said hello\n\n"
    )
    asked = CliRunner().invoke(app, [*words, "--ask-key"], input="sk-canary\n", catch_exceptions=False)
    assert "I am base" in asked.stdout
    assert "canary" not in asked.output


def test_options_that_do_not_belong_together(endpoint: ChatEmulator) -> None:
    for words, said in {
        ("chat",): "Name a job or a PEFT folder",
        ("chat", "job", "--model", "m"): "need --endpoint",
        ("chat", "job", "--endpoint", endpoint.url): "has its own models",
        ("chat", "--endpoint", endpoint.url, "--only", "base"): "--base-model",
        ("chat", "--endpoint", "http://u:p@localhost"): "without a user",
    }.items():
        with pytest.raises(Error, match=said):
            CliRunner().invoke(app, words, catch_exceptions=False)
    one = CliRunner().invoke(app, ["chat", "--endpoint", endpoint.url, "--prompt", "hi", "--json"])
    assert '"base"' not in one.stdout
    assert "Only the adapter will answer" in one.stderr
