"""What people do with jobs, by the command line against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from tests.cli.conftest import Shell
from tests.helpers import start_adapters
from worker.shared.job_spec import JobSpec


def test_a_submitted_job_is_listed_shown_and_explained(trainhop: Shell) -> None:
    job_id = trainhop("submit", trainhop.job_file(name="a.yaml")).stdout.strip()
    (listed,) = [j for j in trainhop.json("ls", "--state", "queued") if j["id"] == job_id]
    assert listed["waiting"]["reason"] in trainhop("ls").stdout
    shown = trainhop.json("show", job_id)
    assert (shown["state"], shown["total_steps"], shown["sessions"]) == ("queued", 6, [])
    assert shown["spec"]["datasets"][0]["path"].startswith("sha256:")
    assert "waits" in (text := trainhop("show", job_id).stdout) or "busy" in text


def test_a_key_is_changed_on_the_way(trainhop: Shell) -> None:
    sent = trainhop.json("submit", trainhop.job_file(), "--set", "lora_r=4", "--set", "checkpoint.max_interval_s=30")
    assert sent["spec"]["lora_r"] == 4
    assert sent["spec"]["checkpoint"]["max_interval_s"] == 30


def test_an_id_may_be_shortened_and_an_ambiguous_name_is_explained(trainhop: Shell) -> None:
    first, second = (trainhop("submit", trainhop.job_file(name=f"{n}.yaml")).stdout.strip() for n in "xy")
    assert trainhop.json("show", first[-7:])["id"] == first
    said = trainhop("show", "tiny", code=2).stderr.splitlines()
    for job in (first, second):
        assert any(re.search(rf"{job}: queued, submitted \d{{4}}-\d\d-\d\d \d\d:\d\d UTC", line) for line in said)


def test_one_step_is_one_step(trainhop: Shell) -> None:
    assert "queued tiny: 1 step. Follow" in trainhop("submit", trainhop.job_file(max_steps=1)).stderr
    assert "queued tiny: 2 steps. Follow" in trainhop("submit", trainhop.job_file(max_steps=2)).stderr


def test_what_a_plan_notes_is_said_at_submit(trainhop: Shell) -> None:
    """Guard: without `_say_notes` only the plan and the job's events told it."""
    file, twice = trainhop.job_file(), ("--set", "num_epochs=2")
    words = "num_epochs has no effect, because max_steps is set."
    assert words in trainhop("plan", file, *twice).stdout
    sent = trainhop("submit", file, *twice)
    assert f"note: {words}" in sent.stderr
    assert f"note: {words}" in trainhop("clone", sent.stdout.strip(), *twice, "--set", "max_steps=6").stderr


def test_a_slip_of_the_hand_ends_nobodys_job(trainhop: Shell) -> None:
    """Guard: without `SHORTEST_PART` the last character alone, or nothing at all, named a job, also to cancel and
    rm."""
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    for given in (job[-1], job[-3:], "job-", ""):
        assert "There is no job" in trainhop("cancel", given, code=3).stderr
        assert "There is no job" in trainhop("rm", "-y", given, code=3).stderr


def test_a_name_goes_before_a_part_of_an_id_and_shows_the_whole_job(trainhop: Shell) -> None:
    """Guards: without names first `show` said that it may be either; without the second `get` a job that was found by
    its name had no file and nothing that it waits for.
    """
    other = trainhop("submit", trainhop.job_file()).stdout.strip()
    named = trainhop("submit", trainhop.job_file(), "--set", f"name={other[-6:]}").stdout.strip()
    shown = trainhop.json("show", other[-6:])
    assert shown["id"] == named
    assert shown["spec"]["name"] == other[-6:]
    assert shown["waiting"]


def test_a_list_says_whose_job_it_is_and_how_old(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file(name="whose.yaml")).stdout.strip()
    columns, *rows = trainhop("ls", "--limit", "3").stdout.splitlines()
    assert columns.split()[:5] == ["ID", "NAME", "MEMBER", "STATE", "AGE"]
    (line,) = (row for row in rows if row.startswith(job))
    assert re.match(rf"{job} +tiny +admin +\w+ +\d+ s ", line), line


def test_a_list_is_filtered_by_name_and_member(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file(), "--set", "name=needle-in-hay").stdout.strip()
    assert [j["id"] for j in trainhop.json("ls", "--name", "needle", "--member", "admin")] == [job]
    assert trainhop.json("ls", "--name", "needle", "--member", "nobody") == []


def test_pause_resume_priority_cancel_retry_clone(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    assert trainhop.json("pause", job)["state"] == "paused"
    assert trainhop.json("resume", job)["state"] == "queued"
    assert trainhop.json("priority", job, "5")["priority"] == 5
    assert trainhop.json("priority", job, "-3")["priority"] == -3, "a negative number is no option"
    assert trainhop.json("cancel", job)["state"] == "cancelled"
    assert trainhop.json("retry", job)["state"] == "queued"
    cloned = trainhop.json("clone", job, "--set", "learning_rate=1e-4")
    assert (cloned["cloned_from"], cloned["spec"]["learning_rate"]) == (job, 1e-4)
    changed = trainhop.json("clone", job, "--set", "datasets.0.type=prompt_completion", "--set", "checkpoint.keep=5")
    assert changed["spec"]["datasets"][0]["path"] == cloned["spec"]["datasets"][0]["path"]
    assert changed["spec"]["checkpoint"]["keep"] == 5
    kinds = [json.loads(line)["kind"] for line in trainhop("events", job, "--json").stdout.splitlines()]
    assert kinds[0] == "job.submitted"
    assert "job.cancelled" in kinds


def test_what_has_ended_is_removed_once_that_is_confirmed(trainhop: Shell) -> None:
    """Guard: without `confirm` the first `rm`, which nobody answered, had deleted the job."""
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    assert "Cancel it before you delete it" in trainhop("rm", "--yes", job, code=1).stderr
    trainhop("cancel", job)
    assert "with its checkpoints, adapter, metrics and logs?" in trainhop("rm", job, code=1).stderr
    assert trainhop.json("show", job)["state"] == "cancelled"
    assert f"deleted {job}" in trainhop("rm", "-y", job).stderr
    trainhop("show", job, code=3)


def test_watch_ends_with_the_job_and_tells_its_end(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    trainhop("cancel", job)
    assert "cancelled" in trainhop("watch", job, code=1).stderr


def test_a_plan_queues_nothing(trainhop: Shell) -> None:
    before = len(trainhop.json("ls", "--limit", "1000"))
    assert trainhop.json("plan", trainhop.job_file())["steps"] == 6
    asked = {"datasets": [{"path": "rows.jsonl"}], "val_set_size": 0.5, "evaluate": {}}
    shown = trainhop("plan", trainhop.job_file(**asked)).stdout
    assert "this-computer" in shown
    assert re.search(r"evaluation +1 prompt, 2 answers each of at most 256 tokens", shown)
    assert len(trainhop.json("ls", "--limit", "1000")) == before


def test_what_the_server_refuses_is_one_line_with_the_file_and_the_key(trainhop: Shell) -> None:
    said = trainhop("submit", trainhop.job_file(base_model="/nowhere/model"), code=2).stderr
    assert "job.yaml: base_model: /nowhere/model is a path on the server but not in an allowed folder" in said


def test_a_single_fault_is_said_once(trainhop: Shell) -> None:
    """Guard: without the look at the server's summary it was printed before the same words with the key's name."""
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    assert trainhop("priority", job, "5000", code=2).stderr == "priority: must be at most 1000\n"


def test_what_json_cannot_say_is_said_in_words(trainhop: Shell) -> None:
    """Guard: without `allow_inf_nan=False` these ended in a traceback."""
    for key in ("placement.max_session_s", "deadline"):
        said = trainhop("plan", trainhop.job_file(), "--set", f"{key}=.inf", code=2).stderr
        assert said == f"job.yaml: {key}: must be a finite number\n"


def test_a_fault_in_the_data_names_the_data_file(trainhop: Shell) -> None:
    """Guard: named only by the job file, nobody knew which of several data files was meant."""
    (trainhop.folder / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    said = trainhop("submit", trainhop.job_file(datasets=[{"path": "bad.jsonl"}]), code=2).stderr
    assert "job.yaml: datasets: bad.jsonl: line 1: has no assistant turn" in said


def test_control_characters_of_users_never_reach_the_terminal(trainhop: Shell) -> None:
    trainhop("submit", trainhop.job_file(name="evil.yaml") and _with_name(trainhop, "\x1b[31mred\x1b]0;t\x07\u202e"))
    listed = trainhop("ls").stdout
    assert "red" in listed
    assert "\x1b" not in listed
    assert "\u202e" not in listed


def _with_name(trainhop: Shell, name: str) -> str:
    file = trainhop.folder / "job.json"
    file.write_text(json.dumps(json.loads((trainhop.folder / "evil.yaml").read_text()) | {"name": name}))
    return file.name


def test_people_and_accounts(trainhop: Shell) -> None:
    member = trainhop("members", "add", "Ada").stdout.strip()
    made = trainhop.json("tokens", "add", "Ada", "--name", "laptop", "--days", "1")
    assert member in {m["id"] for m in trainhop.json("members", "ls")}
    hers = {"TRAINHOP_TOKEN": made["secret"]}
    trainhop("ls", **hers)
    trainhop("members", "ls", code=4, **hers)
    trainhop("tokens", "rm", made["id"])
    trainhop("ls", code=4, **hers)
    assert "paused" in trainhop("accounts", "pause", "this-computer").stdout
    assert "resumed this-computer" in trainhop("accounts", "resume", "this-computer").stdout
    assert trainhop.json("accounts", "ls")[0]["name"] == "this-computer"


def test_what_is_missing_has_its_own_exit_code(trainhop: Shell) -> None:
    trainhop("show", "job-none", code=3)
    job = trainhop("submit", trainhop.job_file()).stdout.strip()
    trainhop("adapter", job, "--out", "adapter", code=3)
    trainhop("checkpoints", job, "--download", "abcd1234", code=3)
    assert trainhop.json("checkpoints", job) == []
    assert trainhop.json("metrics", job) == []
    assert trainhop("logs", job).stdout == ""


def test_a_job_continues_from_a_folder_of_ones_own(trainhop: Shell) -> None:
    """What a notebook has left: the example of the documentation with another adapter and a small base model."""
    example = yaml.safe_load(Path("examples/continue.yaml").read_text())
    JobSpec.model_validate(example)
    kept = {key: example[key] for key in ("rl", "adapter", "learning_rate")}
    base = {"base_model_name_or_path": str(trainhop.models / "tiny")}
    start_adapters.write(trainhop.folder / "adapter", start_adapters.tensors(hidden=64), **base)
    pairs = [{"prompt": f"{word}?", "chosen": f"{word} is it", "rejected": "no"} for word in ("a", "b", "c", "d")]
    (trainhop.folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = [{"path": "pairs.jsonl", "type": "preference"}]
    file = trainhop.job_file(**kept, datasets=data, lora_model_dir="adapter")
    sent = trainhop("submit", file)
    assert "uploading adapter" in sent.stderr
    assert "The job continues from an adapter (adapter), sha256" in sent.stderr
    spec = trainhop.json("show", sent.stdout.strip())["spec"]
    assert (spec["lora_r"], spec["lora_alpha"]) == (4, 8)
    assert f"(adapter {spec['lora_model']['weights_sha256']})" in trainhop("show", sent.stdout.strip()).stdout
    assert "adapter" in trainhop("datasets", "ls").stdout
    refused = trainhop("submit", file, "--set", "lora_r=8", code=2).stderr
    assert "lora_r: 8 here, 4 in the adapter" in refused
