"""Turns the error that ended a session into a message: whether machine or job is to blame, in one sentence."""

from __future__ import annotations

import traceback

from worker.agent.limits import Ending, full_disk
from worker.agent.transfers import DamagedError
from worker.shared import causes
from worker.shared.checkpoint_file import CheckpointError, OtherRunError
from worker.shared.messages import Failure, Grant
from worker.training.interface import PermanentError, UnfitMachineError, UnsoundStateError

DETAIL_CHARACTERS = 4_000


def ending_of(error: Exception, resume: Grant | None) -> Ending | Failure:
    """An `Ending` if the machine is to blame, a `Failure` if the job or the checkpoint `resume` may be."""
    match error:
        case UnfitMachineError():
            return Ending("unfit", str(error), error.cause, error.has_remedy)
        case PermanentError() | OtherRunError() | UnsoundStateError():
            permanent = isinstance(error, PermanentError)
            return Failure(message=str(error), permanent=permanent, has_remedy=permanent)
        case CheckpointError() | DamagedError():
            return _unreadable(error, resume)
        case MemoryError():
            return Ending("unfit", "this machine ran out of memory", causes.MEMORY)
    if full := full_disk(error):
        return Ending("unfit", full, causes.DISK, has_remedy=True)
    detail = "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS:]
    return Failure(message=f"{type(error).__name__}: {error}", permanent=False, detail=detail)


def _unreadable(error: Exception, resume: Grant | None) -> Failure:
    """With a cause if the file did not arrive. It does not count as a checkpoint that cannot be loaded then."""
    cause = causes.DATA if isinstance(error, DamagedError) else ""
    bad = resume.sha256 if resume else None
    return Failure(message=str(error), permanent=False, cause=cause, bad_checkpoint=bad)
