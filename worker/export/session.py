"""One session of an export: merge or convert an adapter in a process of its own, then store the files of the result.

Nothing of it is kept before its end, so an export that is cut starts again from the beginning.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.agent.limits import Part
from worker.agent.uplink import Refused
from worker.shared import causes
from worker.shared.adapter_archive import ArchiveError, unpack
from worker.shared.export_spec import ExportSpec
from worker.shared.messages import GrantKind, Phase
from worker.shared.process import last_line, tied
from worker.shared.results import StoredExport
from worker.training.interface import Hooks, PermanentError, Trained, TrainingJob, UnfitMachineError

ADAPTER, EXPORT = "adapter", "export"
"""Folders of a session."""
SPARE_BYTES = 1 << 30
"""Stay free on the machine's disk."""


def in_a_process(request: str) -> tuple[str, int]:
    """Run one export in a process of its own, which says in the session's log what it does.

    Returns what it has printed, and its exit code.
    """
    done = subprocess.run(
        tied([sys.executable, "-W", "ignore", "-m", "worker.export"]),
        input=request,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def export(
    job: TrainingJob,
    hooks: Hooks,
    store: Callable[[Path, GrantKind], str],
    *,
    run: Callable[[str], tuple[str, int]] = in_a_process,
    spare_bytes: int = SPARE_BYTES,
) -> Trained:
    """Export the adapter whose archive is the job's data file, and `store` each file, which returns its key.

    The watch ends the session if it has to stop. `spare_bytes` stay free on the disk. Raises `PermanentError` if no
    machine could make this export, and `UnfitMachineError` if another one may.
    """
    asked = job.spec.export
    assert asked is not None
    adapter, out = job.work_dir / ADAPTER, job.work_dir / EXPORT
    try:
        unpack(job.datasets[0], adapter)
    except ArchiveError as error:
        raise PermanentError(str(error)) from error
    hooks.phase(Phase.EXPORT)
    hooks.begins(Part.EXPORT)
    report = _report(*run(json.dumps(_request(job, asked, adapter, out) | {"spare_bytes": spare_bytes})))
    hooks.phase(Phase.SAVE)
    files = [_stored(out, file, number, store) for number, file in enumerate(report["files"])]
    try:
        done = StoredExport.model_validate({"files": files, "report": report})
    except ValidationError as error:
        raise PermanentError(f"the export cannot be described ({error.errors()[0]['msg']}); update trainhop") from error
    return Trained(step=1, complete=True, export=done)


def _request(job: TrainingJob, asked: ExportSpec, adapter: Path, out: Path) -> dict[str, Any]:
    return {
        "adapter": str(adapter),
        "base": job.spec.base_model,
        "base_folder": str(job.base_folder) if job.base_folder is not None else None,
        "out": str(out),
        "form": asked.format,
        "kind": asked.type,
        "onto": asked.onto,
        "out_name": f"{asked.job}-{asked.format}",
        "adapter_name": f"{asked.job}-adapter",
    }


def _report(printed: str, code: int) -> dict[str, Any]:
    try:
        answer = json.loads(last_line(printed))
    except ValueError:
        words = f"the export ended without a result (exit code {code}); use a machine with more memory"
        raise UnfitMachineError(words, causes.MEMORY) from None
    if "error" not in answer:
        return answer
    if answer.get("cause"):
        raise UnfitMachineError(answer["error"], answer["cause"])
    raise PermanentError(answer["error"])


def _stored(out: Path, file: dict[str, Any], number: int, store: Callable[[Path, GrantKind], str]) -> dict[str, Any]:
    """One file of an export. Its key says nothing of its name, and has the same ending for all."""
    path = (out / file["name"]).rename(out.with_name(f"{EXPORT}-{number}.bin"))
    try:
        key = store(path, GrantKind.EXPORT)
    except Refused as error:  # it would not take the file from another machine either
        raise PermanentError(
            f"{file['name']} could not be stored ({error}); use another store or a smaller type"
        ) from error
    path.unlink(missing_ok=True)  # makes room, and a kept one was moved
    return {"name": file["name"], "key": key, "sha256": file["sha256"], "size": file["bytes"]}
