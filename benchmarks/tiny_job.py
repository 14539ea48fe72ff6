"""A small job for comparing runs: its data, its job file, and its result as hashes."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab
from worker.shared import checkpoint_file
from worker.shared.place_job import ADAPTER, RESULT, PlaceResult
from worker.shared.shared_places import Place
from worker.shared.shared_places.head import HEAD, read_head

ROWS, STEPS, GLOBAL_BATCH = 90, 60, 8

WORDS = [
    "rail",
    "summit",
    "lantern",
    "valley",
    "ticket",
    "glacier",
    "whistle",
    "cabin",
    "switchback",
    "meadow",
    "signal",
    "tunnel",
]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The result of one run as hashes: `state` of the whole last checkpoint, `losses` of every step's exact loss."""

    kills: int
    adapter_sha256: str
    state_sha256: str
    sample_order_sha256: str
    losses_sha256: str


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def write_rows(path: Path, rows: int = ROWS) -> Path:
    """Chat rows of varied length, always the same."""
    chance = random.Random(7)
    lines = []
    for number in range(rows):
        question = " ".join(chance.choices(WORDS, k=chance.randint(2, 8)))
        answer = " ".join(chance.choices(WORDS, k=chance.randint(4, 16)))
        turns = [{"role": "user", "content": f"{number} {question}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def job_file(model: Path, dataset: str, adapter: str) -> dict[str, Any]:
    """A job with dropout, so that random numbers matter, and several epochs that no batch divides."""
    return {
        "name": f"exact-{adapter}",
        "base_model": str(model),
        "datasets": [{"path": dataset}],
        "adapter": adapter,
        "lora_r": 8,
        "lora_dropout": 0.1,
        "sequence_len": 160,
        "global_batch_size": GLOBAL_BATCH,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 3e-3,
        "warmup_ratio": 0.1,
        "lr_scheduler": "cosine",
        "val_set_size": 0.05,
        "eval_steps": 25,
        "checkpoint": {"max_interval_s": 1},
    }


def reached(server: Lab, step: int) -> str | None:
    for lease in server.workers():
        if server.last_step(lease) >= step:
            return lease
    return None


def finished(server: Lab, ident: str) -> bool:
    """Whether the job has succeeded. Raises if it ended otherwise."""
    job = server.job(ident)
    if job["state"] in ("failed", "cancelled"):
        raise RuntimeError(f"The job {job['state']}: {job['message']}")
    return job["state"] == "succeeded"


def read_result(server: Lab, job: str, kills: int) -> Run:
    """Fetch everything over the API and hash it."""
    archive = zipfile.ZipFile(io.BytesIO(server.client.get(f"/jobs/{job}/adapter").content))
    head = server.job(job)["head"]
    file = server.client.get(f"/jobs/{job}/checkpoints/{head['sha256']}/file").content
    return Run(
        kills=kills,
        adapter_sha256=hashlib.sha256(archive.read("adapter_model.safetensors")).hexdigest(),
        state_sha256=state_sha256(file, server.data.parent / "last.safetensors"),
        sample_order_sha256=series_sha256(server, job, "batch_crc32"),
        losses_sha256=series_sha256(server, job, "loss"),
    )


def read_place(place: Place, kills: int, folder: Path) -> Run:
    """The same of a job that has finished in a shared place. `folder` is for temporary files."""
    head = read_head(place.read_doc(HEAD) or b"")
    result = PlaceResult.model_validate_json(place.read_doc(RESULT) or b"")
    assert head.state == "finished"
    assert head.checkpoint is not None
    rows = [json.loads(line) for line in b"".join(place.read(result.metrics)).splitlines()]
    weights = b"".join(place.read(f"{ADAPTER}adapter_model.safetensors"))
    assert hashlib.sha256(weights).hexdigest() == result.adapter_sha256
    return Run(
        kills=kills,
        adapter_sha256=result.adapter_sha256,
        state_sha256=state_sha256(b"".join(place.read(head.checkpoint.name)), folder / "last.safetensors"),
        sample_order_sha256=_points_sha256(rows, "batch_crc32"),
        losses_sha256=_points_sha256(rows, "loss"),
    )


def _points_sha256(rows: list[dict[str, Any]], name: str) -> str:
    return values_sha256({row["step"]: row["values"][name] for row in rows if name in row.get("values", {})}, name)


def state_sha256(file: bytes, path: Path) -> str:
    """Hash of adapter, optimiser, schedule, random state and position, without machine and time."""
    path.write_bytes(file)
    tensors, manifest = checkpoint_file.load(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    place = [manifest.step, manifest.epoch, manifest.index, manifest.samples_seen]
    digest.update(json.dumps([manifest.state, place, manifest.recipe.model_dump(mode="json")], sort_keys=True).encode())
    return digest.hexdigest()


def series_sha256(server: Lab, job: str, name: str) -> str:
    """Hash of one metric over all steps as 64-bit floats. Raises if a step is missing."""
    points = server.get(f"/jobs/{job}/metrics", name=name)["items"]
    return values_sha256({point["step"]: point["value"] for point in points}, name)


def values_sha256(points: dict[int, float], name: str) -> str:
    """Hash of the values of all steps. Raises if a step is missing."""
    if sorted(points) != list(range(1, STEPS + 1)):
        raise RuntimeError(f"{name} is known for {len(points)} of {STEPS} steps")
    return hashlib.sha256(b"".join(struct.pack("<d", points[s]) for s in sorted(points))).hexdigest()
