"""Links to a job's page that need no log-in: what they show, what they never show, and how they end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.entrypoints.dashboard import journey
from orchestrator.ports.providers import Liveness
from orchestrator.services.reconcile import reconcile
from orchestrator.services.shares import MAX_SHARES
from tests.http.http_client import Api, Machine, People
from tests.http.test_evaluations import trained

HTML = {"Accept": "text/html"}
PROMPT = "Where is the train?"
EXACT = "Byte-identical to an unbroken run"


def _session(api: Api, provider: Any, folder: Path, first: int, last: int, *, fidelity: str) -> Machine:
    """A session on a machine with a name of its own, up to a checkpoint at step `last`."""
    machine = Machine.launched(api, provider)
    hardware = {"device": "cuda", "name": "Tesla T4", "count": 2, "hostname": "secret-host"}
    answer = machine.say("start", {"protocol": 1, "nonce": machine.lease, "hardware": hardware})
    assert answer.status_code == 200, answer.text
    machine.assignment = answer.json()
    machine.fence, machine.head = machine.assignment["fence"], (machine.assignment["resume"] or {}).get("sha256")
    for step in (first, last):
        samples = [{"step": step, "prompt": PROMPT, "text": f"answer at {step}"}]
        assert machine.report(step, fidelity=fidelity, samples=samples).status_code == 200
    assert machine.save(last, folder).json()["committed"]
    return machine


def _travelled(api: Api, people: People, provider: Any, folder: Path, *, fidelity: str = "exact") -> dict[str, Any]:
    """Ann's finished job, which moved once from one machine to another."""
    job = people.ann.submit(name="night train", sample_prompts=[PROMPT])
    first = _session(api, provider, folder, 1, 6, fidelity="exact")
    assert first.say("release", first.said("release", step=6, reason="deadline")).status_code == 204
    second = _session(api, provider, folder, 7, 10, fidelity=fidelity)
    assert second.finish(10).status_code == 204
    for machine in (first, second):
        provider.liveness[machine.lease] = Liveness.ENDED
    reconcile(api.app.context)
    return {"id": job["id"], "handed_over": first.head, "head": second.head, "data": job["spec"]["datasets"]}


@pytest.fixture
def shared(api: Api, people: People, provider: Any, tmp_path: Path) -> dict[str, Any]:
    return _travelled(api, people, provider, tmp_path)


def _open(api: Api, url: str) -> Any:
    return api.client.get(url[url.index("/share/") :], headers=HTML)


def _share(people: People, job: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = people.ann.post(f"/jobs/{job['id']}/shares", more)
    assert made.status_code == 201, made.text
    return made.json()


def test_a_link_shows_the_way_and_nothing_private(
    api: Api, people: People, shared: dict[str, Any], tmp_path: Path
) -> None:
    """Guards: with the account's name or `hostname` in `Stop.machine`, and without the look at `with_samples`, that
    word stood on the page."""
    page = _open(api, _share(people, shared)["url"])
    assert page.status_code == 200
    assert page.headers["x-robots-tag"] == "noindex"
    assert "no-store" in page.headers["cache-control"]
    for words in ("night train", EXACT, shared["head"], shared["handed_over"], "a" * 64, "Tesla T4 ×2", "1–6", "7–10"):
        assert words in page.text, words
    assert page.text.count("<polyline") == 2
    ids = [shared["id"], shared["data"][0]["sha256"], people.ann.get("/me").json()["id"]]
    private = ["ann", "this-computer", "secret-host", "/home", "secret", str(tmp_path), PROMPT, "answer at", *ids]
    visible = re.sub(r"<(style|head)>.*?</\1>", "", page.text, flags=re.DOTALL)
    assert [each for each in private if re.search(rf"\b{re.escape(each)}", visible)] == []
    assert "<form" not in page.text
    assert "<script" not in page.text


def test_samples_are_shown_if_they_were_asked_for(api: Api, people: People, shared: dict[str, Any]) -> None:
    page = _open(api, _share(people, shared, samples=True)["url"]).text
    assert PROMPT in page
    assert page.index("answer at 1<") < page.index("answer at 10<")


@pytest.mark.parametrize("way", ["revoked", "expired", "deleted", "removed"])
def test_a_link_ends(api: Api, people: People, shared: dict[str, Any], clock: Any, way: str) -> None:
    """Guards: without `ended` in `open_link` the page of a revoked and of an expired link was shown; without
    `revoke_shares` that of a member who was removed."""
    made = _share(people, shared, days=1)
    assert _open(api, made["url"]).status_code == 200
    if way == "revoked":
        assert people.ann.call("DELETE", f"/jobs/{shared['id']}/shares/{made['id']}").status_code == 204
        words = "This link was revoked."
    elif way == "expired":
        clock.tick(86_401)
        words = "This link has expired."
    elif way == "deleted":
        assert people.ann.call("DELETE", f"/jobs/{shared['id']}").status_code == 204
        words = "The job of this link was deleted."
    else:
        assert people.admin.call("DELETE", "/members/ann").status_code == 204
        words = "This link was revoked."
    ended = _open(api, made["url"])
    assert (ended.status_code, words in ended.text) == (410, True)
    assert "night train" not in ended.text
    unknown = _open(api, made["url"][:-3] + "xyz")
    assert unknown.status_code == 404
    assert "This link does not work." in unknown.text


def test_who_made_a_link_and_when_is_kept_and_its_secret_is_not(
    people: People, shared: dict[str, Any], clock: Any
) -> None:
    path = f"/jobs/{shared['id']}/shares"
    made = _share(people, shared, days=7)
    clock.tick(1)
    by_admin = people.admin.post(path, {}).json()
    people.admin.call("DELETE", f"{path}/{made['id']}")
    listed = people.ann.get(path).json()["items"]
    assert [(each["id"], each["member"], each["ended"]) for each in listed] == [
        (by_admin["id"], "admin", ""),
        (made["id"], "ann", "This link was revoked."),
    ]
    secret = made["url"].rpartition("/")[2]
    assert secret not in people.ann.get(path).text
    assert len(secret) >= 32
    events = people.ann.get(f"/jobs/{shared['id']}/events?limit=1000").json()["items"]
    kept = [(each["kind"], each["actor"]) for each in events if "share" in each["kind"]]
    assert kept == [("job.shared", "ann"), ("job.shared", "admin"), ("job.share_revoked", "admin")]
    for days in (0, 0.5, 3651, "x"):
        assert people.ann.post(path, {"days": days}).status_code == 422
    assert people.ann.call("DELETE", f"{path}/share-none").status_code == 404


def test_links_have_a_maximum(api1: Api, people: People) -> None:
    """Guard: without `MAX_SHARES` a loop filled the database."""
    job = people.ann.submit()
    for _ in range(MAX_SHARES):
        last = _share(people, job)
    refused = people.ann.post(f"/jobs/{job['id']}/shares", {})
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        f"A job has at most {MAX_SHARES} links. Revoke one first.",
    )
    people.ann.call("DELETE", f"/jobs/{job['id']}/shares/{last['id']}")
    _share(people, job)
    assert _open(api1, last["url"]).status_code == 410


def test_an_evaluation_has_no_page_of_its_own(api1: Api, people: People, provider: Any, tmp_path: Path) -> None:
    job = trained(api1, provider, people, tmp_path)
    made = people.ann.post(f"/jobs/{job}:evaluate", {}).json()["id"]
    for answer in (people.ann.post(f"/jobs/{made}/shares", {}), people.ann.get(f"/jobs/{made}/journey")):
        assert (answer.status_code, "Share the job that it evaluates" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/small@0123456789abcdef", "org/small"),
        ("gpt2", "gpt2"),
        ("/home/ann/models/secret", "a model in a local folder"),
        ("~ann/secret", "a model in a local folder"),
        ("C:\\models", "a model in a local folder"),
    ],
)
def test_a_folder_of_the_server_is_not_told(name: str, shown: str) -> None:
    assert journey.public_model(name) == shown


def test_the_file_loads_nothing(people: People, api: Api, shared: dict[str, Any]) -> None:
    """Guard: with the style sheet linked as on the page, the file asked a server for it."""
    file = people.ann.get(f"/jobs/{shared['id']}/journey")
    assert file.headers["content-type"] == "text/html; charset=utf-8"
    assert f"{shared['id']}.html" in file.headers["content-disposition"]
    assert re.findall(r"""(?:src|href)\s*=|url\(|@import|https?:""", file.text) == []
    assert EXACT in file.text
    assert PROMPT not in file.text
    assert PROMPT in people.ann.get(f"/jobs/{shared['id']}/journey?samples=true").text


def test_only_exact_hand_offs_make_the_claim(api1: Api, people: People, provider: Any, tmp_path: Path) -> None:
    """Guard: with `any` in place of `all` in `fidelity_in_words`, it was claimed of a run that was not exact."""
    job = _travelled(api1, people, provider, tmp_path, fidelity="state-exact")
    text = _open(api1, _share(people, job)["url"]).text
    assert EXACT not in text
    assert "1 of 2 sessions were recorded as exact. It is not claimed" in text


_DONE = {"state": "succeeded", "adapter": {"sha256": "a" * 64}, "first_step": 0}


def _went(first: int, last: int, fidelity: str | None) -> dict[str, Any]:
    return {"first_step": first, "last_step": last, "fidelity": fidelity}


@pytest.mark.parametrize(
    ("row", "sessions", "is_exact"),
    [
        (_DONE, [_went(0, 5, "exact"), _went(5, 9, "exact")], True),
        (_DONE, [_went(0, 5, "exact"), _went(5, 5, None), _went(5, 9, "exact")], True),
        (_DONE, [_went(0, 5, "exact"), _went(5, 9, None)], False),
        (_DONE, [_went(0, 5, "state-exact"), _went(5, 9, "exact")], False),
        (_DONE, [_went(0, 9, "exact")], False),
        (_DONE, [], False),
        (_DONE | {"state": "running"}, [_went(0, 5, "exact"), _went(5, 9, "exact")], False),
        (_DONE | {"adapter": None}, [_went(0, 5, "exact"), _went(5, 9, "exact")], False),
        (_DONE | {"first_step": 3}, [_went(3, 5, "exact"), _went(5, 9, "exact")], False),
    ],
)
def test_the_claim_needs_a_record_of_every_session(row: Any, sessions: Any, is_exact: bool) -> None:
    """Guards: each condition of `fidelity_in_words` was left out once, and its case failed here."""
    words, found = journey.fidelity_in_words(row, sessions)
    assert found is is_exact
    assert (EXACT in words) is is_exact
