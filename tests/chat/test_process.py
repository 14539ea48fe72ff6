"""The chat process: its protocol, its end, and what a person sees of it at the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from orchestrator.adapters.chat_process import ChatProcess
from tests.chat.conftest import Pairing
from tests.helpers.waiting import wait_for
from worker.shared.chat import Kind, Question
from worker.shared.process import process_birth

ASKED = Question(question="Where does the trail begin?", max_tokens=12)
OF_A_CALLER = """
import sys, threading
from pathlib import Path
from orchestrator.adapters.chat_process import ChatProcess
process = ChatProcess(Path(sys.argv[1]), None, local_only=True)
print(process.pid, flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def process(pairing: Pairing) -> Iterator[ChatProcess]:
    with closing(ChatProcess(pairing.adapter, str(pairing.base), local_only=True)) as running:
        yield running


def asked(process: ChatProcess, question: Question = ASKED, cancelled_at: Kind | None = None) -> list:
    cancelled, found = threading.Event(), []
    for event in process.ask(question, cancelled):
        found.append(event)
        if event.kind is cancelled_at:
            cancelled.set()
    return found


def test_a_process_answers_again_after_an_answer_was_cancelled(process: ChatProcess) -> None:
    """Guards: without the cancel message the next answer came after all 200 tokens; without the numbers of the
    questions it began with pieces of the cancelled one."""
    first = [event for event in asked(process) if event.kind not in (Kind.LOADING, Kind.READY)]
    assert first[-1].kind is Kind.DONE
    long = ASKED.model_copy(update={"max_tokens": 200, "temperature": 1.0})
    assert asked(process, long, cancelled_at=Kind.TEXT)[-1].kind is Kind.TEXT
    assert asked(process) == first


def test_a_question_that_cannot_be_answered_leaves_the_process(process: ChatProcess) -> None:
    found = asked(process, Question(question="word " * 600))
    assert [event.kind for event in found][-1] is Kind.FAILED
    assert process.is_alive
    assert asked(process)[-1].kind is Kind.DONE


def test_what_cannot_be_loaded_is_one_sentence(pairing: Pairing) -> None:
    found = asked(ChatProcess(pairing.adapter, "nobody/nothing", local_only=True))
    assert [event.kind for event in found] == [Kind.FAILED]
    assert found[0].text.startswith("The base model nobody/nothing is not on this computer")


def test_a_killed_process_is_named(pairing: Pairing) -> None:
    with closing(ChatProcess(pairing.adapter, str(pairing.base), local_only=True)) as process:
        os.kill(process.pid, signal.SIGKILL)
        found = asked(process)
        assert found[-1].text.startswith("The chat process was ended, probably because this computer ran out of memory")
        assert not process.is_alive


def test_the_process_ends_with_its_caller(pairing: Pairing) -> None:
    """Guard: without `tied` and without reading to the end of standard input it went on alone."""
    command = [sys.executable, "-c", OF_A_CALLER, str(pairing.adapter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        child = int(caller.stdout.readline())
        assert process_birth(child) is not None
        caller.kill()
    wait_for(lambda: process_birth(child) is None, "the end of the chat process")


def test_a_person_chats_at_the_command_line(pairing: Pairing) -> None:
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "chat", str(pairing.adapter), "--json"]
    done = subprocess.run(
        [*command, "--max-tokens", "8"],
        input="Where?\n\nAnd then?\n/new\nWhere?\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, again = map(json.loads, done.stdout.splitlines())
    assert first["question"] == "Where?"
    assert second["question"] == "And then?"
    assert first["base"]["text"] != first["adapter"]["text"]
    assert (again["base"]["text"], again["adapter"]["text"]) == (first["base"]["text"], first["adapter"]["text"])
