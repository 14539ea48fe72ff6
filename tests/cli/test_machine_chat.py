"""`trainhop chat JOB --on-machine`: the session that it starts or finds, and what a person reads until it answers."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import command, environment
from tests.helpers.exporter import small_adapter
from tests.helpers.waiting import wait_for
from trainhop.errors import Error


def test_a_question_is_answered_in_a_session_and_the_next_one_finds_it(server, typed, tmp_path: Path) -> None:
    job = server.api.admin.submit(name="trail")["id"]
    machine = server.machine()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10, *small_adapter()).status_code == 204
    words, log = ("chat", "trail", "--on-machine", "--prompt", "hello", "--json"), tmp_path / "said"
    variables = environment(TRAINHOP_SERVER_URL=server.url, TRAINHOP_TOKEN=server.api.admin_token)
    # A process, so that the machine comes only once a person has read that there is none.
    with log.open("wb") as said:
        asking = subprocess.Popen(
            command(*words, "--minutes", "10"), env=variables, stdout=subprocess.PIPE, stderr=said, text=True
        )
    wait_for(lambda: "waiting for a machine" in log.read_text(), "the reason why it waits")
    (session,) = [each for each in server.api.admin.get("/jobs").json()["items"] if each["state"] == "queued"]
    spec = server.api.admin.get(f"/jobs/{session['id']}").json()["spec"]
    assert (spec["chat"], spec["placement"]["max_session_s"]) == ({"job": job, "minutes": 10}, 600.0)
    machine = server.machine()

    def answered() -> None:
        number = wait_for(lambda: machine.say("chat", {"fence": machine.fence}).json()["number"], "a question")
        parts = [{"kind": "text", "arm": arm, "text": f"I am {arm}"} for arm in ("base", "adapter")]
        assert machine.say("chat", {"fence": 1, "question": number, "events": [*parts, {"kind": "done"}]}).is_success

    answered()
    first, _ = asking.communicate(timeout=60)
    with ThreadPoolExecutor(1) as other:
        again = other.submit(typed, *words)
        answered()
    second = again.result()
    for stdout, stderr in ((first, log.read_text()), (second.stdout, second.stderr)):
        answer = json.loads(stdout)
        assert [answer[arm]["text"] for arm in ("base", "adapter")] == ["I am base", "I am adapter"]
        assert f"{session['id']} is the session of this chat. It ends after 5 minutes without" in stderr
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
