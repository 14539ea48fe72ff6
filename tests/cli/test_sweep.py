"""`trainhop sweep` and `trainhop tag` as people type them."""

from __future__ import annotations

import json

import pytest

from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.cli.sweeps import MAX_JOBS, combinations
from tests.cli.conftest import ROWS

SETS = ("--set", "learning_rate=1e-4,2e-4", "--set", "lora_r=8,16")


@pytest.fixture
def file(tmp_path) -> str:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    job = {"name": "night", "base_model": "org/small", "datasets": [{"path": "rows.jsonl"}], "max_steps": 6}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return str(tmp_path / "job.yaml")


def test_a_sweep_is_planned_queued_and_listed_by_its_tag(server, typed, file):
    """Guard: without `_Files` the data was sent once for each job."""
    planned = typed("sweep", file, *SETS, "--plan")
    assert "4 jobs, 24 steps" in planned.stderr
    assert "learning_rate=2e-4 lora_r=16" in planned.stdout
    assert server.api.admin.get("/jobs").json()["items"] == []
    done = typed("sweep", file, *SETS, "--tag", "first")
    assert done.stderr.count("uploading rows.jsonl") == 1
    assert "queued 4 jobs. List them with `trainhop ls --tag first`" in done.stderr
    listed = json.loads(typed("ls", "--tag", "first", "--json").stdout)
    assert {job["name"] for job in listed} == {
        f"night learning_rate={rate} lora_r={rank}" for rate in ("1e-4", "2e-4") for rank in (8, 16)
    }
    assert {job["id"] for job in listed} <= set(done.stdout.split())
    specs = [server.api.admin.get(f"/jobs/{job['id']}").json()["spec"] for job in listed]
    assert {(spec["learning_rate"], spec["lora_r"]) for spec in specs} == {
        (rate, rank) for rate in (1e-4, 2e-4) for rank in (8, 16)
    }
    assert typed("tag", listed[0]["id"], "best", "first").stdout.split() == ["best", "first"]
    assert [job["id"] for job in json.loads(typed("ls", "--tag", "best", "--json").stdout)] == [listed[0]["id"]]
    assert typed("tag", listed[0]["id"]).stdout.strip() == "no tags"


def test_a_large_sweep_is_asked_back_and_a_huge_one_refused(server, typed, file):
    """Guards: without `ASK_FROM` 51 jobs were queued unasked; without `MAX_JOBS` 10,000 were planned."""
    many = ("--set", "seed=" + ",".join(map(str, range(51))))
    asked = typed("sweep", file, *many, stdin="n\n")
    assert "This sweep has 51 jobs. Plan and queue them?" in asked.stderr
    assert (asked.exit_code, server.api.admin.get("/jobs").json()["items"]) == (1, [])
    assert server.api.admin.get("/datasets").json()["items"] == []
    hundred = ",".join(map(str, range(1, 101)))
    with pytest.raises(CommandError, match=f"This sweep has 10,000 jobs, and the maximum is {MAX_JOBS}"):
        typed("sweep", file, "--yes", "--set", f"seed={hundred}", "--set", f"lora_r={hundred}")


def test_one_wrong_value_queues_nothing(server, typed, file):
    with pytest.raises(Exception, match="lora_r"):
        typed("sweep", file, "--set", "lora_r=8,minus")
    assert server.api.admin.get("/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["a=1,2", "b=x"], [("1", "x"), ("2", "x")]),
        (["a=[1,2],[3]"], [("[1,2]",), ("[3]",)]),
        (["a='x,y',z"], [("'x,y'",), ("z",)]),
        (["a={b: 1, c: 2}"], [("{b: 1, c: 2}",)]),
        (["a= 1 , 2 "], [("1",), ("2",)]),
    ],
)
def test_values_are_parted_at_commas(given, values):
    assert [tuple(value for _, value in each) for each in combinations(given)] == values


@pytest.mark.parametrize("given", [["a"], ["=1"], ["a="], ["a=1,"], ["a=1", "a=2"]])
def test_what_is_no_setting_is_refused(given):
    with pytest.raises(CommandError, match="--set"):
        combinations(given)
