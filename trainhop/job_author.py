"""Resolves the job file of a cell that has no server, as a server does when a job is submitted.

It needs the whole distribution, and the packages that a worker has. So it runs in the cell's own process, not in the
kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.domain.errors import TrainhopError
from orchestrator.services.context import new_id
from orchestrator.services.data_reading import inspect
from orchestrator.services.dataset_preparing import Source, prepared
from orchestrator.services.datasets import file_format, in_words
from orchestrator.services.job_checks import names_modules, notes, refuse_what_the_model_lacks
from orchestrator.services.job_pinning import fixed, of_unused, pinned, refuse_keys_of_the_server
from orchestrator.services.template_trial import refuse_bad_template
from trainhop.errors import Error, problem_lines
from trainhop.job_file import local_file, put_template
from worker.notebook.place_session import WrongJobError
from worker.shared.checkpoint_file import sha256_file
from worker.shared.dataset_files import DatasetInfo
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.job_spec import JobSpec
from worker.shared.place_job import DataFile, PlaceJob

_OF_A_SERVER = ("evaluate", "hub_model_id", "deadline")


@dataclass
class _Data:
    """The prepared files by their sha256, and what is unused in them."""

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    named: list[DataFile] = field(default_factory=list[DataFile])
    unused: list[str] = field(default_factory=list[str])


class JobAuthor:
    """Implements `worker.notebook.place_session.Author` for a valid job file. `name` is used in errors."""

    def __init__(self, name: str, written: Mapping[str, Any], folder: Path | None) -> None:
        self._name, self._folder = name, folder
        self._written: dict[str, Any] = {**written, "datasets": [dict(each) for each in written["datasets"]]}

    def resolved(self, home: Path) -> tuple[PlaceJob, Mapping[str, Path]]:
        """See `Author`."""
        try:
            return self._resolved(home)
        except Error as error:
            raise WrongJobError(*error.lines) from error
        except TrainhopError as error:
            lines = problem_lines(str(error), getattr(error, "problems", ()))
            raise WrongJobError(*(f"{self._name}: {line}" for line in lines)) from error

    def _resolved(self, home: Path) -> tuple[PlaceJob, Mapping[str, Path]]:
        asked = self._asked()
        spec = JobSpec.model_validate(self._written)
        refuse_keys_of_the_server(spec)
        token = os.environ.get("HF_TOKEN")
        # The person's own computer: their job file may name any of their files.
        catalog = FolderAndHubCatalog([Path("/")], frozenset(), offline=bool(os.environ.get("HF_HUB_OFFLINE", "")))
        model = catalog.model(spec.base_model, token, with_modules=names_modules(spec))
        refuse_what_the_model_lacks(spec, model)
        data = _Data()
        datasets: list[DatasetSpec] = []
        for place, entry in enumerate(spec.datasets):
            file = self._file(place, entry.path)
            if file is not None:
                sources = [Source(path=file, name=file.name)]
            else:
                found = catalog.dataset(entry.path, entry.split, token, subset=entry.name)
                sources = [Source(path=each.path, name=each.name) for each in found]
            datasets.append(_pinned_data(entry, sources, data, home, is_local=file is not None))
        ready = pinned(spec, model, datasets, time.time())
        told = (
            *notes(spec, model),
            *refuse_bad_template(ready),
            *of_unused(dict.fromkeys(data.unused)),
            *_unserved(spec),
        )
        final = fixed(ready)
        assert final.rendered_at is not None
        job = PlaceJob(
            id=new_id("job", time.time()),
            spec=final.for_machines,
            rendered_at=final.rendered_at,
            data=tuple(data.named),
            asked=asked,
            notes=told,
        )
        return job, data.files

    def differences(self, kept: PlaceJob) -> list[str]:
        """See `Author`. A data file that is not on this machine is taken to be the same."""
        try:
            mine = self._asked(strict=False)
        except Error as error:
            return list(error.lines)
        return _differences(kept.asked, mine)

    def _asked(self, *, strict: bool = True) -> dict[str, Any]:
        """The job file as written, with the names and hashes of its data files in place of their paths."""
        put_template(self._written, self._name, self._folder, lambda _name, _file: True)
        asked = {key: value for key, value in self._written.items() if key not in ("datasets", "priority", "placement")}
        for place, entry in enumerate(self._written["datasets"]):
            path = entry["path"]
            try:
                file = self._file(place, path)
            except Error:
                if strict:
                    raise
                file = None
            known = (
                {"file": Path(path).name, "sha256": sha256_file(file)}
                if file is not None
                else {"file": Path(path).name}
            )
            asked[f"datasets[{place}]"] = {**{key: value for key, value in entry.items() if key != "path"}, **known}
        return asked

    def _file(self, place: int, path: str) -> Path | None:
        return local_file(path, f"{self._name}: datasets[{place}]", self._folder)


def _pinned_data(entry: DatasetSpec, sources: list[Source], data: _Data, home: Path, *, is_local: bool) -> DatasetSpec:
    name = sources[0].name
    with in_words(name), prepared(sources, file_format(name), entry.type, entry.mapping) as made:
        info: DatasetInfo = inspect(made.path, made.row_format, made.container)
        sha256 = sha256_file(made.path)
        if sha256 not in data.files:
            kept = home / f"data-{sha256}"
            kept.write_bytes(made.path.read_bytes())
            data.files[sha256] = kept
        data.named.append(DataFile(sha256=sha256, size=made.path.stat().st_size, name=made.name))
        data.unused += (*made.unread, *info.unused)
    pins: dict[str, Any] = {"sha256": sha256, "file_format": info.file_format, "type": info.type, "rows": info.rows}
    if is_local:
        return entry.as_read.model_copy(update=pins | {"path": f"sha256:{sha256}"})
    return entry.model_copy(update=pins)


def _unserved(spec: JobSpec) -> tuple[str, ...]:
    given = [key for key in _OF_A_SERVER if getattr(spec, key) is not None]
    return (f"Without a server these keys have no effect: {', '.join(given)}.",) if given else ()


def _differences(kept: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key in sorted(kept.keys() | mine.keys()):
        before, now = kept.get(key), mine.get(key)
        if isinstance(before, dict) and isinstance(now, dict) and "sha256" not in now:
            before = {name: value for name, value in before.items() if name != "sha256"}  # not on this machine
        if before != now:
            found.append(f"{key}: the place has {before!r}, this file says {now!r}")
    return found
