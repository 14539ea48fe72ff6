"""The work of a session, training, an evaluation, an export or a chat, and what it ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.agent.deadline import Budget
from worker.agent.uplink import Uplink
from worker.shared.checkpoint_file import sha256_file
from worker.shared.job_spec import JobSpec
from worker.shared.messages import GrantKind
from worker.shared.results import ExportedAdapter, StoredAnswers
from worker.training.interface import Hooks, Trained, TrainingJob


def try_machine(spec: JobSpec, say: Callable[[str], None]) -> None:
    """Test whether training works on this machine, before anything is downloaded, if the job trains."""
    if spec.used_job is None:
        from worker.training import smoke  # takes seconds

        say(f"the training libraries work on this machine: {smoke.check(spec)}")


def do(
    job: TrainingJob, hooks: Hooks, store: Callable[[Path, GrantKind], str], uplink: Uplink, budget: Budget
) -> Trained:
    """Do what the job asks for. The imports take seconds. `store` returns the key of a file."""
    if job.spec.chat is not None:
        from worker.chat import session as chat

        return chat.serve(job, hooks, uplink, budget)
    if job.spec.export is not None:
        from worker.export import session

        return session.export(job, hooks, store)
    if job.spec.evaluation is not None:
        from worker.training import evaluate

        return evaluate.evaluate(job, hooks)
    from worker.training import train

    return train.train(job, hooks)


def stored(trained: Trained, store: Callable[[Path, GrantKind], str]) -> dict[str, Any]:
    """Store the adapter or the answers of a complete job. An export is stored already. Returns that field of `Finish`.

    It is empty for a chat. `store` returns the key of a file.
    """
    if trained.export is not None:
        return {"export": trained.export}
    path = trained.answers or trained.adapter_zip
    if path is None:
        return {}
    file = {"sha256": sha256_file(path), "size": path.stat().st_size}
    if trained.answers is not None:
        return {"answers": StoredAnswers(key=store(path, GrantKind.ANSWERS), **file)}
    key = store(path, GrantKind.ADAPTER)
    return {"adapter": ExportedAdapter(key=key, adapter_sha256=trained.adapter_sha256 or "", **file)}
