"""What the server is told of a session that ends with an error: whose fault it is, in one sentence."""

from __future__ import annotations

import traceback

from worker import causes
from worker.checkpoint import CheckpointError
from worker.grants import DamagedError
from worker.limits import Ending, full_disk
from worker.protocol import Failure, Grant
from worker.training.job import PermanentError, UnfitMachineError

DETAIL_CHARACTERS = 4_000


def ending_of(error: Exception, resume: Grant | None) -> Ending | Failure:
    """An `Ending` where the machine is to blame, a `Failure` where the job or the checkpoint `resume` may be."""
    match error:
        case UnfitMachineError():
            return Ending("unfit", str(error), error.cause)
        case PermanentError():
            return Failure(message=str(error), permanent=True)
        case CheckpointError() | DamagedError():
            return Failure(message=str(error), permanent=False, bad_checkpoint=resume.sha256 if resume else None)
        case MemoryError():
            return Ending("unfit", "this machine ran out of memory")
    if full := full_disk(error):
        return Ending("unfit", full, causes.DISK)
    detail = "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS:]
    return Failure(message=f"{type(error).__name__}: {error}", permanent=False, detail=detail)
