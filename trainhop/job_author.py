"""Resolves the job file of a cell that has no server, as a server does when a job is submitted.

It needs the whole distribution, and the packages that a worker has. So it runs in the cell's own process, not in the
kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.services.adapter_conflicts import refuse_other_model
from orchestrator.services.adapter_files import AdapterError, AdapterFiles, pack, read_adapter
from orchestrator.services.context import new_id
from orchestrator.services.dataset_preparing import Source
from orchestrator.services.job_checks import names_modules, notes, refuse_what_the_model_lacks
from orchestrator.services.job_pinning import fixed, for_machines, of_unused, pinned, refuse_keys_of_the_server
from orchestrator.services.start_adapters import pinned_to
from orchestrator.services.template_trial import refuse_bad_template
from trainhop.errors import Error, problem_lines
from trainhop.job_data import JobData
from trainhop.job_file import candidates, local_file, put_template
from worker.notebook.place_session import WrongJobError
from worker.shared.checkpoint_file import sha256_file
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.job_spec import JobSpec
from worker.shared.place_job import PlaceJob
from worker.shared.start_adapter import WEIGHTS, StartAdapter

_OF_A_SERVER = ("evaluate", "hub_model_id", "deadline", "report_to")
_NOT_TRAINED_BY = ("priority", "placement")
"""Keys of a job file that change nothing of a run without a server."""


class JobAuthor:
    """Implements `worker.notebook.place_session.Author` for a valid job file. `name` is used in errors."""

    def __init__(self, name: str, written: Mapping[str, Any], folder: Path | None) -> None:
        self._name, self._folder = name, folder
        self._written: dict[str, Any] = {**written, "datasets": [dict(each) for each in written["datasets"]]}

    def resolved(self, home: Path) -> tuple[PlaceJob, Mapping[str, Path]]:
        """See `Author`."""
        try:
            return self._resolved(JobData(home))
        except Error as error:
            raise WrongJobError(*error.lines) from error
        except TrainhopError as error:
            lines = problem_lines(str(error), getattr(error, "problems", ()))
            raise WrongJobError(*(f"{self._name}: {line}" for line in lines)) from error

    def _resolved(self, data: JobData) -> tuple[PlaceJob, Mapping[str, Path]]:
        asked = self._asked()
        spec = JobSpec.model_validate(self._written)
        refuse_keys_of_the_server(spec)
        token = os.environ.get("HF_TOKEN")
        # The person's own computer: their job file may name any of their files.
        catalog = FolderAndHubCatalog([Path("/")], frozenset(), offline=bool(os.environ.get("HF_HUB_OFFLINE", "")))
        spec, begun, archive = self._adapter(spec, data.home)
        model = catalog.model(spec.base_model, token, with_modules=names_modules(spec) or begun is not None)
        if begun is not None:
            refuse_other_model(spec, begun, model)
        refuse_what_the_model_lacks(spec, model)
        datasets = [self._dataset(place, entry, catalog, token, data) for place, entry in enumerate(spec.datasets)]
        if archive is not None:
            data.keep(archive, "the adapter that the job continues from")
        ready = pinned(spec, model, datasets, time.time())
        written = refuse_bad_template(ready)
        ready, told = data.judge(ready, catalog, token)
        final = fixed(ready)
        assert final.rendered_at is not None
        unused = of_unused(dict.fromkeys(data.unused))
        job = PlaceJob(
            id=new_id("job", time.time()),
            spec=for_machines(final),
            rendered_at=final.rendered_at,
            data=tuple(data.named),
            asked=asked,
            notes=(*notes(spec, model), *written, *told, *unused, *_unserved(spec)),
        )
        return job, data.files

    def _dataset(
        self, place: int, entry: DatasetSpec, catalog: FolderAndHubCatalog, token: str | None, data: JobData
    ) -> DatasetSpec:
        file = self._file(place, entry.path)
        if file is not None:
            return data.pin(entry, [Source(path=file, name=file.name)], is_local=True)
        found = catalog.dataset(entry.path, entry.split, token, subset=entry.name)
        return data.pin(entry, [Source(path=each.path, name=each.name) for each in found], is_local=False)

    def _adapter(self, spec: JobSpec, home: Path) -> tuple[JobSpec, AdapterFiles | None, Path | None]:
        """The spec with the adapter that it continues from pinned, what that says, and its archive for sessions."""
        if spec.lora_model_dir is None:
            return spec, None, None
        folder = self._adapter_folder()
        try:
            if folder is None:
                raise AdapterError("there is no such folder. Without a server, name the folder of a PEFT adapter.")
            files, archive = read_adapter(folder), home / "start.zip"
        except AdapterError as error:
            raise InvalidError(f"lora_model_dir: {spec.lora_model_dir}: {error}") from error
        pack(folder, archive)
        start = StartAdapter(
            sha256=sha256_file(archive), weights_sha256=sha256_file(folder / WEIGHTS), name=folder.resolve().name[:255]
        )
        return pinned_to(spec, start, files), files, archive

    def _adapter_folder(self) -> Path | None:
        found = candidates(self._written.get("lora_model_dir"), self._folder, None)
        return next((each for each in found if each.is_dir()), None)

    def differences(self, kept: PlaceJob) -> list[str]:
        """See `Author`. A data file that is not on this machine is taken to be the same."""
        try:
            mine = self._asked(strict=False)
        except Error as error:
            return list(error.lines)
        return _differences(kept.asked, mine)

    def _asked(self, *, strict: bool = True) -> dict[str, Any]:
        """The job file as written, with the names and hashes of its files in place of their paths."""
        template = candidates(self._written.get("chat_template_jinja"), self._folder, None)
        put_template(self._written, self._name, template, lambda _name, _file: True)
        asked = {key: value for key, value in self._written.items() if key not in ("datasets", *_NOT_TRAINED_BY)}
        if (path := asked.get("lora_model_dir")) is not None:
            folder = self._adapter_folder()
            asked["lora_model_dir"] = _known(path, folder / WEIGHTS if folder is not None else None)
        for place, entry in enumerate(self._written["datasets"]):
            path = entry["path"]
            try:
                file = self._file(place, path)
            except Error:
                if strict:
                    raise
                file = None
            own = {key: value for key, value in entry.items() if key != "path"}
            asked[f"datasets[{place}]"] = own | _known(path, file)
        return asked

    def _file(self, place: int, path: str) -> Path | None:
        return local_file(path, f"{self._name}: datasets[{place}]", candidates(path, self._folder, None))


def _known(path: str, file: Path | None) -> dict[str, str]:
    """What identifies a file on another machine: its name, and its hash if it is on this one. The Hub's have ids."""
    if file is not None and file.is_file():
        return {"file": Path(path).name, "sha256": sha256_file(file)}
    is_of_hub = "/" in path and not Path(path).suffix and not path.startswith((".", "/", "~", "\\"))
    return {"file": path if is_of_hub else Path(path).name}


def _unserved(spec: JobSpec) -> tuple[str, ...]:
    given = [key for key in _OF_A_SERVER if getattr(spec, key)]
    return (f"Without a server these keys have no effect: {', '.join(given)}.",) if given else ()


def _is_elsewhere(before: Any, now: Any) -> bool:
    """Whether both describe the same file, which is not on this machine, so that its hash is not known here."""
    if not isinstance(before, dict) or not isinstance(now, dict) or "sha256" in now:
        return False
    return before == {**now, "sha256": before.get("sha256")}  # pyright: ignore[reportUnknownMemberType] - JSON


def _differences(kept: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key in sorted(kept.keys() | mine.keys()):
        before, now = kept.get(key), mine.get(key)
        if before != now and not _is_elsewhere(before, now):
            found.append(f"{key}: the place has {before!r}, this file says {now!r}")
    return found
