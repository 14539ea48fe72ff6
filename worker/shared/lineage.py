"""Which checkpoint a session may begin with: one of its own job, or the one of another job that a clone was made of.

A clone from a checkpoint begins with everything in it and goes on from its step: with an unchanged file it ends in the
very bytes of the original. What `FROM_HERE_ON` names may change, and acts on the steps to come.
"""

from __future__ import annotations

from worker.shared.checkpoint_file import CheckpointError, check_recipe
from worker.shared.messages import Manifest, Origin, Recipe

FROM_HERE_ON = frozenset(
    {"max_steps", "learning_rate", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm"}
)
"""Fields of the recipe under which the state of a checkpoint stays valid."""


def check_owner(manifest: Manifest, job: str, origin: Origin | None) -> None:
    """Raise `CheckpointError` unless the checkpoint is the job's own, or exactly the one that `origin` names."""
    if origin is None:
        if manifest.job != job:
            raise CheckpointError(f"the checkpoint belongs to job {manifest.job}, not to {job}")
        return
    found = Origin(job=manifest.job, fence=manifest.fence, step=manifest.step)
    if found != origin:
        raise CheckpointError(f"the checkpoint is {_words(found)}, but this job begins with {_words(origin)}")


def check_lineage(mine: Recipe, manifest: Manifest, origin: Origin | None) -> None:
    """Like `check_recipe`, but what a clone may change is not compared with the checkpoint it begins with."""
    theirs = manifest.recipe
    if origin is not None:
        mine = mine.model_copy(update={name: getattr(theirs, name) for name in FROM_HERE_ON})
    check_recipe(mine, theirs)


def _words(origin: Origin) -> str:
    return f"that of job {origin.job}, fence {origin.fence}, step {origin.step}"
