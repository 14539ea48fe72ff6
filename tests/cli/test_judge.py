"""`trainhop judge`: endpoints, judgements, and what `trainhop show` says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from orchestrator.services.judging import work
from tests.emulators.judge import JudgeEmulator, always
from trainhop.errors import Error

KEY = "sk-canary-of-the-shell"


@pytest.fixture
def judge() -> Iterator[JudgeEmulator]:
    with JudgeEmulator() as running:
        running.key = KEY
        yield running


def test_a_judge_model_from_the_command_line(server, typed, judge, evaluated, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    with pytest.raises(Error, match="The endpoint needs a key"):
        typed("judge", "add", "house", judge.url, judge.model)
    with pytest.raises(Error, match="does not accept the key"):
        typed("judge", "add", "house", judge.url, judge.model, "--key-file", "-", stdin="sk-wrong")
    added = typed("judge", "add", "house", judge.url, judge.model, "--key-file", str(key))
    assert "before you agree: `trainhop judge consent house`" in added.stderr
    assert "needs consent" in typed("judge", "ls").stdout
    with pytest.raises(Error, match="trainhop judge consent house"):
        typed("judge", "start", evaluated, "house")
    assert judge.url in typed("judge", "consent", "house").stderr
    listed = typed("judge", "ls", "--json").stdout
    assert json.loads(listed)[0]["consented_by"] == "admin"
    with pytest.raises(Error, match="evaluated has no judgement"):
        typed("judge", "status", evaluated)
    made = typed("judge", "start", evaluated, "house", "--max-tokens", "2000").stdout.strip()
    work(server.app.judging, made)
    shown = " ".join(typed("judge", "status", evaluated).stdout.split())
    assert "state budget spent: The next request may need" in shown
    assert typed("judge", "resume", evaluated, "--max-tokens", "100000").stderr.strip() == "running"
    assert typed("judge", "pause", evaluated).stderr.strip() == "paused"
    assert typed("judge", "resume", evaluated).stderr.strip() == "running"
    work(server.app.judging, made)
    shown = " ".join(typed("judge", "status", evaluated).stdout.split())
    for words in ("advice ask people", "requests 54 of 54", "inconsistent 0 % (0 to 12 %)", "the adapter 20 times"):
        assert words in shown, words
    of_job = " ".join(typed("show", evaluated).stdout.split())
    for words in ("judge model judge-1 at", "advice ask people", "prompts 30, 3 with equal answers"):
        assert words in of_job, words
    assert json.loads(typed("judge", "status", evaluated, "--json").stdout)["state"] == "done"
    assert json.loads(typed("show", evaluated, "--json").stdout)["judgements"][0]["state"] == "done"
    judge.conduct = always("first")
    again = typed("judge", "start", evaluated, "house", "--json").stdout
    work(server.app.judging, json.loads(again)["id"])
    shown = " ".join(typed("judge", "status", evaluated).stdout.split())
    assert "warning The judge contradicts itself in 100 % of the pairs." in shown
    judge.key = f"{KEY}-2"
    key.write_text(judge.key)
    assert "replaced the key" in typed("judge", "key", "house", str(key)).stderr
    assert "removed house" in typed("judge", "rm", "house").stderr
    assert json.loads(typed("judge", "ls", "--json").stdout) == []
