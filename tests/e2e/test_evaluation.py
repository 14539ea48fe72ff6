"""Evaluations with real worker processes: one follows in the session that has trained, another one is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import finished, job_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ASKED = {"max_new_tokens": 40}


def test_a_killed_evaluation_ends_in_the_file_of_one_that_was_not(
    tmp_path: Path, model_and_rows: tuple[Path, Path]
) -> None:
    """The second session of the killed one continues with the answers that the first had saved.

    The other one follows the training in its session, by the job file. Both have the same bytes.
    """
    settings = {"allowed_folders": json.dumps([str(model_and_rows[0].parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path / "lab", **settings, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        changes = {"max_steps": 6, "val_set_size": 0.8, "checkpoint": {"max_interval_s": 0.2}, "evaluate": ASKED}
        job = server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | changes)[
            "id"
        ]
        server.wait_for(lambda: finished(server, job), "the job's end", 180, 0.1)
        (followed,) = server.get(f"/jobs/{job}/evaluations")["items"]
        whole = followed["id"]
        server.wait_for(lambda: finished(server, whole), "the end of the evaluation that follows", 240, 0.1)
        (trained_in,) = server.get(f"/jobs/{job}/sessions")["items"]
        (asked_in,) = server.get(f"/jobs/{whole}/sessions")["items"]
        assert asked_in["id"] == trained_in["id"] + ".next"
        log = server.client.get(f"/sessions/{asked_in['id']}/log").text
        assert log.count("worker started at") == 2, "the new process image writes to the log of the session"
        assert f"continuing with lease {asked_in['id']}" in log
        killed = server.post(f"/jobs/{job}:evaluate", ASKED)
        lease = server.wait_for(lambda: _committed(server, killed["id"], 6), "a checkpoint", 120)
        os.kill(server.workers()[lease], signal.SIGKILL)
        server.wait_for(lambda: finished(server, killed["id"]), "the evaluation's end", 240, 0.1)
        first, second = (_evaluation(server, ident) for ident in (killed["id"], whole))
        sessions = server.get(f"/jobs/{killed['id']}/sessions")["items"]
        assert len(sessions) == 2
        assert max(s["first_step"] for s in sessions) >= 6, "the second session begins with the answers of the first"
        assert first["report"]["prompts"] == 72
        assert first["answers_sha256"] == second["answers_sha256"]
        assert first["report"] == second["report"]
        assert first["adapter_sha256"] == server.job(job)["adapter"]["sha256"]
        assert [each["id"] for each in server.get(f"/jobs/{job}/evaluations")["items"]] == [killed["id"], whole]


def _committed(server: Lab, job: str, step: int) -> str | None:
    """The lease of a running worker that has a committed checkpoint of at least this step."""
    head = server.job(job)["head"]
    return next(iter(server.workers()), None) if head and head["step"] >= step else None


def _evaluation(server: Lab, job: str) -> dict[str, Any]:
    (found,) = server.get(f"/jobs/{job}/evaluations")["items"]
    return found
