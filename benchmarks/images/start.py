"""Seconds from a kernel's start to the first step of a small real model, with and without staged packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.images.figures import Desk, Shelf, desk, nothing_built, seconds_to
from benchmarks.report import Figure
from benchmarks.tiny_job import job_file, say
from orchestrator.entrypoints.demo.model import obtain
from orchestrator.providers.kaggle.launch import slug_of
from tests.images import load

FIRST_S, STAGED_S = 90.0, 25.0
STAGED_SLUG = "trainhop-packages-"
STAGING_S = 600.0
CHANGES = {
    "max_steps": 2,
    "global_batch_size": 2,
    "micro_batch_size": 1,
    "sequence_len": 96,
    "val_set_size": 0.0,
    "eval_steps": 2,
}


def to_the_first_step(folder: Path, shelf: Shelf) -> Iterator[Figure]:
    """The first session installs from a local index.

    A later session uses the packages that a kernel of its account has prepared.
    """
    image = load("kaggle-gpu")
    if image.problem:
        yield nothing_built()
        return
    model = obtain(folder / "cache")
    with desk(folder / "start", image, model.parent) as there:
        say("kernel start to the first step, 135M parameters ...")
        yield _figure("packages brought by pip", _measure(there, model, shelf), FIRST_S)
        there.set_account(packages="staged")
        _measure(there, model, shelf)  # a CPU kernel prepares the packages in parallel
        seconds = _measure(there, model, shelf) if _staged(there) else None
        yield _figure("packages staged", seconds, STAGED_S)


def _measure(there: Desk, model: Path, shelf: Shelf) -> float | str:
    """Seconds, or the reason why the job did not reach its first step."""
    job = there.submit(job_file(model, there.server.upload(shelf.rows), "lora") | CHANGES)
    seen: dict[str, float] = {}

    def done() -> str | None:
        for kernel in list(there.kaggle.world.kernels.values()):
            if (took := seconds_to(kernel, 1)) is not None:
                seen[kernel.slug] = took
        shown = there.server.job(job)
        return shown["message"] or shown["state"] if shown["state"] in ("succeeded", "failed") else None

    ended = there.server.wait_for(done, "the job's end", 900.0, 0.1)
    taken = [seen[slug] for s in there.sessions(job) if (slug := slug_of(s["id"])) in seen]
    return taken[0] if len(taken) == 1 else ended


def _staged(there: Desk) -> bool:
    """Wait for the kernel that packs the set, if one was pushed."""
    packing = [k for k in there.kaggle.world.kernels.values() if k.slug.startswith(STAGED_SLUG)]
    if not packing:
        return False
    there.server.wait_for(lambda: not packing[0].is_live, "the packed set", STAGING_S, 0.2)
    return packing[0].status == "COMPLETE"


def _figure(how: str, seconds: float | str | None, bar_s: float) -> Figure:
    value = round(seconds, 1) if isinstance(seconds, float) else seconds or "nothing was staged"
    ok = isinstance(seconds, float) and seconds <= bar_s
    return Figure(name=f"kernel start to first step, 135M, {how} (s)", value=value, bar=f"<= {bar_s:.0f}", ok=ok)
