"""Evaluations over HTTP: who may start one, what is answered, and the report."""

import hashlib
import json

import numpy as np

from tests.dashboard.test_pages import HTML, log_in
from tests.helpers.judged_answers import SHA256, judged_answers, prefers
from tests.http.http_client import Machine
from tests.services.test_evaluations import answers
from worker.shared import checkpoint_file
from worker.shared.checkpoint_header import ANSWERS
from worker.shared.evaluation_units import Arm
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Hardware, Manifest, Recipe

CHAT = b"".join(
    json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}).encode() + b"\n" for n in range(60)
)


def trained(api, provider, people, folder, **changes):
    """A job of ann's that has succeeded."""
    data = people.ann.upload(CHAT, name="chat.jsonl").json()["sha256"]
    job = people.ann.submit(datasets=[{"path": f"sha256:{data}"}], val_set_size=0.5, **changes)["id"]
    machine = Machine.launched(api, provider)
    machine.start()
    assert machine.save(10, folder).json()["committed"]
    assert machine.finish(10).status_code == 204
    return job


def answered(machine: Machine, folder, content: bytes):
    """Do all units of an evaluation at once, and finish it."""
    spec = JobSpec.model_validate(machine.assignment["spec"])
    manifest = Manifest(
        job=machine.assignment["job"], fence=machine.fence, step=spec.total_steps, parent=machine.head,
        recipe=Recipe.of(spec), epoch=0, index=0, samples_seen=0, wall_seconds=1.0, backend="hf", precision="fp32",
        micro_batch_size=1, hardware=Hardware(), versions={}, state={},
    )  # fmt: skip
    grant = next(g for g in machine.assignment["uploads"] if g["kind"] == "checkpoint")
    path = folder / "evaluated.safetensors"
    sha256, size = checkpoint_file.write(path, {ANSWERS: np.zeros(9, np.uint8)}, manifest)
    assert machine.put(grant, path.read_bytes()).is_success
    offer = machine.said("offer", key=grant["key"], sha256=sha256, size=size, manifest=manifest.model_dump(mode="json"))
    assert machine.say("offer", offer).json() == {"committed": True, "refusal": ""}
    grant = next(g for g in machine.assignment["uploads"] if g["kind"] == "answers")
    assert machine.put(grant, content).is_success
    file = {"key": grant["key"], "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return machine.say("finish", machine.said("finish", step=spec.total_steps, answers=file))


def test_an_evaluation_from_the_request_to_its_report(api, provider, people, tmp_path):
    job = trained(api, provider, people, tmp_path)
    made = people.ann.post(f"/jobs/{job}:evaluate", {"max_prompts": 12}, headers={"Idempotency-Key": "k"})
    assert made.status_code == 201, made.text
    assert made.json()["notes"] == ["There are only 12 prompts. A verdict needs at least 30, and 100 are better."]
    assert (made.json()["cloned_from"], made.json()["total_steps"]) == (job, 2 * 2 + 2 * 4 + 2 + 2 * 4)
    ident = made.json()["id"]
    assert made.headers["location"] == f"/api/v1/jobs/{ident}"
    again = people.ann.post(f"/jobs/{job}:evaluate", {"max_prompts": 12}, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == ident
    (listed,) = people.ann.get(f"/jobs/{job}/evaluations").json()["items"]
    assert listed == listed | {"id": ident, "job": job, "state": "queued", "report": None, "adapter_sha256": "a" * 64}
    machine = Machine.launched(api, provider)
    assert machine.start().json()["origin"]["job"] == job
    refused = answered(machine, tmp_path, b"{}\n")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/answers")
    grants = machine.say("grants", {"fence": machine.fence, "kind": "answers"})
    assert grants.status_code == 200, grants.text
    machine.assignment["uploads"] = grants.json()
    content = answers(12, own_answers=[f"It is {number}." for number in range(12)])
    (grant,) = machine.assignment["uploads"]
    assert machine.put(grant, content).is_success
    file = {"key": grant["key"], "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert machine.say("finish", machine.said("finish", step=12, answers=file)).status_code == 204
    (done,) = people.ann.get(f"/jobs/{ident}/evaluations").json()["items"]
    assert (done["state"], done["answers_sha256"]) == ("succeeded", hashlib.sha256(content).hexdigest())
    assert done["report"]["forgetting"]["harm"] == "none"
    assert done["report"]["truncated"] == {"base": 0.0, "adapter": 0.0}
    assert done["report"]["similarity"]["chrf"]["base"] == 100
    assert [audit["words"] for audit in done["audits"]] == ["not audited"]
    assert people.ann.get(f"/jobs/{ident}").json()["adapter"] is None


def test_a_file_of_tasks_is_uploaded_and_asked(api1, provider, people, tmp_path):
    job = trained(api1, provider, people, tmp_path)
    tasks = b'{"prompt": "Say yes.", "check": {"type": "exact", "answer": "yes"}}\n' * 3
    sent = people.ann.upload(tasks, name="tasks.jsonl", type="task")
    assert (sent.status_code, sent.json()["rows"], sent.json()["type"]) == (201, 3, "task")
    sha256 = sent.json()["sha256"]
    made = people.ann.post(f"/jobs/{job}:evaluate", {"tasks": {"path": f"sha256:{sha256}"}})
    assert made.status_code == 201, made.text
    machine = Machine.launched(api1, provider)
    assert [grant["sha256"] for grant in machine.start().json()["datasets"]][1:] == [sha256]
    bad = b'{"prompt": "Say yes.", "check": {"type": "regex", "pattern": "(?=a)"}}\n'
    worse = people.ann.upload(bad, name="bad.jsonl", type="task").json()["sha256"]
    refused = people.ann.post(f"/jobs/{job}:evaluate", {"tasks": {"path": f"sha256:{worse}"}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/tasks/path")
    assert "line 1: the pattern" in refused.json()["detail"]


def test_a_benchmark_is_asked_by_its_name(api1, provider, people, tmp_path):
    job = trained(api1, provider, people, tmp_path)
    unknown = people.ann.post(f"/jobs/{job}:evaluate", {"benchmarks": ["arc_hard"]})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/benchmarks/0/name")
    assert "there are arc_easy, gsm8k, hellaswag, truthfulqa_mc1" in unknown.json()["errors"][0]["detail"]
    away = people.ann.post(f"/jobs/{job}:evaluate", {"benchmarks": ["gsm8k"]})
    assert (away.status_code, away.json()["errors"][0]["pointer"]) == (422, "/benchmarks/0")
    assert "gsm8k: openai/gsm8k cannot be downloaded" in away.json()["detail"]


def test_a_request_that_cannot_be_evaluated_is_answered_in_a_sentence(api1, provider, people, tmp_path):
    job = trained(api1, provider, people, tmp_path)
    for body, pointer in (
        ({"max_prompts": 0}, "/max_prompts"),
        ({"max_new_tokens": 5_000}, "/max_new_tokens"),
        ({"temperature": 3}, "/temperature"),
        ({"checkpoint": "newest"}, "/checkpoint"),
        ({"tempreture": 1}, "/tempreture"),
        ({"prompts": {"path": "sha256:" + "0" * 64}}, "/prompts/path"),
    ):
        refused = people.ann.post(f"/jobs/{job}:evaluate", body)
        assert refused.status_code == 422, body
        assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]
    assert people.ann.post(f"/jobs/{job}:evaluate", {"checkpoint": "0" * 64}).status_code == 404
    for verb, path in (("post", f"/jobs/{job}:evaluate"), ("get", f"/jobs/{job}/evaluations")):
        assert getattr(people.bob, verb)(path, **({"json": {}} if verb == "post" else {})).status_code == 404
    fresh = people.ann.submit(val_set_size=0.5)["id"]
    assert people.ann.post(f"/jobs/{fresh}:evaluate", {}).status_code == 422  # rows of plain text
    plain = people.ann.post("/jobs", people.ann.job_file(evaluation={}))
    assert (plain.status_code, plain.json()["errors"][0]["pointer"]) == (422, "/evaluation")


def test_who_may_read_a_job_may_read_its_evaluations(api1, provider, people, tmp_path):
    """Guard: one that an admin had started was the admin's, and ann got 404 for a link on the page of her own job."""
    job = trained(api1, provider, people, tmp_path)
    made = people.admin.post(f"/jobs/{job}:evaluate", {}).json()["id"]
    for person in (people.ann, people.admin):
        assert [each["id"] for each in person.get(f"/jobs/{job}/evaluations").json()["items"]] == [made]
        for path in (f"/jobs/{made}", f"/jobs/{made}/events", f"/evaluations/{made}/comparisons"):
            assert person.get(path).status_code == 200, path
    assert made in {each["id"] for each in people.ann.get("/jobs").json()["items"]}
    for path in (f"/jobs/{made}", f"/jobs/{made}/evaluations", f"/evaluations/{made}/comparisons"):
        assert people.bob.get(path).status_code == 404, path
    assert people.ann.get(f"/jobs/{made}").json()["member"] == "ann"


def test_the_key_of_a_job_file_is_checked_and_followed(api1, provider, people, tmp_path):
    data = [{"path": f"sha256:{people.ann.upload(CHAT, name='chat.jsonl').json()['sha256']}"}]
    for asked, pointer in (
        ({"max_prompts": 0}, "/evaluate/max_prompts"),
        ({"max_prompt": 9}, "/evaluate/max_prompt"),
        (True, "/evaluate"),
        ({}, "/evaluate/prompts"),
    ):
        refused = people.ann.post("/jobs", people.ann.job_file(datasets=data, evaluate=asked))
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer), refused.text
    job = trained(api1, provider, people, tmp_path, evaluate={"max_prompts": 12})
    (made,) = people.ann.get(f"/jobs/{job}/evaluations").json()["items"]
    assert (made["state"], made["settings"]["max_prompts"]) == ("queued", 12)


def test_an_uploaded_file_of_prompts_is_asked(api1, provider, people, tmp_path):
    job = trained(api1, provider, people, tmp_path)
    rows = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' * 40
    sha256 = people.ann.upload(rows, name="prompts.jsonl").json()["sha256"]
    made = people.ann.post(f"/jobs/{job}:evaluate", {"prompts": {"path": f"sha256:{sha256}"}})
    assert made.status_code == 201, made.text
    assert made.json()["notes"] == []
    wrong = people.ann.post(f"/jobs/{job}:evaluate", {"accept_findings": ["secrets"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/accept_findings/0")
    machine = Machine.launched(api1, provider)
    assert [grant["sha256"] for grant in machine.start().json()["datasets"]] == [sha256]
    empty = people.ann.upload(b"", name="empty.jsonl")
    assert (empty.status_code, "the file has no rows" in empty.json()["detail"]) == (422, True)


def test_a_judge_model_in_the_session_is_a_judgement(api, provider, people, tmp_path):
    """From the request to what a verdict says, and nothing of it to anybody while people compare."""
    job = trained(api, provider, people, tmp_path)
    refused = people.ann.post(f"/jobs/{job}:evaluate", {"judge": {"model": "../elsewhere"}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/judge/model")
    assert refused.json()["detail"].startswith("The judge model cannot be used: ../elsewhere is a path on the server")
    made = people.ann.post(f"/jobs/{job}:evaluate", {"max_prompts": 30, "judge": "org/judge"})
    assert made.status_code == 201, made.text
    ident = made.json()["id"]
    machine = Machine.launched(api, provider)
    assert machine.start().json()["judge"] == []
    assert answered(machine, tmp_path, judged_answers(30, prefers(Arm.BASE))).status_code == 204
    (found,) = people.ann.get(f"/evaluations/{ident}/judgements").json()["items"]
    name = f"org/judge@{SHA256[:12]}"
    assert (found["model"], found["url"], found["state"]) == (name, "", "done")
    assert (found["advice"], found["requests"], found["answered"], found["used_tokens"]) == (
        "do not promote",
        60,
        60,
        6_000,
    )
    assert people.bob.get(f"/evaluations/{ident}/judgements").status_code == 404
    verdict = people.ann.get(f"/jobs/{job}/verdict").json()
    assert [(each["model"], each["advice"]) for each in verdict["judges"]] == [(name, "do not promote")]
    log_in(api, people.ann)
    pages = [f"/evaluations/{ident}/judge", f"/jobs/{ident}", f"/jobs/{job}"]
    for page in pages:
        text = api.client.get(page, headers=HTML).text
        assert name in text, page
        assert "do not promote" in text, page
    assert "in the evaluation&#39;s session" in api.client.get(pages[0], headers=HTML).text
    assert people.ann.post(f"/evaluations/{ident}/comparisons", {}).status_code == 201
    (found,) = people.ann.get(f"/evaluations/{ident}/judgements").json()["items"]
    assert (found["is_hidden"], found["advice"], found["result"], found["family"]) == (True, None, None, None)
    assert people.ann.get(f"/jobs/{job}/verdict").json()["judges"] == []
    for page in pages:
        assert "do not promote" not in api.client.get(page, headers=HTML).text, page
    told = people.ann.get(f"/jobs/{ident}").text + people.ann.get(f"/jobs/{job}/evaluations").text
    assert "do not promote" not in told
