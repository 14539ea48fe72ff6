"""The training methods, one module each, by the name that the key `rl` gives them."""

from __future__ import annotations

import importlib

from worker.shared.job_spec import JobSpec
from worker.shared.methods import SFT
from worker.training.methods.interface import Method


def method_of(spec: JobSpec) -> Method:
    """The method of a job, with its settings."""
    module = importlib.import_module(f"{__name__}.{spec.rl or SFT}")
    return module.METHOD(spec.method_settings)
