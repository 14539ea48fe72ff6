"""`trainhop.Client` against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainhop
from tests.helpers.page_server import PageServer
from tests.http.http_client import ROWS
from tests.trainhop.conftest import TENSORS
from trainhop import polling
from trainhop.download import WEIGHTS

SPEC = {"name": "mine", "base_model": "org/small", "max_steps": 10}


@pytest.fixture
def client(server: PageServer) -> Iterator[trainhop.Client]:
    with trainhop.Client(server.url, token=server.api.admin_token) as found:
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


@pytest.fixture
def job(client: trainhop.Client, rows: Path) -> trainhop.Job:
    return client.jobs.submit(SPEC | {"datasets": [{"path": str(rows)}]})


def test_a_job_is_submitted_from_keys_a_file_and_a_spec(client: trainhop.Client, rows: Path) -> None:
    """Guard: without the folder of the job file the data beside it was not found."""
    keys = SPEC | {"datasets": [{"path": rows.name}]}
    file = rows.with_name("job.yaml")
    file.write_text(json.dumps(keys))
    uploaded = client.datasets.upload(rows)
    spec = trainhop.JobSpec.model_validate(SPEC | {"datasets": [{"path": uploaded.path}]})
    made = [client.jobs.submit(given) for given in (str(file), file, spec, spec.model_dump(mode="json"))]
    assert {(job.name, job.state, job.total_steps, job.ended) for job in made} == {("mine", "queued", 10, False)}
    assert {job.data["spec"]["datasets"][0]["path"] for job in made} == {uploaded.path}
    assert len({job.id for job in made}) == len(made)
    assert (uploaded.rows, uploaded.size) == (32, len(ROWS))


def test_a_file_with_other_names_is_sent_with_them_once(client: trainhop.Client, tmp_path: Path) -> None:
    """Guard: with the names left in the job, the server looked for them in the file that it had made."""
    rows, names = tmp_path / "rows.jsonl", {"field": "body"}
    rows.write_bytes(b'{"body": "t"}\n' * 9)
    (entry,) = client.jobs.submit(SPEC | {"datasets": [{"path": str(rows), **names}]}).data["spec"]["datasets"]
    assert (entry["type"], "field" in entry) == ("text", False)
    assert client.datasets.upload(rows, columns=names).path == entry["path"]


def test_the_prompts_of_its_evaluation_are_sent_too(client: trainhop.Client, rows: Path) -> None:
    """Guard: a local path of prompts reached the server, which has no such file."""
    prompts = rows.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "What?", "completion": "That."}\n' * 3)
    keys = SPEC | {"datasets": [{"path": rows.name}], "evaluate": {"prompts": {"path": prompts.name}}}
    file = rows.with_name("job.yaml")
    file.write_text(json.dumps(keys))
    asked = client.jobs.submit(file).data["spec"]["evaluate"]
    assert (asked["prompts"]["rows"], asked["max_prompts"]) == (3, 100)
    file.write_text(json.dumps(keys | {"evaluate": {"prompts": {"path": "absent.jsonl"}}}))
    with pytest.raises(trainhop.Error, match=r"prompts: absent.jsonl: the file does not exist"):
        client.jobs.submit(file)


def test_the_tasks_of_its_evaluation_are_sent_as_tasks(client: trainhop.Client, rows: Path) -> None:
    """Guard: sent without its type, a file whose prompts are messages was read as rows to train on, and refused."""
    tasks, file = rows.with_name("tasks.jsonl"), rows.with_name("job.yaml")
    task = {"messages": [{"role": "user", "content": "2 + 2?"}], "check": {"type": "number", "value": 4}}
    tasks.write_text(json.dumps(task) + "\n")
    prompts = rows.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "What?", "completion": "That."}\n')
    evaluate = {"prompts": {"path": prompts.name}, "tasks": {"path": tasks.name}}
    file.write_text(json.dumps(SPEC | {"datasets": [{"path": rows.name}], "evaluate": evaluate}))
    asked = client.jobs.submit(file).data["spec"]["evaluate"]
    assert (asked["tasks"]["type"], asked["tasks"]["rows"]) == ("task", 1)
    assert asked["prompts"]["type"] == "prompt_completion"


def test_a_job_is_found_changed_and_listed(client: trainhop.Client, job: trainhop.Job) -> None:
    assert client.jobs.get(job) == client.jobs.get(job.id) == job
    assert client.jobs.pause(job).state == "paused"
    assert client.jobs.resume(job.id).state == "queued"
    assert job.id in {each.id for each in client.jobs.list(state="queued", name="mine")}
    assert client.jobs.cancel(job).state == "cancelled"
    assert client.jobs.wait(job).ended
    assert client.jobs.list(limit=1)[0].id == job.id


def test_a_plan_names_places(client: trainhop.Client, rows: Path) -> None:
    plan = client.plan(SPEC | {"datasets": [{"path": str(rows)}]})
    assert (plan.steps, plan.train_rows) == (10, 32)
    assert [place.provider for place in plan.places] == ["local"]
    assert len(client.jobs.list(name="no such name")) == 0


def test_an_adapter_is_downloaded_whole(client: trainhop.Client, tmp_path: Path) -> None:
    ended = client.jobs.wait("finished")
    assert (ended.name, ended.state) == ("finished", "succeeded")
    assert client.jobs.download_adapter(ended, tmp_path / "adapter") == tmp_path / "adapter"
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == TENSORS
    with pytest.raises(trainhop.Error, match="is not an empty folder"):
        client.jobs.download_adapter(ended, tmp_path / "adapter")


def test_an_error_has_the_words_and_a_reason(client: trainhop.Client, job: trainhop.Job, tmp_path: Path) -> None:
    with pytest.raises(trainhop.Error, match="There is no job 'nothing'") as unknown:
        client.jobs.get("nothing")
    assert unknown.value.reason == "not_found"
    with pytest.raises(trainhop.Error) as refused:
        client.jobs.resume(job)
    assert (refused.value.status, bool(str(refused.value))) == (409, True)
    with pytest.raises(trainhop.Error, match=r"datasets\[0\]\.typ"):
        client.jobs.submit(SPEC | {"datasets": [{"path": "sha256:" + "0" * 64, "typ": "text"}]})
    with pytest.raises(trainhop.Error, match="has no adapter yet"):
        client.jobs.download_adapter(job, tmp_path / "adapter")
    with pytest.raises(trainhop.Error, match="No such file"):
        client.datasets.upload(tmp_path / "rows.jsonl.gone")


def test_a_wrong_token_and_no_server_are_told_apart(server: PageServer, job: trainhop.Job) -> None:
    for url, token, reason in ((server.url, "wrong", "not_allowed"), ("http://127.0.0.1:9", "x", "unreachable")):
        with trainhop.Client(url, token=token) as client, pytest.raises(trainhop.Error) as raised:
            client.jobs.get(job)
        assert raised.value.reason == reason


def test_address_and_token_are_those_of_the_command_line(
    server: PageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: without the data folder a program on the server's computer had to be told both."""
    monkeypatch.delenv("TRAINHOP_SERVER_URL", raising=False)
    monkeypatch.delenv("TRAINHOP_TOKEN", raising=False)
    monkeypatch.setenv("TRAINHOP_DATA_DIR", str(tmp_path))
    with pytest.raises(trainhop.Error, match=f"No server is running in {tmp_path}"):
        trainhop.Client()
    (tmp_path / "server.url").write_text(server.url + "\n")
    (tmp_path / "admin.token").write_text(server.api.admin_token)
    with trainhop.Client() as client:
        client.jobs.list()
    monkeypatch.setenv("TRAINHOP_TOKEN", "wrong")
    with (
        trainhop.Client() as client,
        pytest.raises(trainhop.Error, match="Set TRAINHOP_TOKEN to a token of this server"),
    ):
        client.jobs.list()
    monkeypatch.setenv("TRAINHOP_SERVER_URL", "http://127.0.0.1:9")
    assert trainhop.Client().url == "http://127.0.0.1:9"


class Clock:
    """Time that passes by sleeping."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def timing(self, **more: float) -> polling.Timing:
        return polling.Timing(clock=lambda: self.now, sleep=self.sleep, **more)


def until_final(clock: Clock, *answers: str, **timing: float) -> tuple[list[str], list[str]]:
    """The states that were shown, and the notes."""
    coming, shown, notes = iter(answers), list[str](), list[str]()

    def look() -> dict[str, str]:
        if answer := next(coming):
            return {"state": answer}
        raise trainhop.Error("away", reason="unreachable")

    polling.until_final(look, lambda job: shown.append(job["state"]), notes.append, clock.timing(**timing))
    return shown, notes


def test_waiting_outlasts_a_restart_and_shows_each_look() -> None:
    """Guard: without catching it the first restart of the server ended a program's wait."""
    shown, notes = until_final(Clock(), "queued", "", "", "running", "succeeded")
    assert shown == ["queued", "running", "succeeded"]
    assert len(notes) == 2


def test_waiting_ends_where_the_server_is_gone_or_the_time_is_up() -> None:
    """Guards: without either limit a program waited for ever."""
    clock = Clock()
    with pytest.raises(trainhop.Error, match="away"):
        until_final(clock, *[""] * 50, patience_s=5.0)
    assert clock.now == 6.0
    clock = Clock()
    with pytest.raises(trainhop.Error, match="has not ended within 3 s") as ended:
        until_final(clock, *["running"] * 50, timeout_s=3.0)
    assert (ended.value.reason, clock.now) == ("timeout", 3.0)
