"""Fetches the inputs of a session: data and checkpoint through grants, the base model from the hub or the server.

The watch of `worker.agent.limits` ends the process if the session must stop or its time is up. Nothing here
checks for that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import stamina

from worker.agent import transfers
from worker.agent.limits import Limits, Part
from worker.agent.uplink import ServerAway
from worker.shared import causes
from worker.shared.checkpoint_file import sha256_file
from worker.shared.messages import MODEL_FOLDERS, Assignment, Grant
from worker.training import base_model
from worker.training.interface import PermanentError, TrainingJob, UnfitMachineError


def fetch_inputs(
    assignment: Assignment, home: Path, limits: Limits, *, begins: Callable[[Part], None], say: Callable[[str], None]
) -> TrainingJob:
    """The job with all its files in the folder `home`.

    `begins` is called with each part that is fetched, `say` with the reason for a delay. Raises the errors of `granted`
    and `base_model.resolve`.
    """
    begins(Part.DATA)
    datasets = tuple(
        granted(grant, home / f"dataset-{place}", limits) for place, grant in enumerate(assignment.datasets)
    )
    resume = assignment.resume
    resumed = granted(resume, home / "resume.safetensors", limits) if resume else None
    begins(Part.MODEL)
    if assignment.model:
        base_folder = fetch_granted_model(assignment.model, home / "model", limits)
    else:
        base_folder = base_model.resolve(assignment.spec.base_model, limits, say)
    judge_folder = _judge(assignment, home, limits, begins, say)
    return TrainingJob(
        job=assignment.job,
        fence=assignment.fence,
        spec=assignment.whole_spec,
        datasets=datasets,
        resume=resumed,
        base_folder=base_folder,
        origin=assignment.origin,
        work_dir=home,
        trust_remote_code=assignment.trust_remote_code,
        judge_folder=judge_folder,
    )


def _judge(
    assignment: Assignment, home: Path, limits: Limits, begins: Callable[[Part], None], say: Callable[[str], None]
) -> Path | None:
    """The folder of the judge model of an evaluation."""
    asked = assignment.spec.evaluation
    if asked is None or asked.judge is None:
        return None
    begins(Part.JUDGE)
    with base_model.called_judge_model():
        if assignment.judge:
            return fetch_granted_model(assignment.judge, home / "judge", limits)
        return base_model.resolve(asked.judge.model, limits, say)


def forget_inputs(home: Path) -> None:
    """Delete what a session has fetched and saved in its folder, but models: another lease has other files."""
    for path in (*home.glob("dataset-*"), *home.glob("resume.*"), *home.glob(".incoming-*")):
        path.unlink()
    shutil.rmtree(home / "spool", ignore_errors=True)


def granted(grant: Grant, target: Path, limits: Limits) -> Path:
    """Download a granted file. Returns its path, which is `target` or the file in a local store.

    Retries while the store is unreachable. Raises `UnfitMachineError` after `limits.data_s` seconds without progress,
    and the errors of `transfers.download`.
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
                    f"the store sent no data of {grant.key} for {limits.data_s:.0f} s ({error})",
                    causes.DATA,
                    has_remedy=False,
                ) from error


def fetch_granted_model(files: Sequence[Grant], folder: Path, limits: Limits) -> Path:
    """Fetch a gated model file by file through grants of the server. Returns its folder."""
    folder.mkdir(exist_ok=True)
    for grant in files:
        target = folder / _file_name(grant)
        if grant.sha256 is not None and target.is_file() and sha256_file(target) == grant.sha256:
            continue  # the lease before in this session has fetched it
        if (path := granted(grant, target, limits)) != target:
            target.unlink(missing_ok=True)
            target.symlink_to(path)
    return folder


def _file_name(grant: Grant) -> str:
    """The last part of the grant's key, after its folder. Raises `PermanentError` if it is not a plain file name."""
    folder, _, name = f"/{grant.key}".rpartition("/")
    if folder.rpartition("/")[2] not in MODEL_FOLDERS or "\\" in name or name in ("", ".", ".."):
        raise PermanentError(
            f"the server sent the invalid model file name {grant.key!r}; update the server and this worker"
        )
    return name
