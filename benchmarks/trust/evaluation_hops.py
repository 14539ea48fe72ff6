"""One evaluation over three kinds of machines, each cut, against one that was never cut: the same answers file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import mixed_path, tiny_job
from benchmarks.lab import Lab
from benchmarks.report import Figure
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.kaggle import KaggleEmulator, Person

ASKED = {"max_new_tokens": 96}
CUTS = (2, 6, 11, 16, 21)
"""Units at which a machine is lost. An evaluation of 72 prompts has 40."""
END_S = 600.0


def evaluation_hops(folder: Path) -> Iterator[Figure]:
    """Killed at five places: twice in an emulated Kaggle kernel, twice in a notebook, once on this computer."""
    model, rows = make_tiny_llama(folder / "model"), tiny_job.write_rows(folder / "rows.jsonl")
    people = [Person(name="alice", token=mixed_path.TOKEN)]
    with (
        KaggleEmulator(folder / "kaggle", people, environment=mixed_path.ONE_THREAD) as emulator,
        mixed_path.server_beside(folder, model, emulator) as server,
    ):
        kaggle = mixed_path.Kaggle(emulator)
        notebook, here = mixed_path.Notebook(folder / "notebooks"), mixed_path.ThisComputer()
        here.open(server, "")
        job = _trained(server, model, rows)
        whole = _evaluated(server, job, server.post(f"/jobs/{job}:evaluate", ASKED)["id"])
        _close_own_pool(server)
        cut = server.post(f"/jobs/{job}:evaluate", ASKED)["id"]
        for unit, place in zip(CUTS, (kaggle, notebook, kaggle, notebook, here), strict=True):
            mixed_path.cut_once(server, cut, place, unit)
        hopped = _evaluated(server, job, cut)
        sessions = server.get(f"/jobs/{cut}/sessions")["items"]
    providers = sorted({session["provider"] for session in sessions})
    yield Figure(name="machines lost", value=len(sessions) - 1, bar=str(len(CUTS)), ok=len(sessions) - 1 == len(CUTS))
    yield Figure(name="providers", value=", ".join(providers), bar="3 of them", ok=len(providers) == 3)
    begun = [session["first_step"] for session in sessions]
    yield Figure(name="units kept over the cuts", value=max(begun), bar=f">= {CUTS[-2]}", ok=max(begun) >= CUTS[-2])
    same = hopped["answers_sha256"] == whole["answers_sha256"]
    yield Figure(name="answers file", value="equal" if same else "differs", bar="equal", ok=same)
    reports = hopped["report"] == whole["report"]
    yield Figure(name="report", value="equal" if reports else "differs", bar="equal", ok=reports)


def _trained(server: Lab, model: Path, rows: Path) -> str:
    changes = {"max_steps": 6, "val_set_size": 0.8, "checkpoint": {"max_interval_s": 0.2}}
    job: str = server.post("/jobs", tiny_job.job_file(model, server.upload(rows), "lora") | changes)["id"]
    server.wait_for(lambda: tiny_job.finished(server, job), "the job's end", END_S, 0.2)
    return job


def _evaluated(server: Lab, job: str, evaluation: str) -> dict[str, Any]:
    """The evaluation of a job, once it is done."""
    server.wait_for(lambda: tiny_job.finished(server, evaluation), "the evaluation's end", END_S, 0.2)
    return next(each for each in server.get(f"/jobs/{job}/evaluations")["items"] if each["id"] == evaluation)


def _close_own_pool(server: Lab) -> None:
    pool = next(account["id"] for account in server.get("/accounts")["items"] if account["provider"] == "local")
    server.patch(f"/accounts/{pool}", {"config": {"slots": 0}})
