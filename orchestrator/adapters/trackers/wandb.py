"""Weights & Biases: one run per job, whose id there is the job's. It is resumed for each write and finished after it.

`finish` waits until everything was sent, and resuming reads back how far the run has come.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from orchestrator.adapters.trackers.run import DEFAULT_PROJECT, Login, Point, Run, set_it

LIBRARY = "wandb"


def login_fault(login: Login | None) -> str:
    """It needs an API key. Its library connects by itself, so only an admin may name another server."""
    if login is None or not login.key:
        return set_it("wandb", "Weights & Biases needs an API key (https://wandb.ai/authorize).")
    if login.url and not login.url.startswith(("http://", "https://")):
        return "The address of a W&B server begins with https:// or http://."
    if login.url and not login.is_trusted:
        return "Only an admin can use a W&B server of one's own. Leave the address out for wandb.ai, or ask an admin."
    return ""


class WandbRun:
    """A run that was resumed or created."""

    def __init__(self, run: Run) -> None:
        variables = {"WANDB_API_KEY": run.key, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        variables |= {f"WANDB_{name}_DIR": run.folder for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
        variables |= {"WANDB_BASE_URL": run.url} if run.url else {}
        os.environ.update(variables)
        wandb: Any = import_module("wandb")
        entity, _, project = (run.project or DEFAULT_PROJECT).rpartition("/")
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=60,
            silent=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(
            project=project,
            entity=entity or None,
            id=run.id,
            name=run.name,
            notes=run.notes,
            config=run.config,
            dir=run.folder,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._last = int(self._run.starting_step) - 1

    @property
    def last_step(self) -> int:
        return self._last

    def write(self, points: list[Point]) -> None:
        for step, _, values in points:
            self._run.log(values, step=step)

    def close(self, state: str) -> str:
        url = self._run.url or ""
        self._run.finish(exit_code=0 if state in ("running", "succeeded") else 1)
        return url


def open_run(run: Run) -> WandbRun:
    """Resume the job's run, or create it."""
    return WandbRun(run)
