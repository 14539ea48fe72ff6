"""The list of jobs: its orders page by page, the jobs of a tag, the columns, and actions on several jobs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orchestrator.adapters.database.job_list import Order
from orchestrator.adapters.database.queries import Queries
from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.dashboard.job_list import JOBS_PER_PAGE
from orchestrator.services.bulk_actions import MAX_JOBS
from orchestrator.services.tags import MAX_TAGS
from orchestrator.testing import FakeClock
from tests.dashboard.test_pages import log_in
from tests.http.http_client import Api, ApiUser, Machine, People

ORIGIN = {"Origin": "http://127.0.0.1"}


def _with_values(api: Api, provider, who: ApiUser, name: str, clock: FakeClock, tag: str = "", **values: Any) -> str:
    """A job that has reported these values and was paused then."""
    made = who.post(f"/jobs?tag={tag}" if tag else "/jobs", who.job_file(name=name, lora_r=4 + len(name)))
    job = made.json()["id"]
    clock.tick(1)
    if values:
        machine = Machine.launched(api, provider)
        machine.start(nonce=machine.lease)
        assert machine.report(1, metrics=[{"step": 1, "values": values}]).status_code == 200
        machine.say("release", machine.said("release", step=1, reason="deadline"))
    who.post(f"/jobs/{job}:pause")
    return job


def _queries(api: Api) -> Queries:
    app: Any = api.client.app
    return app.state.server.queries


def _walk(api: Api, order: Order, size: int, **wanted) -> list[str]:
    """The names of all pages of this size."""
    queries, cursor, names = _queries(api), None, list[str]()
    for _ in range(20):
        page = queries.jobs(now=0.0, limit=size, before=cursor, order=order, **wanted)
        assert len(page.items) <= size
        names += [row["name"] for row in page.items]
        cursor = page.next
        if cursor is None:
            return names
    raise AssertionError(names)


def test_every_order_shows_each_job_once(api: Api, people: People, provider, clock) -> None:
    """Guards: without the id in the key, jobs with one name were skipped at the end of a page; without `_LARGEST` an
    infinite loss ended the list; with the rank left out, a job without a loss was the best."""
    reported: tuple[tuple[str, dict[str, Any]], ...] = (
        ("b", {"loss": 2.0}),
        ("A", {"loss": 1.0, "eval_loss": 3.0}),
        ("b", {"loss": 2.0}),
        ("c", {}),
        ("d", {"loss": "Infinity"}),
        ("e", {"loss": 5.0, "eval_loss": 2.5}),
        ("b", {"loss": 0.5}),
    )
    for name, values in reported:
        _with_values(api, provider, people.ann, name, clock, **values)
    people.ann.submit(name="waits")
    for size in (1, 2, 3, 50):
        assert _walk(api, Order.SUBMITTED, size) == ["waits", "b", "e", "d", "c", "b", "A", "b"]
        assert _walk(api, Order.NAME, size) == ["A", "b", "b", "b", "c", "d", "e", "waits"]
        assert _walk(api, Order.NAME_DOWN, size) == ["waits", "e", "d", "c", "b", "b", "b", "A"]
        assert _walk(api, Order.LOSS, size)[:5] == ["b", "A", "b", "b", "e"]
        assert _walk(api, Order.LOSS_DOWN, size)[:5] == ["e", "b", "b", "A", "b"]
        assert sorted(_walk(api, Order.LOSS_DOWN, size)[5:]) == sorted(_walk(api, Order.LOSS, size)[5:])
        assert _walk(api, Order.BEST, size)[:5] == ["e", "A", "b", "b", "b"]
        assert _walk(api, Order.STATE, size)[0] == _walk(api, Order.STATE_DOWN, size)[-1] == "waits"
        assert len(_walk(api, Order.STATE, size)) == len(_walk(api, Order.STATE_DOWN, size)) == 8
        assert _walk(api, Order.NAME, size, name="B") == ["b", "b", "b"]
        assert _walk(api, Order.NAME, size, member_id="nobody") == []


def test_a_page_begins_where_the_one_before_ended(api: Api, people: People, provider, clock) -> None:
    """The loss of the first page's last job falls, and a job is added, before the second page is read."""
    jobs = {n: _with_values(api, provider, people.ann, f"run {n}", clock, loss=float(n)) for n in (1, 2, 3, 4)}
    queries = _queries(api)
    first = queries.jobs(now=0.0, limit=2, before=None, order=Order.LOSS)
    assert [row["name"] for row in first.items] == ["run 1", "run 2"]
    people.ann.post(f"/jobs/{jobs[2]}:resume")
    machine = Machine.launched(api, provider)
    machine.start(nonce=machine.lease)
    machine.report(2, metrics=[{"step": 2, "values": {"loss": 0.5}}])
    _with_values(api, provider, people.ann, "new", clock, loss=3.5)
    second = queries.jobs(now=0.0, limit=9, before=first.next, order=Order.LOSS)
    assert [row["name"] for row in second.items] == ["run 3", "new", "run 4"]


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "[]", "7", "{}", '["a"]', '[1, 2, "job"]', '["a", 7]', '[["a"], "job"]', '["a\\u0000", "job"]'),
        *('["\\ud800", "job"]', '[null, "job"]', "[" * 1_000),
    ],
)
def test_a_cursor_that_is_none_is_refused(api: Api, people: People, cursor: str) -> None:
    queries = _queries(api)
    with pytest.raises(InvalidError, match="Begin at the first page"):
        queries.jobs(now=0.0, limit=2, before=cursor, order=Order.NAME)
    for order in (Order.LOSS, Order.BEST, Order.STATE):
        with pytest.raises(InvalidError):
            queries.jobs(now=0.0, limit=2, before='["a", "b", "job"]', order=order)
        for huge in ("1e999", "9" * 400, "NaN", "true"):
            with pytest.raises(InvalidError):
                queries.jobs(now=0.0, limit=2, before=f'[1, {huge}, "job"]', order=order)


def test_the_list_is_ordered_and_its_pages_are_linked(api1: Api, people: People, clock) -> None:
    for number in range(JOBS_PER_PAGE + 2):
        people.ann.submit(name=f"job {number:02}")
        clock.tick(1)
    log_in(api1, people.ann)
    first = api1.client.get("/?sort=name").text
    names = re.findall(r">(job \d\d)</a>", first)
    assert names == [f"job {n:02}" for n in range(JOBS_PER_PAGE)]
    assert 'aria-sort="ascending"' in first
    (more,) = re.findall(r'href="([^"]+)">More jobs', first)
    second = api1.client.get(more.replace("&amp;", "&")).text
    assert re.findall(r">(job \d\d)</a>", second) == [f"job {n:02}" for n in (JOBS_PER_PAGE, JOBS_PER_PAGE + 1)]
    assert "sort=-name" in first
    refused = api1.client.get("/?sort=name&cursor=%5B%5D", headers={"Accept": "text/html"})
    assert refused.status_code == 422
    assert "Begin at the first page." in refused.text
    assert api1.client.get("/?sort=colour").status_code == 422


def test_the_jobs_of_a_tag_are_shown_best_first_with_their_settings(api1: Api, people: People, provider, clock) -> None:
    _with_values(api1, provider, people.ann, "middle", clock, tag="sweep", loss=0.1, eval_loss=2.0)
    _with_values(api1, provider, people.ann, "first", clock, tag="sweep", loss=0.2, eval_loss=1.0)
    _with_values(api1, provider, people.ann, "last one", clock, tag="sweep", loss=0.01)
    _with_values(api1, provider, people.ann, "other", clock)
    log_in(api1, people.ann)
    text = api1.client.get("/?tag=sweep").text
    assert re.findall(r'<th scope="row"[^>]*><a [^>]+>([^<]+)<', text) == ["first", "middle", "last one"]
    assert "<code>lora_r</code>" in text
    assert re.findall(r"<code>(\w+)</code>", text) == ["lora_r"]
    assert re.findall(r'<td [^>]*title="(\d+)"[^>]*>', text) == ["9", "10", "12"]
    (link,) = re.findall(r'href="(/compare[^"]+)">Compare the first 3<', text)
    assert api1.client.get(link.replace("&amp;", "&")).status_code == 200
    assert "<code>lora_r" not in api1.client.get("/").text


def test_a_viewer_chooses_the_columns(api1: Api, people: People) -> None:
    people.ann.submit(name="one")
    log_in(api1, people.ann)
    assert ">Progress</th>" in api1.client.get("/").text
    client = api1.client
    chosen = client.get("/columns?column=state&column=nonsense&back=/%3Fname%3Do", follow_redirects=False)
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/?name=o")
    assert {"httponly", "samesite=strict"} <= set(chosen.headers["set-cookie"].lower().split("; "))
    text = client.get("/").text
    assert ">Progress</th>" not in text
    assert ">State" in text
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/?a b"):
        assert client.get("/columns", params={"back": elsewhere}, follow_redirects=False).status_code == 422


def _act(api: Api, action: str, jobs: list[str], **more: str):
    form = {"action": action, "job": jobs} | more
    return api.client.post("/jobs", data=form, headers=ORIGIN | {"Accept": "text/html"})


def test_ticked_jobs_are_acted_on_one_by_one(api: Api, people: People, provider) -> None:
    """Guards: without `owned_job` in `add_tag` ann tagged bob's job; without the `except` in `_on_one` the first
    refusal kept the rest from it."""
    first, second = (people.ann.submit(name=name)["id"] for name in ("first", "second"))
    bobs = people.bob.submit(name="secret name")["id"]
    log_in(api, people.ann)
    done = _act(api, "pause", [bobs, first, second, first, "job-none"])
    assert done.status_code == 200
    assert "Pause: 2 of 4 jobs" in done.text
    assert done.text.count("It is paused.") == 2
    assert f"There is no job {bobs}." in done.text
    assert "secret name" not in done.text
    assert [people.ann.get(f"/jobs/{job}").json()["state"] for job in (first, second)] == ["paused", "paused"]
    assert people.bob.get(f"/jobs/{bobs}").json()["state"] == "queued"
    people.admin.call("PUT", "/team", json={"everyone_sees_jobs": True})
    for action in ("cancel", "tag"):
        refused = _act(api, action, [bobs, second], tag="t").text
        assert "belongs to bob. Only bob or an admin can do this." in refused
        assert ": 1 of 2 jobs" in refused
    assert people.bob.get(f"/jobs/{bobs}").json()["tags"] == []
    assert people.ann.get(f"/jobs/{second}").json()["tags"] == ["t"]
    assert people.ann.get(f"/jobs/{second}").json()["state"] == "cancelled"
    assert "It is in the queue again." in _act(api, "resume", [first]).text
    assert "cancelled" in _act(api, "pause", [second]).text


@pytest.mark.parametrize(
    ("jobs", "tag", "words"),
    [
        ([], "t", "No job is ticked."),
        ([f"job-{n}" for n in range(MAX_JOBS + 1)], "t", f"At most {MAX_JOBS} jobs at once. These are {MAX_JOBS + 1}."),
    ],
)
def test_some_jobs_are_ticked_and_not_too_many(api1: Api, people: People, jobs, tag: str, words: str) -> None:
    people.ann.submit()
    log_in(api1, people.ann)
    refused = _act(api1, "tag", jobs, tag=tag)
    assert refused.status_code == 422
    assert words in refused.text


def test_a_tag_is_added_to_the_others(api1: Api, people: People) -> None:
    """Guard: without the check in `add_tag` a tag with a space was stored, by which no list could be filtered."""
    job = people.ann.submit()["id"]
    people.ann.call("PUT", f"/jobs/{job}/tags", json={"tags": ["a"]})
    log_in(api1, people.ann)
    assert "It has the tag b." in _act(api1, "tag", [job], tag="b").text
    assert "and no spaces" in _act(api1, "tag", [job], tag="b c").text
    assert people.ann.get(f"/jobs/{job}").json()["tags"] == ["a", "b"]
    people.ann.call("PUT", f"/jobs/{job}/tags", json={"tags": [f"t{n}" for n in range(MAX_TAGS)]})
    assert f"has {MAX_TAGS} tags" in _act(api1, "tag", [job], tag="b").text


def test_a_viewer_of_jobs_acts_on_none(api1: Api, people: People) -> None:
    job = people.ann.submit()["id"]
    people.admin.post("/members", {"name": "vera", "role": "viewer"})
    vera = api1.as_(people.admin.post("/tokens", {"member": "vera"}).json()["secret"])
    log_in(api1, vera)
    assert "Add tag" not in api1.client.get("/").text
    assert _act(api1, "pause", [job]).status_code == 403
    assert people.ann.get(f"/jobs/{job}").json()["state"] == "queued"
    assert json.dumps(people.ann.get(f"/jobs/{job}").json()["tags"]) == "[]"
