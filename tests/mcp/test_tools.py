"""Every tool, called with the official client against a real server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.entrypoints.mcp import tools
from orchestrator.entrypoints.mcp.server import make_server
from orchestrator.entrypoints.mcp.tools import ANNOTATIONS, Connect
from tests.helpers.page_server import PageServer
from tests.http.http_client import ROWS, People
from tests.mcp.conftest import Agent, listed

JOB = {"name": "by an agent", "base_model": "org/small", "max_steps": 10}
INLINE = [{"prompt": f"Where is {n}?", "completion": "There."} for n in range(8)]
YAML = "name: by an agent\nbase_model: org/small\nmax_steps: 10\n"
HINTS = "read_only_hint", "destructive_hint", "idempotent_hint"


def no_client(_: object) -> None:
    raise AssertionError


UNUSED: Connect = no_client  # pyright: ignore[reportAssignmentType]  nothing is called


def test_the_tools_describe_themselves() -> None:
    """An agent sees types, limits, and what a tool does to the world."""
    found = {tool.name: tool for tool in listed(make_server(UNUSED))}
    assert set(found) == set(ANNOTATIONS)
    assert len(found) == 10
    for tool in found.values():
        assert tool.description
        assert len(tool.description) < 120
        assert tool.output_schema
        assert tool.input_schema["additionalProperties"] is False
        assert tool.annotations
        assert all(getattr(tool.annotations, hint) is not None for hint in HINTS[: 1 + 2 * (not is_reading(tool))])
    assert {name for name, tool in found.items() if is_reading(tool)} == {"list", "show", "logs", "explain_waiting"}
    assert {n for n, t in found.items() if t.annotations and t.annotations.destructive_hint} == {"cancel"}


def is_reading(tool) -> bool:
    return tool.annotations.read_only_hint


def test_read_only_leaves_out_what_changes_something(agent: Agent) -> None:
    """Guards: a tool without the filter; rows, which a plan would upload."""
    found = listed(make_server(UNUSED, read_only=True))
    assert {tool.name for tool in found} == {"plan", "list", "show", "logs", "explain_waiting"}
    assert all(map(is_reading, found))
    reader = replace(agent, read_only=True)
    assert reader.refused("cancel", job="finished") == "There is no tool 'cancel'."
    assert "read-only" in reader.refused("plan", job=JOB, rows=INLINE)
    assert reader("list", name="finished")["jobs"][0]["state"] == "succeeded"


def test_a_job_is_planned_submitted_once_and_followed(agent: Agent) -> None:
    """Guard: without the key each repeat of a call queued another job."""
    planned = agent("plan", job=JOB, rows=INLINE)
    assert (planned["steps"], planned["train_rows"]) == (10, 8)
    assert [place["provider"] for place in planned["places"]] == ["local"]
    first, again = (agent("submit", job=form, rows=INLINE, key="one") for form in (JOB, YAML))
    assert first["id"] == again["id"]
    assert agent("submit", job=JOB, rows=INLINE, key="two")["id"] != first["id"]
    shown = agent("show", job=first["id"])
    assert (shown["state"], shown["sessions"], shown["spec"]["max_steps"]) == ("queued", [], 10)
    waiting = agent("explain_waiting", job=first["id"])
    assert waiting["waits"]
    assert waiting["reason"]
    assert agent("pause", job=first["id"])["state"] == "paused"
    assert agent("explain_waiting", job=first["id"])["state"] == "paused"
    assert agent("resume", job=first["id"])["state"] == "queued"
    assert first["id"] in {job["id"] for job in agent("list", state="queued", limit=5)["jobs"]}
    assert agent("cancel", job=first["id"])["state"] == "cancelled"
    assert agent("explain_waiting", job=first["id"]) == {
        "state": "cancelled",
        "waits": False,
        "reason": "",
        "until": None,
    }


def test_rows_are_read_as_the_dataset_says(agent: Agent) -> None:
    job = JOB | {"datasets": [{"path": "rows", "type": "text", "field": "body", "repeats": 2}]}
    made = agent("submit", job=job, rows=[{"body": "t"}] * 9, key="columns")
    (entry,) = agent("show", job=made["id"])["spec"]["datasets"]
    assert entry["path"].startswith("sha256:")
    assert (entry["type"], entry["repeats"]) == ("text", 2)


def test_an_evaluation_is_queued_once_and_shown(agent: Agent, server: PageServer) -> None:
    prompts = server.api.admin.upload(b'{"prompt": "What?", "completion": "That."}\n' * 3).json()["sha256"]
    asked = {"job": "finished", "prompts": f"sha256:{prompts}", "max_prompts": 3, "key": "evaluation"}
    made = agent("evaluate", **asked)
    assert agent("evaluate", **asked)["id"] == made["id"]
    assert [each["id"] for each in agent("show", job="finished")["evaluations"]] == [made["id"]]
    assert agent("cancel", job=made["id"])["state"] == "cancelled"


def test_a_log_is_an_excerpt(agent: Agent, server: PageServer) -> None:
    """Guard: without a limit the output of days would be one answer."""
    (session,) = (each["id"] for each in agent("show", job="finished")["sessions"])
    text = "".join(f"line {n}\n" for n in range(400_000))
    server.provider.logs[session] = text.encode()
    end = agent("logs", job="finished", max_bytes=64)
    assert (end["text"], end["is_end"]) == (text[-64:], True)
    assert end["next_offset"] == len(text)
    begin = agent("logs", job="finished", session=session, offset=0, max_bytes=64)
    assert (begin["text"], begin["next_offset"], begin["is_end"]) == (text[:64], 64, False)
    assert "max_bytes" in agent.refused("logs", job="finished", max_bytes=1 << 30)
    assert "no session lease-x" in agent.refused("logs", job="finished", session="lease-x")
    job = agent("submit", job=JOB, rows=INLINE, key="without a session")["id"]
    assert agent.refused("logs", job=job) == "The job has no session yet."


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("submit", {"job": JOB, "rows": INLINE}, "key: Field required"),
        ("submit", {"job": 3, "key": "k"}, "job.str"),
        ("submit", {"job": "a: [", "key": "k"}, "job:1:5: expected the node content"),
        ("submit", {"job": "- a\n", "key": "k"}, "not a mapping"),
        ("submit", {"job": JOB | {"learning_rat": 1}, "rows": INLINE, "key": "k"}, "learning_rate"),
        ("submit", {"job": JOB | {"datasets": None}, "rows": INLINE, "key": "k"}, "datasets"),
        (
            "submit",
            {"job": JOB | {"datasets": [{"path": "org/set"}]}, "rows": INLINE, "key": "k"},
            "Exactly one dataset",
        ),
        ("submit", {"job": JOB | {"name": "n" * 300_000}, "key": "k"}, "at most 262,144"),
        ("submit", {"job": JOB, "rows": [{"text": "t" * 1_200_000}], "key": "k"}, "at most 1,048,576"),
        ("submit", {"job": JOB, "rows": [{"text": "t"}] * 2_001, "key": "k"}, "2000 items"),
        ("submit", {"job": JOB, "rows": [{"unknown": "t"}], "key": "k"}, "row"),
        ("submit", {"job": JOB, "key": "k"}, "datasets"),
        ("list", {"state": "asleep"}, "state"),
        ("list", {"limit": 0}, "limit"),
        ("show", {"job": "nothing"}, "There is no job 'nothing'"),
        ("show", {"job": "job-0"}, "There is no job"),
        ("show", {"job": "../members"}, "There is no job"),
        ("show", {"job": "finished", "jobb": 1}, "There is no argument 'jobb'. Arguments are job."),
        ("pause", {"job": "finished"}, "succeeded"),
        ("evaluate", {"job": "finished", "key": "k", "prompts": "/etc/passwd"}, "prompts"),
        ("evaluate", {"job": "finished", "key": "k", "benchmarks": ["no-such"]}, "benchmarks"),
        ("delete_everything", {}, "There is no tool 'delete_everything'."),
    ],
)
def test_nonsense_is_refused_in_one_sentence(agent: Agent, name: str, arguments: dict, words: str) -> None:
    assert words in agent.refused(name, **arguments)


def stored(server: PageServer) -> set[str]:
    """Names of the uploaded files."""
    return {each["name"] for each in server.api.admin.get("/datasets").json()["items"]}


def test_no_file_outside_the_allowed_folders_is_read(
    agent: Agent, server: PageServer, tmp_path: Path, monkeypatch
) -> None:
    """Guard: without the folders an agent could send any file of this computer to the server, also by a link."""
    monkeypatch.chdir(tmp_path)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "secret.jsonl").write_bytes(ROWS)
    (allowed / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (allowed / "rows.jsonl").write_bytes(ROWS)
    careful = replace(agent, folders=[allowed])
    outside = ["secret.jsonl", f"{tmp_path}/secret.jsonl", "allowed/../secret.jsonl", "link.jsonl", "missing.jsonl"]
    told = [careful.refused("plan", job=JOB | {"datasets": [{"path": path}]}) for path in outside]
    assert ["does not exist" in each for each in told] == [True, False, True, True, True]
    assert "allowed folder" in told[1] or "not found" in told[1], told[1]
    assert careful("plan", job=JOB | {"datasets": [{"path": "rows.jsonl"}]})["train_rows"] == 32
    assert "does not exist" in agent.refused("plan", job=JOB | {"datasets": [{"path": "allowed/rows.jsonl"}]})
    assert not stored(server) & {"secret.jsonl", "link.jsonl"}
    assert "rows.jsonl" in stored(server)


def test_no_template_outside_the_allowed_folders_is_read(agent: Agent, tmp_path: Path) -> None:
    """Guard: the text of a template's file is sent with the job, so it was a second way out."""
    secret = tmp_path / "secret.txt"
    secret.write_text("{{ 'a secret' }}")
    told = agent.refused("submit", job=JOB | {"chat_template_jinja": str(secret)}, rows=INLINE, key="template")
    assert "does not exist" in told
    assert "a secret" not in told


def test_a_token_may_do_no_more_than_it_may(agent: Agent, server: PageServer) -> None:
    people = People.of(server.api)
    hers = people.ann.submit(name="hers")["id"]
    bob = replace(agent, token=people.bob.token)
    assert hers not in {job["id"] for job in bob("list")["jobs"]}
    for name in ("show", "cancel", "logs", "explain_waiting"):
        assert "There is no job" in bob.refused(name, job=hers)
    viewer = server.api.admin.post("/members", {"name": "eve", "role": "viewer"})
    assert viewer.status_code == 201, viewer.text
    token = server.api.admin.post("/tokens", {"member": "eve", "name": "t"}).json()["secret"]
    eve = replace(agent, token=token)
    assert "viewer" in eve.refused("cancel", job=hers).lower()
    assert "token" in replace(agent, token="wrong").refused("list")
    assert people.ann.get(f"/jobs/{hers}").json()["state"] == "queued"


def test_a_server_that_is_away_is_one_sentence(agent: Agent) -> None:
    assert "does not answer" in replace(agent, url="http://127.0.0.1:9").refused("list")


def test_a_fault_of_ours_keeps_its_details(agent: Agent, server: PageServer, caplog: pytest.LogCaptureFixture) -> None:
    """Guard: the text of an unexpected error may hold a path or a token."""

    def broken(_: object):
        raise RuntimeError("the secret of this computer")

    from tests.mcp.conftest import call, sentence

    told = sentence(call(make_server(broken), ("list", {}))[0])
    assert told == "The tool list failed. The log of `trainhop mcp` has the cause."
    assert "the secret of this computer" in caplog.text


def test_large_answers_are_cut(agent: Agent) -> None:
    """Guard: a job file of a megabyte would fill an agent's context."""
    long = {"sample_prompts": ["p" * 2_900] * 16}
    made = agent("submit", job=JOB | long, rows=INLINE, key="long")
    shown = agent("show", job=made["id"])
    assert shown["spec"] is None
    assert len(json.dumps(shown)) < tools.MAX_LOG
