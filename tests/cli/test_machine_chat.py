"""`trainhop chat JOB --on-machine`: the session that it starts or finds, and what a person reads until it answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.exporter import small_adapter
from tests.helpers.waiting import wait_for
from trainhop.errors import Error


def test_a_question_is_answered_in_a_session_and_the_next_one_finds_it(server, typed, tmp_path: Path) -> None:
    job = server.api.admin.submit(name="trail")["id"]
    machine = server.machine()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10, *small_adapter()).status_code == 204
    done: list[Any] = []

    def ask(*more: str) -> threading.Thread:
        words = ("chat", "trail", "--on-machine", "--prompt", "hello", "--json", *more)
        made = threading.Thread(target=lambda: done.append(typed(*words)))
        made.start()
        return made

    def taken() -> dict[str, Any]:
        return machine.say("chat", {"fence": machine.fence}).json()

    asking = ask("--minutes", "10")
    (session,) = wait_for(
        lambda: [each for each in server.api.admin.get("/jobs").json()["items"] if each["state"] == "queued"],
        "the session",
    )
    spec = server.api.admin.get(f"/jobs/{session['id']}").json()["spec"]
    assert (spec["chat"], spec["placement"]["max_session_s"]) == ({"job": job, "minutes": 10}, 600.0)
    machine = server.machine()
    for first in (True, False):
        if not first:
            asking = ask()
        number = wait_for(lambda: taken()["number"], "a question")
        words = [{"kind": "text", "arm": arm, "text": f"I am {arm}"} for arm in ("base", "adapter")]
        assert machine.say("chat", {"fence": 1, "question": number, "events": [*words, {"kind": "done"}]}).is_success
        asking.join(30)
        answer = json.loads(done[-1].stdout)
        assert [answer[arm]["text"] for arm in ("base", "adapter")] == ["I am base", "I am adapter"]
        assert f"{session['id']} is the session of this chat. It ends after 5 minutes without" in done[-1].stderr
    assert "waiting for a machine" in done[0].stderr
    server.api.admin.post(f"/jobs/{session['id']}:cancel")
    with pytest.raises(Error, match=r"The session is being ended\. Start another one"):
        typed("chat", "trail", "--on-machine", "--prompt", "hello")


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--minutes", "10"), "--minutes needs --on-machine"),
        (("--on-machine", "--endpoint", "http://localhost:1/v1"), "Choose one of --on-machine and --endpoint"),
        (("--on-machine", "--base", "x"), "takes the base model that the job names"),
    ],
)
def test_what_does_not_fit_together_is_refused(typed, words: tuple[str, ...], refusal: str) -> None:
    with pytest.raises(Error, match=refusal):
        typed("chat", "trail", *words)
