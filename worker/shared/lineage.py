"""Which checkpoint a session may start from: one of its own job, or the source checkpoint of a clone.

A clone from a checkpoint takes over its whole state and continues from its step. With an unchanged job file the result
is equal to the original byte for byte. The fields in `FROM_HERE_ON` may change and affect the following steps.
"""

from __future__ import annotations

from worker.shared.checkpoint_file import OtherRunError, check_recipe
from worker.shared.manifest import Manifest, Recipe
from worker.shared.messages import Origin

FROM_HERE_ON = frozenset(
    {
        "max_steps",
        "method_settings",
        "learning_rate",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "lr_scheduler",
        "lr_scheduler_kwargs",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "early_stopping_patience",
    }
)
"""Recipe fields that may change while the state of a checkpoint stays valid."""


def check_owner(manifest: Manifest, job: str, origin: Origin | None) -> None:
    """Raise `OtherRunError` unless the checkpoint is the job's own or exactly the one in `origin`."""
    if origin is None:
        if manifest.job != job:
            raise OtherRunError(f"the checkpoint belongs to job {manifest.job}, not to {job}")
        return
    actual = Origin(job=manifest.job, fence=manifest.fence, step=manifest.step)
    if actual != origin:
        raise OtherRunError(f"the checkpoint is {_words(actual)}, but this job starts from {_words(origin)}")


def check_lineage(mine: Recipe, manifest: Manifest, origin: Origin | None) -> None:
    """Like `check_recipe`, but ignores the fields that a clone may change."""
    theirs = manifest.recipe
    if origin is not None:
        mine = mine.model_copy(update={name: getattr(theirs, name) for name in FROM_HERE_ON})
    check_recipe(mine, theirs)


def _words(origin: Origin) -> str:
    return f"that of job {origin.job}, fence {origin.fence}, step {origin.step}"
