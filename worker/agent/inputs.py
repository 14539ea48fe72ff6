"""Bringing what a session works on to its machine: data and checkpoint through grants, the base model from the hub or the server.

The watch of `worker.agent.limits` ends the process meanwhile when it is asked to leave or when time is up, so nothing here looks
for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import stamina

from worker.agent import transfers
from worker.agent.limits import Limits, Part
from worker.agent.uplink import ServerAway
from worker.shared import causes
from worker.shared.messages import Assignment, Grant
from worker.training import base_model
from worker.training.interface import PermanentError, TrainingJob, UnfitMachineError


def everything(
    assignment: Assignment, home: Path, limits: Limits, *, begins: Callable[[Part], None], say: Callable[[str], None]
) -> TrainingJob:
    """The job with all its files in the folder `home`; `begins` hears what is fetched, `say` why it takes so long.

    Raises what `granted` and `base_model.resolve` raise.
    """
    begins(Part.DATA)
    datasets = tuple(
        granted(grant, home / f"dataset-{place}", limits) for place, grant in enumerate(assignment.datasets)
    )
    resume = assignment.resume
    resumed = granted(resume, home / "resume.safetensors", limits) if resume else None
    begins(Part.MODEL)
    if assignment.model:
        base_folder = granted_model(assignment.model, home / "model", limits)
    else:
        base_folder = base_model.resolve(assignment.spec.base_model, limits, say)
    return TrainingJob(
        job=assignment.job,
        fence=assignment.fence,
        spec=assignment.spec,
        datasets=datasets,
        resume=resumed,
        base_folder=base_folder,
        origin=assignment.origin,
        work_dir=home,
        trust_remote_code=assignment.trust_remote_code,
    )


def granted(grant: Grant, target: Path, limits: Limits) -> Path:
    """The granted file on this machine, `target` or where the store has it, however often the store goes away meanwhile.

    Raises `UnfitMachineError` once it has given nothing for `limits.data_s`, and what `grants.download` raises.
    """
    while True:
        before = transfers.arrived(target)
        try:
            for attempt in stamina.retry_context(on=ServerAway, attempts=None, timeout=limits.data_s, wait_max=15.0):
                with attempt:
                    return transfers.download(grant, target, limits.stall_s)
        except ServerAway as error:
            if transfers.arrived(target) <= before:
                raise UnfitMachineError(
                    f"the store gave nothing of {grant.key} for {limits.data_s:.0f} s ({error}); the job is tried again later",
                    causes.DATA,
                ) from error


def granted_model(files: Sequence[Grant], folder: Path, limits: Limits) -> Path:
    """The folder with a base model whose files the server hands out one by one, because a token is needed for them."""
    folder.mkdir(exist_ok=True)
    for grant in files:
        target = folder / _file_name(grant)
        if (found := granted(grant, target, limits)) != target:
            target.unlink(missing_ok=True)
            target.symlink_to(found)
    return folder


def _file_name(grant: Grant) -> str:
    """The last part of its key, after `model/`."""
    _, mark, name = f"/{grant.key}".rpartition("/model/")
    if not mark or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise PermanentError(
            f"the server names a file of the base model {grant.key!r}; update the server and this worker"
        )
    return name
