"""The data of a job without a server: prepared, and checked as a server does when a job is submitted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.ports.catalog import Catalog, PieceCount, Verdict
from orchestrator.services.data_checking import uncut
from orchestrator.services.data_gate import FileReport, refuse_stops
from orchestrator.services.data_reading import inspect
from orchestrator.services.dataset_preparing import Source, prepared
from orchestrator.services.datasets import file_format, in_words
from orchestrator.services.long_texts import decided
from orchestrator.services.row_faults import judged, look_at
from worker.shared.checkpoint_file import sha256_file
from worker.shared.data_checks.runner import Data, Options, check
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.place_job import DataFile

NO_TOKENIZER = "the model's tokenizer is not on this machine"


@dataclass
class JobData:
    """The prepared files by their sha256, in the order in which a session reads them, and what is unused in them."""

    home: Path
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    named: list[DataFile] = field(default_factory=list[DataFile])
    unused: list[str] = field(default_factory=list[str])

    def pin(self, entry: DatasetSpec, sources: list[Source], *, is_local: bool) -> DatasetSpec:
        """Prepare a dataset. Returns it with its hash, format and rows. Raises `InvalidError`."""
        name = sources[0].name
        with in_words(name), prepared(sources, file_format(name), entry.type, entry.mapping) as made:
            info = inspect(made.path, made.row_format, made.container)
            sha256 = self.keep(made.path, made.name)
            self.unused += (*made.unread, *info.unused)
        pins: dict[str, Any] = {"sha256": sha256, "file_format": info.file_format, "type": info.type, "rows": info.rows}
        if is_local:
            return entry.as_read.model_copy(update=pins | {"path": f"sha256:{sha256}"})
        return entry.model_copy(update=pins)

    def keep(self, path: Path, name: str) -> str:
        """Copy a file that sessions read. Returns its sha256."""
        sha256 = sha256_file(path)
        if sha256 not in self.files:
            kept = self.home / f"data-{sha256}"
            with path.open("rb") as source, kept.open("wb") as target:
                while piece := source.read(1 << 20):
                    target.write(piece)
            self.files[sha256] = kept
        self.named.append(DataFile(sha256=sha256, size=path.stat().st_size, name=name))
        return sha256

    def judge(self, spec: JobSpec, catalog: Catalog, token: str | None) -> tuple[JobSpec, tuple[str, ...]]:
        """The pinned job file with the way its long texts go, and what its author should know of the data.

        Raises `InvalidError` for rows that cannot be trained on with this model, and `FindingsError` for a stop of the
        data checks that `accept_findings` does not name.
        """
        looks = TokenLooks(
            catalog,
            offline=bool(os.environ.get("HF_HUB_OFFLINE", "")),
            packages=os.environ.get("PYTHONPATH", ""),
        )
        entries = [(entry, self.files[entry.sha256 or ""], _container(entry)) for entry in spec.datasets]
        seen = [look_at(looks, spec, *entry, now=0.0, token=token) for entry in entries]
        noted = judged(seen)
        spec, split = decided(spec, None, lambda: self._pieces(looks, spec, seen))
        reports = [_report(spec, each, place, seen[place]) for place, each in enumerate(entries)]
        refuse_stops(reports, spec.accept_findings)
        return spec, (*split, *noted, *_warnings(reports))

    def _pieces(self, looks: TokenLooks, spec: JobSpec, seen: Sequence[Verdict]) -> PieceCount:
        texts = [look for look, entry in zip(seen, spec.datasets, strict=True) if entry.type is RowFormat.TEXT]
        if any(look.away for look in texts):
            return PieceCount(away=NO_TOKENIZER)
        return looks.pieces(spec, [self.files[entry.sha256 or ""] for entry in spec.datasets])


def _container(entry: DatasetSpec) -> FileFormat:
    assert entry.file_format is not None, "a pinned dataset has its format"
    return FileFormat(entry.file_format)


def _report(spec: JobSpec, entry: tuple[DatasetSpec, Path, FileFormat], place: int, seen: Verdict) -> FileReport:
    dataset, path, container = entry
    facts = uncut(seen.counts, spec, dataset) if seen.counts is not None else TokenFacts(away=NO_TOKENIZER)
    data = Data(path=path, row_format=dataset.type, container=container, rows=dataset.rows)
    found = check(data, Options(tokens=facts)).report
    return FileReport(pointer=f"/datasets/{place}/path", name=dataset.path, report=found, dataset=place)


def _warnings(reports: Sequence[FileReport]) -> list[str]:
    found = [finding for each in reports if each.report is not None for finding in each.report.findings]
    return [f"{each.check}: {each.words}. {each.advice}" for each in found if each.level == "warn"]
