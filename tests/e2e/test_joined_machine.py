"""A machine joins a real server with the real command, its agent is killed, and its session does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import finished, job_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 12


def _command(*words: str) -> subprocess.Popen[bytes]:
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "orchestrator.entrypoints.cli.main", *words], env=variables)


def _machine(server: Lab) -> dict:
    return next(iter(server.get("/machines")["items"]), {})


def test_a_machine_joins_trains_and_leaves(model_and_rows: tuple[Path, Path], tmp_path: Path) -> None:
    """Guards: with the sessions tied to their agent, its death ended the session; without `noted_process` the next
    agent reported it as gone, and the job was trained twice."""
    model, rows = model_and_rows
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
    folder = ("--folder", str(tmp_path / "machine"))
    with lab(tmp_path / "lab", **settings, reconcile_s=0.5, local_slots=0) as server:
        command = server.post("/machine-codes")["command"].split()[1:]
        place = {"placement": {"providers": ["joined"]}, "max_steps": STEPS}
        job = server.post("/jobs", job_file(model, server.upload(rows), "lora") | place)["id"]
        agent = _command(*command, *folder)
        try:
            account = server.wait_for(lambda: _machine(server), "the machine")["account_id"]
            server.patch(f"/accounts/{account}", {"config": {"same_folders": True}})
            server.wait_for(lambda: server.job(job)["state"] == "running", "the session", 120, 0.1)
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            agent = _command("join", *folder)
            server.wait_for(lambda: finished(server, job), "the job's end", 180, 0.1)
            (session,) = server.get(f"/jobs/{job}/sessions")["items"]
            assert (session["outcome"], session["last_step"]) == ("completed", STEPS)
            assert server.get(f"/jobs/{job}")["state"] == "succeeded"
            server.wait_for(lambda: f"step {STEPS} " in server.client.get(f"/sessions/{session['id']}/log").text, "log")
            assert _command("leave", *folder).wait(60) == 0
            assert agent.wait(60) == 0
        finally:
            agent.kill()
            agent.wait()
        assert _machine(server) == {}
    assert not (tmp_path / "machine" / "joined.json").exists()
