"""`trainhop.Client` against a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainhop
from tests.helpers import start_adapters as small_adapter
from tests.helpers.page_server import PageServer, page_server
from tests.http.http_client import ROWS
from tests.trainhop.conftest import TENSORS
from trainhop import polling, watching
from trainhop.async_client import AsyncClient, AsyncDatasets, AsyncJobs
from trainhop.client import Client, Datasets, Jobs
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


@pytest.fixture
def playing(tmp_path: Path) -> Iterator[PageServer]:
    """A server of its own, on which one job is played."""
    with page_server(tmp_path / "server") as running:
        yield running


def test_a_job_is_watched_through_a_restart_and_a_lost_session(playing: PageServer, tmp_path: Path) -> None:
    """Guards: without the cursors a restart, and the session after a lost one, brought steps a second time."""
    job = playing.api.admin.submit(name="watched")["id"]
    machine = playing.machine()
    machine.save(0, tmp_path)
    machine.report(2, metrics=[{"step": n, "values": {"loss": float(n)}} for n in (1, 2)])
    client = trainhop.Client(playing.url, token=playing.api.admin_token)
    found = list[trainhop.Event | trainhop.Step]()
    watched, pauses = watching.updates(client.connection, job), 0
    for each in watched:
        if each is not None:
            found.append(each)
            continue
        pauses += 1
        if pauses == 1:
            machine.report(3, metrics=[{"step": n, "values": {"loss": float(n)}} for n in (2, 3)])
        elif pauses == 2:
            playing.down()
        elif pauses == 4:
            playing.up()
            machine.api, machine.caller = playing.api, playing.api.as_(machine.caller.token)
            machine.report(4, metrics=[{"step": 3, "values": {"eval_loss": 0.5}}, {"step": 4, "values": {"loss": 4.0}}])
        elif pauses == 5:
            machine.save(10, tmp_path)
            assert machine.finish(10).is_success
        assert pauses < 10
    steps = [(each.step, dict(each.values)) for each in found if isinstance(each, trainhop.Step)]
    assert steps == [
        (1, {"loss": 1.0}),
        (2, {"loss": 2.0}),
        (3, {"loss": 3.0}),
        (3, {"eval_loss": 0.5}),
        (4, {"loss": 4.0}),
    ]
    events = [each for each in found if isinstance(each, trainhop.Event)]
    assert [each.id for each in events] == sorted({each.id for each in events})
    assert client.jobs.get(job).ended
    assert [each.id for each in client.jobs.watch(job) if isinstance(each, trainhop.Event)] == [e.id for e in events]
    curve = client.jobs.curve(job)
    assert [each.step for each in curve.steps] == [1, 2, 3, 4]
    assert curve.steps[2].values == {"loss": 3.0, "eval_loss": 0.5}
    client.close()


def test_a_curve_becomes_a_table_where_pandas_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: pandas is no dependency, and its absence is one sentence."""
    steps = (
        trainhop.Step(step=1, values={"loss": 2.0}),
        trainhop.Step(step=2, values={"loss": None, "eval_loss": 1.5}),
    )
    table = trainhop.Curve(steps=steps).to_dataframe()
    assert (table.index.name, list(table.index), sorted(table.columns)) == ("step", [1, 2], ["eval_loss", "loss"])
    assert (table["loss"][1], table["eval_loss"][2]) == (2.0, 1.5)
    assert table["loss"].isna().tolist() == [False, True]
    assert trainhop.Curve(steps=()).to_dataframe().empty
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(trainhop.Error, match="pandas is not installed"):
        trainhop.Curve(steps=steps).to_dataframe()


def test_sessions_output_and_evaluations_are_read(client: trainhop.Client, server: PageServer) -> None:
    (session,) = client.jobs.sessions("finished")
    assert (session.provider, session.state, session.last_step) == ("local", "released", 10)
    server.provider.logs[session.id] = "loading … done\n".encode() * 5
    first = client.jobs.output(session, limit=24)
    rest = client.jobs.output(session, offset=first.next_offset)
    assert first.text + rest.text == "loading … done\n" * 5
    assert (first.is_end, rest.is_end) == (False, True)
    prompts = client.datasets.upload_rows([{"prompt": "What?", "completion": "That."}] * 3)
    made = client.jobs.evaluate("finished", {"prompts": {"path": prompts.path}}, key="once")
    assert client.jobs.evaluate("finished", {"prompts": {"path": prompts.path}}, key="once").id == made.id
    assert [each["id"] for each in client.jobs.evaluations("finished")] == [made.id]
    client.jobs.cancel(made)


def test_a_key_submits_once(client: trainhop.Client, rows: Path) -> None:
    spec = SPEC | {"datasets": [{"path": str(rows)}]}
    assert client.jobs.submit(spec, key="mine").id == client.jobs.submit(spec, key="mine").id


def test_only_files_of_the_folders_are_sent(server: PageServer, rows: Path, tmp_path: Path) -> None:
    """Guard: without the folders a job file of an agent names any file of this computer."""
    (tmp_path / "allowed").mkdir()
    job = SPEC | {"datasets": [{"path": rows.name}]}
    with trainhop.Client(server.url, token=server.api.admin_token, folders=[tmp_path / "allowed"]) as careful:
        with pytest.raises(trainhop.Error, match=r"rows\.jsonl: the file does not exist"):
            careful.plan(job)
        (tmp_path / "allowed" / rows.name).write_bytes(ROWS)
        assert careful.plan(job).train_rows == 32
        adapter = small_adapter.write(tmp_path / "adapter")
        with pytest.raises(trainhop.Error, match="the folder does not exist"):
            careful.plan(job | {"lora_model_dir": str(adapter)})
        linked = tmp_path / "allowed" / "linked"
        linked.mkdir()
        for file in adapter.iterdir():
            (linked / file.name).symlink_to(file)
        with pytest.raises(trainhop.Error, match=r"it has no adapter_config\.json"):
            careful.plan(job | {"lora_model_dir": "linked"})


def test_everything_can_be_awaited(server: PageServer, rows: Path) -> None:
    """Guard: a method of one client that the other lacks is found here."""
    for plain, threaded in ((Client, AsyncClient), (Jobs, AsyncJobs), (Datasets, AsyncDatasets)):
        assert {name for name in vars(plain) if name[0] != "_"} <= {name for name in dir(threaded) if name[0] != "_"}

    async def follow() -> list[trainhop.Event | trainhop.Step]:
        async with trainhop.AsyncClient(server.url, token=server.api.admin_token) as client:
            assert client.url == server.url
            job = await client.jobs.submit(SPEC | {"datasets": [{"path": str(rows)}]})
            assert (await client.plan({**job.data["spec"]})).steps == 10
            waiting = asyncio.create_task(client.jobs.wait(job))
            await client.jobs.cancel(job)
            assert (await waiting).state == "cancelled"
            with pytest.raises(trainhop.Error, match="There is no job"):
                await client.jobs.get("nothing")
            return [each async for each in client.jobs.watch("finished")]

    found = asyncio.run(follow())
    with trainhop.Client(server.url, token=server.api.admin_token) as client:
        assert found == [*client.jobs.watch("finished")]


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
