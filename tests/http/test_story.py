"""One job from submit to adapter over HTTP, on two machines, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.domain.jobs import StepTime
from orchestrator.ports.providers import Liveness
from orchestrator.services.reconcile import reconcile
from tests.http.http_client import Machine, People


def test_a_job_rides_two_machines_and_leaves_its_adapter(api, people, provider, clock, tmp_path):
    job = people.ann.submit(sample_prompts=["hello"])
    path = f"/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["member"] == "ann"

    first = Machine.launched(api, provider)
    assert first.start().status_code == 200
    assert first.report(3, seconds_per_step=2.0).json() == {"action": "continue", "reason": ""}
    assert first.save(4, tmp_path).json() == {"committed": True, "refusal": ""}
    first.report(6, samples=[{"step": 6, "prompt": "hello", "text": "wor\0ld"}], reading={"cpu_percent": 5.0})
    running = people.ann.get(path).json()
    assert (running["state"], running["step"], running["head"]["step"]) == ("running", 6, 4)
    assert running["session"]["id"] == first.lease
    assert running["eta_seconds"] == pytest.approx(8.0)
    assert first.say("release", first.said("release", step=6, reason="deadline")).status_code == 204

    clock.tick(60)
    second = Machine.launched(api, provider)
    assert second.start().json()["resume_step"] == 4
    assert second.assignment["resume"]["sha256"] == first.head
    assert second.report(7).status_code == 200
    assert second.save(10, tmp_path).json()["committed"] is True
    assert second.finish(10).status_code == 204

    done = people.ann.get(path).json()
    assert (done["state"], done["end_reason"], done["step"]) == ("succeeded", "completed", 10)
    assert (done["handoffs"], done["steps_repeated"]) == (1, 2)
    assert done["loss"] == {"first": pytest.approx(0.25), "last": pytest.approx(0.125)}
    assert done["session"] is None

    sessions = people.ann.get(f"{path}/sessions").json()["items"]
    assert [(s["outcome"], s["first_step"], s["last_step"]) for s in sessions] == [
        ("handed_off", 0, 6),
        ("completed", 4, 10),
    ]
    kept = people.ann.get(f"{path}/checkpoints").json()["items"]
    assert [(c["step"], c["state"], c["session"]) for c in kept] == [
        (4, "committed", first.lease),
        (10, "committed", second.lease),
    ]
    one = f"{path}/checkpoints/{second.head}"
    assert people.ann.get(one).json()["manifest"]["parent"] == first.head
    file = people.ann.get(f"{one}/file")
    assert int(file.headers["content-length"]) == len(file.content) == kept[1]["size"]
    assert f"{job['id']}-step-10.safetensors" in file.headers["content-disposition"]
    assert people.ann.get(f"{path}/adapter").content == b"PK the adapter"

    metrics = people.ann.get(f"{path}/metrics", params={"name": "loss"}).json()["items"]
    assert [m["step"] for m in metrics] == [3, 6, 7]
    text = people.ann.get(f"{path}/metrics", params={"from_step": 6, "format": "csv"})
    assert text.headers["content-type"].startswith("text/csv")
    assert text.text.splitlines()[0] == "name,step,value"
    assert len(text.text.splitlines()) == 3
    assert people.ann.get(f"{path}/samples").json()["items"][0]["text"] == "wor\ufffdld"
    assert people.ann.get(f"/sessions/{first.lease}/readings").json()["items"][0]["reading"] == {"cpu_percent": 5.0}
    kinds = [e["kind"] for e in people.ann.get(f"{path}/events").json()["items"]]
    assert kinds[0] == "job.submitted"
    assert kinds[-1] == "job.succeeded"


def test_a_stale_fence_is_refused_everywhere_and_changes_nothing(api, people, provider, clock, tmp_path):
    """Guard: with `held` not comparing lease states, the late report was answered 200."""
    people.ann.submit()
    old = Machine.launched(api, provider)
    old.start()
    assert old.save(2, tmp_path).json()["committed"]
    provider.liveness[old.lease] = Liveness.ENDED
    reconcile(api.app.context)
    clock.tick(400)
    new = Machine.launched(api, provider)
    new.start()
    assert new.fence == old.fence + 1
    answers = [
        old.report(5),
        old.say("start", {"protocol": 1, "nonce": "n1", "hardware": {}}),
        old.say("release", old.said("release", step=5, reason="deadline")),
        old.say("finish", old.said("finish", step=5, failure={"message": "x", "permanent": True})),
        old.say("grants", {"fence": old.fence, "kind": "checkpoint", "count": 1}),
        old.save(5, tmp_path),
        new.say("report", new.said("report", step=5, phase="train") | {"fence": old.fence}),
    ]
    assert [a.status_code for a in answers] == [409] * 7
    assert all(a.json()["type"] == "urn:trainhop:problem:stale-fence" for a in answers)
    assert new.report(3).status_code == 200


def test_what_a_person_asks_reaches_the_machine(api, people, provider):
    job = people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    asked = people.ann.post(f"/jobs/{job['id']}:pause").json()
    assert asked["requests"] == {"cancel": False, "pause": True}
    assert machine.report(1).json() == {"action": "drain", "reason": "paused"}
    people.ann.post(f"/jobs/{job['id']}:resume")
    assert machine.report(2).json()["action"] == "continue"
    people.ann.post(f"/jobs/{job['id']}:cancel")
    assert machine.report(3).json() == {"action": "abort", "reason": "cancelled"}
    machine.say("release", machine.said("release", step=3, reason="cancelled"))
    ended = people.ann.get(f"/jobs/{job['id']}").json()
    assert (ended["state"], ended["message"]) == ("cancelled", "cancelled on request")
    assert people.ann.post(f"/jobs/{job['id']}:retry").json()["state"] == "queued"


def test_reports_that_arrive_together_fail_apart(api, people, provider):
    """Guards: without the single pass in `Clerk._together` good reports failed; without the OverflowError handler,
    500."""
    machines = []
    for _ in range(3):
        people.ann.submit()
        machines.append(Machine.launched(api, provider))
        machines[-1].start()
    with ThreadPoolExecutor(12) as pool:
        good = [pool.submit(machines[n % 3].report, n) for n in range(30)]
        unstorable = {"lease": machines[0].lease, "fence": 1, "step": 2**80, "phase": "train"}
        bad = [pool.submit(machines[0].say, "report", unstorable | {"seq": 10_000 + n}) for n in range(5)]
        stale = [
            pool.submit(machines[1].say, "report", machines[1].said("report", step=1, phase="train") | {"fence": 9})
        ]
    assert {f.result().status_code for f in good} == {200}
    assert {f.result().status_code for f in bad} == {422}
    assert {f.result().status_code for f in stale} == {409}


def test_a_step_is_timed_for_the_kind_of_machine_that_did_it(api, people, provider, clock, tmp_path):
    """Removed: `on_gpu` in either of `first_step_time` and `_commit`; a CPU was then expected to keep the pace of a
    GPU."""
    job = people.ann.submit()

    def step_time() -> StepTime:
        with api.app.context.uow() as tx:
            return tx.jobs.get(job["id"]).step_time

    first = Machine.launched(api, provider)
    first.start(device="cuda")
    first.report(3, seconds_per_step=2.0)
    assert step_time() == StepTime(gpu_s=2.0)
    first.report(4, seconds_per_step=3.0)
    first.save(4, tmp_path)
    assert step_time() == StepTime(gpu_s=3.0)
    first.say("release", first.said("release", step=4, reason="deadline"))
    clock.tick(60)
    second = Machine.launched(api, provider)
    second.start()
    second.report(5, seconds_per_step=40.0)
    assert step_time() == StepTime(gpu_s=3.0, host_s=40.0)


def test_a_deadline_that_cannot_be_met_is_said_at_the_first_timed_step(api1, provider, clock):
    """After three steps and once, not after the deadline; a later plan of such a job knows it before it is queued.

    Guard: without `first_step_time` nothing is said, and the plan has no step time until a checkpoint is committed.
    """
    people = People.of(api1)
    due = clock.now() + 100.0
    job = people.ann.submit(deadline=due)
    machine = Machine.launched(api1, provider)
    machine.start()
    machine.report(1)
    machine.report(3, seconds_per_step=60.0, ledger={"boot": 5.0, "load": 20.0})
    machine.report(4, seconds_per_step=61.0)
    events = people.ann.get(f"/jobs/{job['id']}/events").json()["items"]
    (warning,) = [event for event in events if event["kind"] == "job.deadline_at_risk"]
    assert warning["reason"] == "at 60.00 s per step the job ends 5 min after its deadline"
    plan = people.ann.post("/jobs:plan", people.ann.job_file(deadline=due)).json()
    assert [place["step_s"] for place in plan["places"]] == [60.0]
    assert plan["late_s"] > 400.0
    longer = people.ann.job_file(deadline=due + 5_000.0)
    assert people.ann.post("/jobs:plan", longer).json()["late_s"] is None
    provider.rooms = replace(provider.rooms, hours_left=0.05, hours_total=30.0, refresh_at=due + 86_400.0)
    assert people.ann.post("/jobs:plan", longer).json()["late_s"] > 80_000.0, "the quota, too, takes its time"
