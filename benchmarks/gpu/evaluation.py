"""An evaluation of the paper's model that is stopped at five places, compared with one that is never stopped."""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model
from benchmarks.gpu.sessions import Watcher, free_memory, resolved, run
from benchmarks.tiny_job import WORDS
from worker.shared import answers_file, checkpoint_file
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Origin
from worker.training.interface import TrainingJob

ROWS = 64
STOPS = 5


def measure(folder: Path, scale: Scale, backend: str) -> dict[str, Any]:
    """Train a few steps, evaluate once in one session and once in six, greedy and drawn, and compare the files."""
    model, data = paper_model(folder, scale), _write_rows(folder / "dialogues.jsonl")
    changes = {"sequence_len": 256, "max_steps": 8, "val_set_size": 0.5, "learning_rate": 1e-2, "backend": backend}
    spec = resolved(scale.job(model, "", **changes), data)
    trained = run(spec, data, folder / "evaluated")
    ways = {
        "greedy": _compare(spec, data, folder / "evaluation-greedy", trained.checkpoint, temperature=0.0),
        "drawn": _compare(spec, data, folder / "evaluation-drawn", trained.checkpoint, temperature=0.8),
    }
    return {"backend": backend, "steps": spec.total_steps, "ways": ways}


def _compare(spec: JobSpec, data: Path, folder: Path, checkpoint: Path, *, temperature: float) -> dict[str, Any]:
    asked = EvaluationSpec(max_prompts=12, max_new_tokens=32, temperature=temperature)
    spec = spec.model_copy(update={"evaluation": asked})
    began = time.monotonic()
    whole = _sessions(spec, data, folder / "whole", checkpoint, []).read_bytes()
    seconds = time.monotonic() - began
    stops = sorted(random.Random(7).sample(range(1, spec.total_steps), STOPS))
    watchers: list[Watcher] = []
    again = _sessions(spec, data, folder / "stopped", checkpoint, watchers, stops).read_bytes()
    answers = answers_file.read(io.BytesIO(whole))
    return {
        "units": spec.total_steps,
        "stopped_after_units": stops,
        "fidelity": [fidelity for watcher in watchers for _, fidelity, _ in watcher.restores],
        "equal_bytes": whole == again,
        "sha256": hashlib.sha256(whole).hexdigest(),
        "prompts": len(answers.answered),
        "answers_that_differ": sum(each.base.text != each.adapter.text for each in answers.answered),
        "tokens": sum(each.base.tokens + each.adapter.tokens for each in answers.answered),
        "seconds": round(seconds, 1),
    }


def _sessions(
    spec: JobSpec, data: Path, folder: Path, checkpoint: Path, watchers: list[Watcher], stops: Sequence[int] = ()
) -> Path:
    """The file of answers of an evaluation that is stopped after each unit in `stops`."""
    from worker.training.evaluate import evaluate

    resume, trained = checkpoint, None
    for number, stop in enumerate([*stops, None]):
        watcher, work = Watcher(stop_at=stop), folder / f"session-{number}"
        work.mkdir(parents=True)
        origin = Origin(job="bench", fence=1, step=checkpoint_file.read_manifest(checkpoint).step)
        job = TrainingJob(
            job="evaluation",
            fence=number + 1,
            spec=spec,
            datasets=(data,),
            resume=resume,
            work_dir=work,
            origin=None if number else origin,
        )
        trained = evaluate(job, watcher)
        resume = work / "saved.safetensors"
        checkpoint_file.write(resume, watcher.snapshots[-1].tensors, watcher.snapshots[-1].manifest)
        watcher.snapshots.clear()
        watchers.append(watcher)
        free_memory()
    assert trained is not None
    assert trained.answers is not None
    return trained.answers


def _write_rows(path: Path) -> Path:
    chance = random.Random(17)
    lines = [
        {"prompt": " ".join(chance.choices(WORDS, k=12)) + f" {n}?", "completion": " ".join(chance.choices(WORDS, k=8))}
        for n in range(ROWS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
