"""What the server is told of a session that ends with an error: whose fault it is, in one sentence."""

from __future__ import annotations

import traceback

from worker.agent.limits import Ending, full_disk
from worker.agent.transfers import DamagedError
from worker.shared import causes
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.messages import Failure, Grant
from worker.training.interface import PermanentError, UnfitMachineError

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
