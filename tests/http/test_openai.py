"""OpenAI's own client against our server: files, jobs, events, checkpoints, and its classes of errors."""

import json
from types import SimpleNamespace

import openai
import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES
from orchestrator.entrypoints.http.problems import problem
from orchestrator.entrypoints.openai.errors import OpenAIErrors
from tests.http.http_client import Machine, served
from tests.http.test_evaluations import trained

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]}
PAIR = {
    "input": {"messages": [{"role": "user", "content": "q"}]},
    "preferred_output": [{"role": "assistant", "content": "good"}],
    "non_preferred_output": [{"role": "assistant", "content": "bad"}],
}


def rows(record, count=16):
    return b"".join(json.dumps(record).encode() + b"\n" for _ in range(count))


def client_of(user):
    """OpenAI's client over the test's own one."""
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key=user.token, http_client=user.api.client, max_retries=0)


@pytest.fixture
def ann(api1, people):
    return client_of(people.ann)


@pytest.fixture
def bob(people):
    return client_of(people.bob)


def upload(client, record=CHAT, name="rows.jsonl"):
    return client.files.create(file=(name, rows(record)), purpose="fine-tune")


def create(client, record=CHAT, **keys):
    return client.fine_tuning.jobs.create(model="org/small", training_file=upload(client, record).id, **keys)


def test_files_are_kept_listed_and_deleted(ann, clock):
    made = []
    for n in range(3):
        clock.tick(1)  # ids tell the order of what is not of one moment
        made.append(upload(ann, CHAT | {"id": str(n)}, f"{n}.jsonl"))
    assert (made[0].object, made[0].purpose, made[0].filename) == ("file", "fine-tune", "0.jsonl")
    assert made[0].bytes == len(ann.files.content(made[0].id).read())
    assert upload(ann, CHAT | {"id": "0"}).id == made[0].id
    ids = [file.id for file in made]
    assert [file.id for file in ann.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in ann.files.list(limit=2, order="asc", purpose="fine-tune")] == ids
    assert ann.files.list(limit=2).has_more is True
    gone = ann.files.delete(ids[1])
    assert (gone.id, gone.deleted) == (ids[1], True)
    assert [file.id for file in ann.files.list()] == [ids[2], ids[0]]
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        ann.files.retrieve(ids[1])


def test_a_file_may_be_larger_than_other_requests(ann):
    """Guard: without `/v1/files` among the uploads, the limit was that of JSON."""
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a " * 50_000}]}
    data = rows(record, 12)
    assert len(data) > MAX_JSON_BYTES
    assert ann.files.create(file=("large.jsonl", data), purpose="fine-tune").bytes == len(data)


def test_an_id_of_a_file_opens_nothing_to_others(ann, bob):
    """Guard: with `dataset_by_id` left out, Bob read Ann's rows by their hash."""
    file = upload(ann)
    for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)
    with pytest.raises(openai.BadRequestError, match="Upload the file first") as told:
        bob.fine_tuning.jobs.create(model="org/small", training_file=file.id)
    assert told.value.param == "training_file"
    assert list(bob.files.list()) == []
    job = create(ann)
    with pytest.raises(openai.NotFoundError):
        bob.files.content(f"file-{job.id}-metrics")


def test_a_file_that_a_job_needs_is_not_deleted(ann):
    job = create(ann)
    with pytest.raises(openai.ConflictError, match="uses this file") as told:
        ann.files.delete(job.training_file)
    assert told.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        ({"purpose": "assistants"}, "purpose", "must be fine-tune"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after", "has no counterpart"),
        ({"file": ("rows.txt", b"x")}, "name", "unknown file type"),
        ({"file": ("rows.jsonl", b'{"messages": [{"role": "user"}]}\n')}, None, "line 1: each turn"),
    ],
)
def test_a_file_that_is_not_kept_is_refused_by_name(ann, sent, param, words):
    with pytest.raises(openai.BadRequestError, match=words) as told:
        ann.files.create(**({"file": ("rows.jsonl", rows(CHAT)), "purpose": "fine-tune"} | sent))
    assert told.value.param == param


def test_a_job_has_what_was_asked_for(ann, people):
    hyperparameters = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}
    job = create(
        ann,
        suffix="guide",
        seed=7,
        metadata={"team": "maps", "run:x": "a: b", "empty": ""},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={"trainhop": {"lora_r": 4, "val_set_size": 0.25}},
    )
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", "org/small", 7)
    assert job.hyperparameters.model_dump() == hyperparameters
    assert job.metadata == {"team": "maps", "run:x": "a: b", "empty": ""}
    assert (job.fine_tuned_model, job.finished_at, job.result_files, job.error) == (None, None, [], None)
    ours = people.ann.get(f"/jobs/{job.id}").json()
    spec = ours["spec"]
    assert (ours["name"], ours["note"], ours["total_steps"]) == ("guide", "team: maps\nrun:x: a: b\nempty: ", 9)
    assert (spec["learning_rate"], spec["lora_r"], spec["global_batch_size"]) == (1e-4, 4, 4)
    assert f"file-{spec['datasets'][0]['sha256']}" == job.training_file


def test_a_job_with_a_key_is_created_once(ann):
    """Guard: without the key in `create`, a request that was sent again queued a second job."""
    once = {"extra_headers": {"Idempotency-Key": "k"}}
    assert create(ann, **once).id == create(ann, **once).id
    with pytest.raises(openai.ConflictError, match="was used for another request"):
        create(ann, metadata={"a": "b"}, **once)


def test_auto_is_our_default(ann, people):
    old = create(ann, hyperparameters=dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto"))
    assert old.hyperparameters.model_dump() == {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert people.ann.get(f"/jobs/{old.id}").json()["name"] == "untitled"
    assert (create(ann).hyperparameters, old.metadata) == (old.hyperparameters, None)
    assert create(ann, extra_body={"trainhop": {"max_steps": 10}}).hyperparameters.n_epochs == 5


def test_preferences_are_trained_with_their_beta(ann, people):
    job = create(ann, PAIR, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}})
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.3)
    spec = people.ann.get(f"/jobs/{job.id}").json()["spec"]
    assert (spec["rl"], spec["rl_beta"], spec["datasets"][0]["type"]) == ("dpo", 0.3, "preference")


@pytest.mark.parametrize(
    ("keys", "param", "words"),
    [
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "has no counterpart"),
        ({"validation_file": "file-x"}, "validation_file", "val_set_size"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type", "has no counterpart"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}},
            "method.supervised.hyperparameters.beta",
            "beta",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "n_epochs"),
        ({"hyperparameters": {"compute_multiplier": 2}}, "hyperparameters.compute_multiplier", "compute_multiplier"),
        (
            {"hyperparameters": {}, "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}},
            "hyperparameters",
            "are given in method",
        ),
        ({"metadata": {"a": "x" * 300, "b": "y" * 300}}, "metadata", "at most 500 characters"),
        ({"metadata": {"a": "two\nlines"}}, "metadata.a", "one line"),
        ({"extra_body": {"reasoning": 1}}, "reasoning", "reasoning"),
        ({"extra_body": {"trainhop": {"lora_rank": 4}}}, "trainhop.lora_rank", "lora_r"),
        ({"extra_body": {"trainhop": {"base_model": "x"}}}, "trainhop.base_model", "give it as model"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "settings of supervised"),
        ({"seed": -1}, "seed", "seed"),
        ({"method": {"type": "dpo"}}, "training_file", "another method"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 50_001}},
            "hyperparameters.learning_rate_multiplier",
            "50000",
        ),
        ({"training_file": "file-x"}, "training_file", "There is no file file-x"),
        ({"model": " "}, "model", "model"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(ann, keys, param, words):
    """Guard: with `extra` of the request models left at `ignore`, unknown keys were dropped."""
    file = upload(ann).id
    with pytest.raises(openai.BadRequestError, match=words) as told:
        ann.fine_tuning.jobs.create(**({"model": "org/small", "training_file": file} | keys))
    assert told.value.param == param
    assert told.value.type == "invalid_request_error"


def test_lists_refuse_filters_that_do_not_filter(ann):
    """Guard: with plain query parameters, a filter by metadata was ignored."""
    with pytest.raises(openai.BadRequestError) as told:
        ann.fine_tuning.jobs.list(metadata={"team": "maps"})
    assert told.value.param == "metadata[team]"
    with pytest.raises(openai.BadRequestError):
        ann.files.list(purpose="batch")
    for listed in (ann.files.list, ann.fine_tuning.jobs.list):
        with pytest.raises(openai.NotFoundError):
            listed(after="unknown")


def test_jobs_are_paged_newest_first(api, people, provider, clock, tmp_path):
    """Guard: without `trains`, the evaluation of a job was listed as a fine-tuning job."""
    ann, bob = client_of(people.ann), client_of(people.bob)
    made = []
    for _ in range(5):
        clock.tick(1)
        made.append(create(ann).id)
    assert [job.id for job in ann.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert list(bob.fine_tuning.jobs.list()) == []
    for job in made:
        ann.fine_tuning.jobs.cancel(job)
    clock.tick(1)
    first = trained(api, provider, people, tmp_path)
    clock.tick(1)
    evaluation = people.ann.post(f"/jobs/{first}:evaluate", {"max_prompts": 12}).json()["id"]
    assert [job.id for job in ann.fine_tuning.jobs.list(limit=2)] == [first, *made[::-1]]
    assert len(list(ann.fine_tuning.jobs.checkpoints.list(first, limit=1))) == 1
    assert len(list(ann.files.list(limit=1))) == 3
    assert len(list(ann.fine_tuning.jobs.list_events(first, limit=1))) > 3
    for ask in (ann.fine_tuning.jobs.retrieve, ann.fine_tuning.jobs.cancel):
        with pytest.raises(openai.NotFoundError, match="no fine-tuning job"):
            ask(evaluation)


def test_a_job_is_followed_to_its_adapter(api1, ann, people, provider, clock, tmp_path):
    job = create(ann, extra_body={"trainhop": {"max_steps": 10, "checkpoint": {"keep": 3}}})
    first = Machine.launched(api1, provider)
    assert ann.fine_tuning.jobs.retrieve(job.id).status == "queued"
    first.start()
    values = [{"step": n, "values": {"loss": 1 / n, "eval_loss": 2 / n, "tokens": 100.0}} for n in range(1, 5)]
    first.report(4, metrics=values, seconds_per_step=2.0)
    first.save(2, tmp_path)
    first.save(4, tmp_path)
    now = ann.fine_tuning.jobs.retrieve(job.id)
    assert (now.status, now.estimated_finish, now.trained_tokens) == ("running", int(clock.now() + 12), None)
    kept = list(ann.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [(c.step_number, c.metrics.train_loss, c.metrics.full_valid_loss) for c in kept] == [
        (4, 0.25, 0.5),
        (2, 0.5, 1.0),
    ]
    assert kept[0].fine_tuned_model_checkpoint == f"{job.id}:ckpt-step-4"
    first.report(10, metrics=[{"step": 10, "values": {"tokens": 100.0}}])
    first.save(10, tmp_path)
    clock.tick(5)
    assert first.finish(10).status_code == 204
    clock.tick(5)
    people.ann.call("PUT", f"/jobs/{job.id}/note", json={"note": "plain words"})
    done = ann.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", job.id, 500)
    assert (done.finished_at, done.metadata) == (int(clock.now() - 5), {"note": "plain words"})
    metrics, adapter = done.result_files
    assert ann.files.content(metrics).text.splitlines()[0] == "name,step,value"
    assert ann.files.content(adapter).read() == b"PK the adapter"
    assert [ann.files.retrieve(i).purpose for i in done.result_files] == ["fine-tune-results"] * 2
    with pytest.raises(openai.PermissionDeniedError, match="deleted with the job"):
        ann.files.delete(adapter)
    events = list(ann.fine_tuning.jobs.list_events(job.id, limit=2))
    said = [event.message for event in events]
    assert said[0] == "Job succeeded: all steps completed"
    assert said[-1].startswith("Job submitted")
    assert "Checkpoint committed at step 4" in said
    assert (
        len(said)
        == len({event.id for event in events})
        == len(people.ann.get(f"/jobs/{job.id}/events").json()["items"])
    )


def test_a_job_is_paused_resumed_cancelled(api1, ann, people, provider):
    job = create(ann).id
    assert ann.fine_tuning.jobs.pause(job).status == "paused"
    assert ann.fine_tuning.jobs.resume(job).status == "queued"
    assert ann.fine_tuning.jobs.cancel(job).status == "cancelled"
    assert ann.fine_tuning.jobs.cancel(job).finished_at is not None
    for ask in (ann.fine_tuning.jobs.pause, ann.fine_tuning.jobs.resume):
        with pytest.raises(openai.ConflictError, match="is cancelled") as told:
            ask(job)
        assert told.value.code == "conflict"


def test_a_failed_job_says_why(api1, ann, people, provider):
    job = create(ann)
    machine = Machine.launched(api1, provider)
    machine.start()
    with api1.app.context.uow() as tx:
        found = tx.jobs.get(job.id)
        lease = tx.leases.live_of_job(job.id)
        found.fail("no row fits", at=1.0, actor="worker", lease_id=lease.id)
        tx.jobs.save(found)
    failed = ann.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "failed", "no row fits")
    newest = ann.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (newest.level, newest.message) == ("error", "Job failed: no row fits")


def test_colleagues_and_viewers_are_refused_in_the_clients_classes(api1, people, ann, bob):
    job = create(ann).id
    with pytest.raises(openai.NotFoundError):
        bob.fine_tuning.jobs.retrieve(job)
    people.admin.call("PUT", "/team", json={"everyone_sees_jobs": True})
    assert bob.fine_tuning.jobs.retrieve(job).organization_id == "ann"
    with pytest.raises(openai.PermissionDeniedError, match="belongs to ann"):
        bob.fine_tuning.jobs.cancel(job)
    assert bob.files.content(f"file-{job}-metrics").text == "name,step,value\r\n"
    with pytest.raises(openai.PermissionDeniedError, match="belongs to ann"):
        bob.files.content(f"file-{job}-adapter")
    people.admin.post("/members", {"name": "vera", "role": "viewer"})
    vera = client_of(api1.as_(people.admin.post("/tokens", {"member": "vera"}).json()["secret"]))
    assert vera.fine_tuning.jobs.retrieve(job).id == job
    with pytest.raises(openai.PermissionDeniedError, match="Your role is viewer"):
        upload(vera)


def test_a_stranger_is_told_so_before_the_file_is_read(api1, people):
    stranger = client_of(SimpleNamespace(token="th_wrong", api=api1))
    with pytest.raises(openai.AuthenticationError) as told:
        upload(stranger)
    assert told.value.code == "invalid_api_key"
    assert told.value.response.headers["www-authenticate"] == "Bearer"


def test_errors_outside_the_endpoints_have_the_form_too(api1, ann):
    """Guard: with the errors of endpoints alone rewritten, these were problem documents."""
    with pytest.raises(openai.NotFoundError) as told:
        ann.models.list()
    assert told.value.body == {
        "message": "Not Found",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    with pytest.raises(openai.APIStatusError) as large:
        create(ann, metadata={"a": "x" * MAX_JSON_BYTES})
    assert (large.value.status_code, large.value.type) == (413, "invalid_request_error")
    other = api1.client.get("/v1/files", headers={"Host": "elsewhere.example", "Accept": "text/html"})
    assert (other.status_code, other.json()["error"]["code"]) == (421, "misdirected_request")
    assert api1.client.get("/v1/files", headers={"Accept": "text/html"}).json()["error"]["code"] == "invalid_api_key"
    head = api1.client.head("/v1/files")
    assert (head.status_code, head.content) == (401, b"")


def test_too_many_requests_have_a_class_too():
    """Nothing here asks members to slow down yet. A proxy or a later limit answers in the same way."""

    async def busy(scope, receive, send):
        await problem(429, "Slow down.", headers={"Retry-After": "7"})(scope, receive, send)

    http = TestClient(OpenAIErrors(busy), base_url="http://127.0.0.1")
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=http, max_retries=0)
    with pytest.raises(openai.RateLimitError) as told:
        client.files.list()
    assert (told.value.type, told.value.response.headers["retry-after"]) == ("rate_limit_error", "7")


def test_a_real_socket_serves_the_client(app):
    """With its own transport, its own multipart, and its retries."""
    with served(app) as api, openai.OpenAI(base_url=f"{api.client.base_url}/v1", api_key=api.admin_token) as client:
        job = create(client)
        assert [listed.id for listed in client.fine_tuning.jobs.list()] == [job.id]
        with pytest.raises(openai.ConflictError):
            client.fine_tuning.jobs.resume(job.id)
