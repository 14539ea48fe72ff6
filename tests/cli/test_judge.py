"""`trainhop judge`: endpoints, judgements, and what `trainhop show` says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from orchestrator.entrypoints.cli.main import app
from orchestrator.services.judging import work
from tests.emulators.judge import JudgeEmulator, always
from tests.helpers.evaluations import add_evaluation
from tests.helpers.page_server import PageServer, page_server
from trainhop.errors import Error

KEY = "sk-canary-of-the-shell"


@pytest.fixture
def server(tmp_path) -> Iterator[PageServer]:
    with page_server(tmp_path) as running:
        yield running


@pytest.fixture
def judge() -> Iterator[JudgeEmulator]:
    with JudgeEmulator() as running:
        running.key = KEY
        yield running


@pytest.fixture
def trainhop(server: PageServer):
    """Types a command, as the admin. A refusal is the command's error."""

    def typed(*words: str, stdin: str | None = None) -> Result:
        options = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}
        result = CliRunner().invoke(app, [*words], env=options, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return typed


@pytest.fixture
def job(server: PageServer) -> str:
    """An evaluation with answers, by its name."""
    admin = server.api.admin
    made = admin.submit(name="evaluated")["id"]
    add_evaluation(server.app.context.uow, made, 30, owner=admin.get("/me").json()["id"], same=3)
    return "evaluated"


def test_a_judge_model_from_the_command_line(server, trainhop, judge, job, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    with pytest.raises(Error, match="The endpoint needs a key"):
        trainhop("judge", "add", "house", judge.url, judge.model)
    with pytest.raises(Error, match="does not accept the key"):
        trainhop("judge", "add", "house", judge.url, judge.model, "--key-file", "-", stdin="sk-wrong")
    added = trainhop("judge", "add", "house", judge.url, judge.model, "--key-file", str(key))
    assert "before you agree: trainhop judge consent house" in added.stderr
    assert "needs consent" in trainhop("judge", "ls").stdout
    with pytest.raises(Error, match="trainhop judge consent house"):
        trainhop("judge", "start", job, "house")
    assert judge.url in trainhop("judge", "consent", "house").stderr
    listed = trainhop("judge", "ls", "--json").stdout
    assert json.loads(listed)[0]["consented_by"] == "admin"
    with pytest.raises(Error, match="evaluated has no judgement"):
        trainhop("judge", "status", job)
    made = trainhop("judge", "start", job, "house", "--max-tokens", "2000").stdout.strip()
    work(server.app.judging, made)
    shown = " ".join(trainhop("judge", "status", job).stdout.split())
    assert "state budget spent: The next request may need" in shown
    assert trainhop("judge", "resume", job, "--max-tokens", "100000").stderr.strip() == "running"
    assert trainhop("judge", "pause", job).stderr.strip() == "paused"
    assert trainhop("judge", "resume", job).stderr.strip() == "running"
    work(server.app.judging, made)
    shown = " ".join(trainhop("judge", "status", job).stdout.split())
    for words in ("advice ask people", "requests 54 of 54", "inconsistent 0 % (0 to 12 %)", "the adapter 20 times"):
        assert words in shown, words
    of_job = " ".join(trainhop("show", job).stdout.split())
    for words in ("judge model judge-1 at", "advice ask people", "prompts 30, 3 with equal answers"):
        assert words in of_job, words
    assert json.loads(trainhop("judge", "status", job, "--json").stdout)["state"] == "done"
    assert json.loads(trainhop("show", job, "--json").stdout)["judgements"][0]["state"] == "done"
    judge.conduct = always("first")
    again = trainhop("judge", "start", job, "house", "--json").stdout
    work(server.app.judging, json.loads(again)["id"])
    shown = " ".join(trainhop("judge", "status", job).stdout.split())
    assert "warning The judge contradicts itself in 100 % of the pairs." in shown
    judge.key = f"{KEY}-2"
    key.write_text(judge.key)
    assert "replaced the key" in trainhop("judge", "key", "house", str(key)).stderr
    assert "removed house" in trainhop("judge", "rm", "house").stderr
    assert json.loads(trainhop("judge", "ls", "--json").stdout) == []
