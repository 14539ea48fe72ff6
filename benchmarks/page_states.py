"""A server whose pages have something to show: a job in each of four states, long names, many rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.trust.sign_test import Outcome
from orchestrator.ports.providers import Liveness
from tests.helpers.evaluations import add_evaluation
from tests.helpers.page_server import PageServer, steps
from tests.http.http_client import Machine
from tests.http.test_models import rated

STEPS = 60
QUOTA_S = 3 * 3600.0
LONG = "a name that somebody has made much longer than any column of a table can be" * 2
WAITING, MEMBERS, LOGINS = 50, 20, 8
READING = {"gpu_percent": 97.0, "gpu_memory_bytes": 11 * 2**30, "cpu_percent": 180.0, "rss_bytes": 2**30}


def four_states(show: PageServer, folder: Path) -> dict[str, str]:
    """The pages of a failed job, a done one, one that runs and one that waits, by the state's word.

    After it the server's only pool has no quota left.
    """
    made: dict[str, str] = {}
    for state, end in (("failed", _fail), ("done", _finish), ("running", _save)):
        job = show.api.admin.submit(name=state, max_steps=STEPS, sample_prompts=["Is there a train?"])
        made[state] = f"/jobs/{job['id']}"
        first = show.machine()
        steps(first, 1, 20, total=STEPS, reading=READING, samples=[_sample(1, "No.")])
        assert first.save(20, folder).json()["committed"]
        assert first.say("release", first.said("release", step=20, reason="deadline")).status_code == 204
        _ended(show, first)
        second = show.machine()
        steps(second, 21, 30, total=STEPS, reading=READING)
        steps(second, 31, 40, total=STEPS, reading=READING | {"cpu_percent": 90.0}, samples=[_sample(40, "At nine.")])
        show.provider.logs[second.lease] = b'step 21\nWarning: x\nTraceback (most recent call last)\n  File "a.py"\n'
        end(show, second, folder)
    no_quota = {"hours_left": 0.0, "hours_total": 30.0, "refresh_at": show.app.context.clock.now() + QUOTA_S}
    show.provider.rooms = replace(show.provider.rooms, **no_quota)
    made["waiting"] = f"/jobs/{show.api.admin.submit(name='waiting')['id']}"
    return made


def _sample(step: int, text: str) -> dict[str, object]:
    return {"step": step, "prompt": "Is there a train?", "text": text}


def _ended(show: PageServer, machine: Machine) -> None:
    show.provider.liveness[machine.lease] = Liveness.ENDED
    show.reconcile()


def _fail(show: PageServer, machine: Machine, _: Path) -> None:
    failure = {"message": "the loss is not a number at step 41", "permanent": True}
    assert machine.say("finish", machine.said("finish", step=40, failure=failure)).status_code == 204
    _ended(show, machine)


def _finish(show: PageServer, machine: Machine, folder: Path) -> None:
    steps(machine, 41, STEPS, total=STEPS)
    assert machine.save(STEPS, folder, base_sha256="b" * 64).json()["committed"]
    assert machine.finish(STEPS).status_code == 204
    _ended(show, machine)


def _save(_: PageServer, machine: Machine, folder: Path) -> None:
    assert machine.save(35, folder).json()["committed"]


def busy_server(show: PageServer, folder: Path) -> dict[str, str]:
    """The paths of all kinds of pages, by a word, with as many rows as a lab has. Jobs, people and files have long
    names."""
    admin = show.api.admin
    made = four_states(show, folder)
    done, running = (made[state].rpartition("/")[2] for state in ("done", "running"))
    for n in range(MEMBERS):
        admin.post("/members", {"name": f"{n} {LONG}"[:100]})
    for _ in range(LOGINS):
        show.client.get(show.link(), headers={"User-Agent": "Mozilla/5.0 (X11; Linux) Firefox/140.0"})
        show.client.cookies.clear()
    for n in range(WAITING):
        job = admin.submit(name=f"{n} {LONG}"[:180], lora_r=8 + n, learning_rate=1e-4 * (1 + n), seed=n)["id"]
        assert admin.call("PUT", f"/jobs/{job}/tags", json={"tags": ["sweep"]}).is_success
    sha256 = admin.upload(b'{"prompt": "a", "completion": "b"}\n' * 40, name=LONG[:100] + ".jsonl").json()["sha256"]
    assert admin.post(f"/datasets/{sha256}/audit", {"seed": 7}).is_success
    rated(show.api, admin, done, [Outcome.TIE] * 20)
    assert admin.post("/models/guide/candidates", {"job": done}).is_success
    evaluation = admin.submit(name="its evaluation")["id"]
    add_evaluation(show.app.context.uow, evaluation, 30, owner=admin.get("/me").json()["id"])
    admin.post("/notifications", {"url": "ntfy://a-topic", "topics": ["failed", "finished"]})
    session = admin.get(f"/jobs/{running}/sessions").json()["items"][-1]["id"]
    share = admin.post(f"/jobs/{done}/shares", {"samples": True}).json()["url"]
    assert admin.post(f"/evaluations/{evaluation}/comparisons", {}).is_success
    others = dict(_others(done, running, session, sha256, evaluation))
    return made | others | {"shared page": share[share.index("/share/") :]}


def rater_link(show: PageServer, evaluation: str, name: str) -> str:
    """A link to the page of a rater. It works in one browser."""
    admin = show.api.admin
    comparison = admin.get(f"/evaluations/{evaluation}/comparisons").json()["items"][0]["id"]
    return admin.post(f"/comparisons/{comparison}/raters", {"name": f"{name} {LONG}"[:90]}).json()["url"]


def _others(done: str, running: str, session: str, sha256: str, evaluation: str) -> Iterator[tuple[str, str]]:
    yield "list", "/"
    yield "list of a state", "/?state=queued"
    yield "jobs of a tag", "/?tag=sweep"
    yield "compare", f"/compare?job={done}&job={running}"
    yield "session", f"/jobs/{running}/sessions/{session}"
    yield "fleet", "/fleet"
    yield "accounts", "/accounts"
    yield "data", "/datasets"
    yield "audit", f"/datasets/{sha256}/audit"
    yield "models", "/models"
    yield "model", "/models/guide"
    yield "notifications", "/notifications"
    yield "people", "/people"
    yield "new job", f"/submit?data={sha256}"
    yield "clone", f"/submit?clone={done}"
    yield "set-up", "/setup"
    yield "evaluation", f"/jobs/{evaluation}"
    yield "comparison", f"/evaluations/{evaluation}/comparisons"
    yield "judge", f"/evaluations/{evaluation}/judge"
    yield "set-up, search", "/setup?search=guide"
    yield "not found", "/nowhere"
