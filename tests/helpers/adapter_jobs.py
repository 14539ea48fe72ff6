"""Jobs of sessions that begin with a finished adapter, as a machine gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.shared.job_spec import JobSpec
from worker.training.interface import TrainingJob


def job_with_adapter(base: Path, archive: bytes, home: Path, *, fence: int, **asked: Any) -> TrainingJob:
    """A job with `export` or `chat` in its file. `archive` is the adapter's, `home` a folder to make."""
    home.mkdir()
    (home / "dataset-0").write_bytes(archive)
    file = {"base_model": "org/base", "datasets": [{"path": "x"}], "max_steps": 1, "adapter": "qlora", **asked}
    return TrainingJob(
        job="job-2",
        fence=fence,
        spec=JobSpec.model_validate(file),
        datasets=(home / "dataset-0",),
        resume=None,
        work_dir=home,
        base_folder=base,
    )
