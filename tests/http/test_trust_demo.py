"""The parts of `trainhop demo --trust` that need no training: its faulty data, and its raters on the real page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.cli.main import demo
from orchestrator.entrypoints.demo.command import examples
from orchestrator.entrypoints.demo.faults import plant
from orchestrator.entrypoints.demo.raters import Rater, vote_until_closed
from orchestrator.entrypoints.demo.trust import CHANGES, EVALUATION
from tests.helpers.evaluations import add_evaluation
from tests.http.http_client import Api, People
from worker.shared.data_checks.runner import Data, check
from worker.shared.evaluation_spec import LEAST_PROMPTS


def test_planted_faults_stop_a_job_and_a_clean_copy_has_none(tmp_path: Path) -> None:
    source, file = examples() / "trail-guide.jsonl", tmp_path / "new" / "planted.jsonl"
    plant(source, file)
    planted = check(Data(path=file))
    stops = {finding.check for finding in planted.report.findings if finding.level == "stop"}
    assert stops == {"exact_duplicates", "template_tokens", "secrets"}
    good = len(source.read_text().splitlines())
    rows = planted.report.rows
    assert set(range(good, rows)) <= planted.left_out
    assert (rows - len(planted.left_out)) * CHANGES["val_set_size"] > EVALUATION["max_prompts"] * 0.9 > LEAST_PROMPTS
    assert {f.level for f in check(Data(path=source)).report.findings} == {"list"}


def test_simulated_raters_decide_through_the_page(api1: Api, people: People) -> None:
    """The base model has the shorter answers, so it wins, but not for every fifth prompt."""
    job = people.ann.submit()["id"]
    add_evaluation(api1.app.context.uow, job, 48, owner=people.ann.get("/me").json()["id"], same=2)
    path = f"/comparisons/{people.ann.post(f'/evaluations/{job}/comparisons', {'plan': 'small'}).json()['id']}"
    links = [people.ann.post(f"{path}/raters", {"name": name}).json()["url"] for name in ("Ann", "Ben")]
    browser: Any = api1.client
    raters = [Rater(browser, link) for link in links]
    with pytest.raises(CommandError, match=r"409: .*opened already, and it works once"):
        Rater(browser, links[0])
    votes = vote_until_closed(raters)
    found = people.ann.get(path).json()
    assert (found["ending"], found["decisive"], found["ties"]) == ("decided", 32, 0)
    assert (found["result"]["quality"], 5 <= found["result"]["wins"] <= 7) == ("worse", True)
    assert votes == found["ratings"] >= 32 + found["agreement"]["prompts"]
    assert found["agreement"]["equal"] == found["agreement"]["prompts"]
    assert all(abs(rater["ratings"] - votes / 2) <= 1 for rater in found["raters"])


def test_both_demos_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Choose one of them"):
        demo(tmp_path / "demo", sandbox=True, trust=True, as_json=False)
    assert not list(tmp_path.iterdir())
