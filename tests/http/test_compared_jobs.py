"""Jobs side by side: their results, the differences of their files, and their curves, for those who may see them."""

from __future__ import annotations

import math

import pytest

from orchestrator.entrypoints.dashboard.compare import POINTS
from orchestrator.services.job_differences import differences
from tests.dashboard.test_pages import log_in
from tests.http.http_client import Api, ApiUser, Machine, People


def _trained(api: Api, provider, who: ApiUser, losses: dict[int, float], **changes) -> str:
    """A job of which these losses by step were reported."""
    job = who.submit(max_steps=max(losses), **changes)["id"]
    machine = Machine.launched(api, provider)
    machine.start(nonce=machine.lease)
    rows = [
        {"step": step, "values": {"loss": loss if math.isfinite(loss) else f"{loss}inity"}}
        for step, loss in losses.items()
    ]
    reading = {"rss_bytes": 2**30}
    assert machine.report(max(losses), metrics=rows, reading=reading).status_code == 200
    return job


def _asked(who: ApiUser, *jobs: str):
    return who.get("/jobs:compare", params={"job": jobs})


def test_jobs_are_compared(api: Api, people: People, provider) -> None:
    """Guard: without `_is_finite` the lowest loss of a job that had once reported minus infinity was null."""
    first = _trained(api, provider, people.ann, {1: 3.0, 2: 1.0, 3: 2.0}, name="one", lora_r=8)
    second = _trained(api, provider, people.ann, {1: 4.0, 2: float("-inf")}, name="two", lora_r=16)
    waiting = people.ann.submit(name="three")["id"]
    found = _asked(people.ann, second, first, waiting).json()
    assert [job["name"] for job in found["jobs"]] == ["two", "one", "three"]
    assert [job["loss"] for job in found["jobs"]] == [
        {"last": None, "lowest": 4.0},
        {"last": 2.0, "lowest": 1.0},
        {"last": None, "lowest": None},
    ]
    assert [job["state"] for job in found["jobs"]] == ["running", "running", "queued"]
    assert found["jobs"][1]["machines"] == ["this-computer test cpu"]
    assert found["jobs"][1]["gpu_hours"] == 0
    assert found["jobs"][2]["machines"] == found["jobs"][2]["metrics"] == []
    assert {"key": "lora_r", "values": [16, 8, 16]} in found["differences"]
    assert {each["key"] for each in found["differences"]} == {"lora_r", "max_steps"}
    assert found["metrics"] == ["loss", "memory"]
    assert _asked(people.ann, first, waiting).json()["metrics"] == []


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "Choose 2 to 8 jobs to compare."), (1, "Choose 2 to 8 jobs to compare."), (9, "At most 8 jobs can be")],
)
def test_two_to_eight_jobs_are_compared(api1: Api, people: People, count: int, words: str) -> None:
    refused = _asked(people.ann, *(f"job-{n}" for n in range(count)))
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(words)
    log_in(api1, people.ann)
    page = api1.client.get(
        "/compare", params={"job": [f"job-{n}" for n in range(count)]}, headers={"Accept": "text/html"}
    )
    assert page.status_code == 422
    assert words in page.text


def test_only_jobs_that_may_be_seen_are_compared(api1: Api, people: People) -> None:
    """Guard: without `check_seen` in `checked` bob compared ann's jobs, and read their curves."""
    jobs = [people.ann.submit()["id"] for _ in range(2)]
    assert _asked(people.ann, *jobs).status_code == 200
    assert _asked(people.bob, *jobs).status_code == 404
    assert _asked(people.bob, *jobs).json()["detail"] == f"There is no job {jobs[0]}."
    assert _asked(people.ann, jobs[0], "job-none").status_code == 404
    twice = _asked(people.ann, jobs[1], jobs[0], jobs[1])
    assert twice.json()["detail"] == f"Job {jobs[1]} is there twice. Choose 2 to 8 different jobs."
    log_in(api1, people.bob)
    query = {"job": jobs}
    assert api1.client.get("/compare", params=query).status_code == 404
    assert api1.client.get("/compare/curves.json", params=query | {"metric": "loss"}).status_code == 404
    assert people.admin.call("PUT", "/team", json={"everyone_sees_jobs": True}).status_code == 200
    assert _asked(people.bob, *jobs).status_code == 200


def test_long_curves_are_means_of_ranges(api: Api, people: People, provider) -> None:
    """Guard: with the last step of one job alone, the curve of a longer one had as many points as it has steps."""
    steps = 3 * POINTS
    long = _trained(api, provider, people.ann, {step: float(step % 4) for step in range(1, steps + 1)})
    short = _trained(api, provider, people.ann, {4: 7.0, 5: float("inf"), 9: 1.0})
    log_in(api, people.ann)
    ask = {"job": [long, short], "metric": "loss"}
    found = api.client.get("/compare/curves.json", params=ask).json()
    width = found["width"]
    assert width == 4
    assert len(found["steps"]) == steps // width + 1 <= POINTS
    assert found["steps"][:3] == [1.5, 5.5, 9.5]
    assert found["values"][0][:3] == [2.0, 1.5, 1.5]
    assert found["values"][1][:4] == [None, 7.0, 1.0, None]
    memory = api.client.get("/compare/curves.json", params=ask | {"metric": "memory"}).json()
    assert [[v for v in each if v] for each in memory["values"]] == [[1.07374e9], [1.07374e9]]
    brief = api.client.get("/compare/curves.json", params={"job": [short, people.ann.submit()["id"]], "metric": "loss"})
    assert brief.json() == {"metric": "loss", "width": 1, "steps": [4, 9], "values": [[7.0, 1.0], [None, None]]}


def test_the_page_is_complete_without_a_common_metric(api1: Api, people: People, provider) -> None:
    first = _trained(api1, provider, people.ann, {1: 3.0}, name="<i>one</i>", lora_r=8)
    waiting = people.ann.submit(name="two", max_steps=1)["id"]
    Machine.launched(api1, provider)
    log_in(api1, people.ann)
    text = api1.client.get("/compare", params={"job": [first, waiting]}).text
    assert "running</span>" in text
    assert "starting</span>" in text
    again = api1.client.get("/compare", params={"job": [first, waiting]}, headers={"HX-Request": "true"}).text
    assert "Table of results" in again
    assert "<html" not in again
    assert "These jobs have no metric in common" in text
    assert "compare.js" not in text
    assert "&lt;i&gt;one&lt;/i&gt;" in text
    assert "<code>lora_r</code>" in text


def test_nested_keys_are_compared_with_dots() -> None:
    specs = [
        {
            "name": "a",
            "rendered_at": 1,
            "placement": {"gpu": "t4", "accounts": []},
            "datasets": [{"path": "x", "rows": 3}],
        },
        {
            "name": "b",
            "rendered_at": 2,
            "placement": {"gpu": "l4", "accounts": []},
            "datasets": [{"path": "y", "rows": 3}],
        },
        {"placement": {"gpu": "l4", "accounts": ["k"]}, "datasets": [{"path": "y", "rows": 3}, {"path": "z"}]},
    ]
    assert differences(specs) == [
        ("datasets.0.path", ["x", "y", "y"]),
        ("datasets.1.path", [None, None, "z"]),
        ("placement.accounts", [[], [], ["k"]]),
        ("placement.gpu", ["t4", "l4", "l4"]),
    ]
