"""Years of workers in simulated worlds, and guards whose removal the simulation notices. A seed can be replayed."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

from benchmarks.adversity.mutants import MUTANTS, Mutant
from benchmarks.adversity.simulation import YEAR, Simulation
from benchmarks.report import Figure
from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine

YEARS = 1_000
YEARS_OF_A_WORLD = 10
YEARS_OF_A_MUTANT, MUTANT_WORLDS = 2, 30


def run(seed: int, years: float, mutant: Mutant | None = None) -> tuple[float, Counter[str], str]:
    """Simulate one world. Returns the years that its machines worked, what was tried, and what broke."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="worker-years-", dir=memory))
    engine = make_engine(f"sqlite:///{folder / 'trainhop.db'}")
    broken = ""
    ids = mock.patch.object(secrets, "token_bytes", random.Random(seed).randbytes)  # the same ids in every replay
    with ids, mutant.planted() if mutant else contextlib.nullcontext():
        try:
            upgrade(engine)
            world = Simulation(seed, engine, folder)
            world.run(years)
        except AssertionError as failure:
            line = traceback.extract_tb(failure.__traceback__)[-1].line
            broken = f"seed {seed}: {str(failure) or line}"
        finally:
            engine.dispose()
            shutil.rmtree(folder, ignore_errors=True)
    return world.lived_s / YEAR, world.tried, broken


def worker_years(_: Path) -> Iterator[Figure]:
    """The figure: years without a violation."""
    seeds = range(YEARS // YEARS_OF_A_WORLD)
    years, tried, broken = 0.0, Counter[str](), list[str]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for lived, faults, failure in pool.map(run, seeds, [YEARS_OF_A_WORLD] * len(seeds)):
            years, tried = years + lived, tried + faults
            broken += [failure] if failure else []
    yield Figure(
        name="simulated worker-years",
        value={"years": round(years), "violations": len(broken), "first": broken[:3], "tried": dict(tried)},
        bar=">= 1,000 years, 0 violations",
        ok=years >= YEARS * 0.999 and not broken,
    )


def mutants(_: Path) -> Iterator[Figure]:
    """The figure: guards of which the removal is noticed."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(MUTANTS, pool.map(_is_noticed, MUTANTS), strict=True))
    missed = sorted(name for name, noticed in found.items() if not noticed)
    yield Figure(
        name="guards whose removal the simulation notices",
        value={"noticed": len(found) - len(missed), "missed": missed},
        bar=">= 12, all",
        ok=len(found) >= 12 and not missed,
    )


def _is_noticed(name: str) -> bool:
    """A broken promise counts. Any other error is one of the stand-in, and ends the benchmark."""
    return any(run(seed, YEARS_OF_A_MUTANT, MUTANTS[name])[2] for seed in range(MUTANT_WORLDS))
