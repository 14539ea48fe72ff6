"""The repository of datasets, and of who uploaded them."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement, Upsert
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.storage import DataReport, Dataset, Upload

DATASETS = Mapper(Dataset, tables.datasets)
UPLOADS = Mapper(Upload, tables.uploads)
REPORTS = Mapper(DataReport, tables.data_reports)
_datasets, _uploads, _discarded, _reports = tables.datasets, tables.uploads, tables.discarded, tables.data_reports
_OWN = {"name", "member_id", "created_at"}
"""What each uploader has of their own."""
_get_for_share = Statement(
    DATASETS.select.where(_datasets.c.sha256 == bindparam("sha256")).with_for_update(read=True, key_share=True)
)
_of_member = Statement(
    DATASETS.select.with_only_columns(
        *(_uploads.c[c.key] if c.key in _OWN else _datasets.c[c.key] for c in DATASETS.select.selected_columns)
    )
    .select_from(_datasets)
    .join(_uploads, _uploads.c.sha256 == _datasets.c.sha256)
    .where(_datasets.c.sha256 == bindparam("sha256"), _uploads.c.member_id == bindparam("member_id"))
)
_add_dataset, _add_upload, _discard = Upsert(_datasets), Upsert(_uploads), Upsert(_discarded)
_add_report = Upsert(_reports)


class SqlDatasetRepository(SqlRepository):
    """Implements `ports.repository.storage.DatasetRepository`."""

    def get(self, sha256: str) -> Dataset | None:
        return DATASETS.get(self._connection, sha256=sha256)

    def get_of(self, sha256: str, member_id: str) -> Dataset | None:
        row = _of_member.first(self._connection, {"sha256": sha256, "member_id": member_id})
        return None if row is None else DATASETS.load(row)

    def get_for_share(self, sha256: str) -> Dataset | None:
        row = _get_for_share.first(self._connection, {"sha256": sha256})
        return None if row is None else DATASETS.load(row)

    def get_for_update(self, sha256: str) -> Dataset | None:
        return DATASETS.get(self._connection, lock=True, sha256=sha256)

    def add(self, dataset: Dataset) -> Dataset:
        while True:
            _add_dataset.run(self._connection, DATASETS.dump(dataset))
            stored = self.get_for_share(dataset.sha256)
            if stored is not None:  # on PostgreSQL the existing row may have been deleted in the meantime
                return stored

    def delete(self, dataset: Dataset) -> None:
        self._connection.execute(delete(_datasets).where(_datasets.c.sha256 == dataset.sha256))
        self._connection.execute(delete(_reports).where(_reports.c.sha256 == dataset.sha256))
        self.discard(dataset.key)

    def get_report(self, sha256: str, row_format: str, tokenizer: str, version: int) -> DataReport | None:
        key = {"sha256": sha256, "row_format": row_format, "tokenizer": tokenizer, "version": version}
        return REPORTS.get(self._connection, **key)

    def add_report(self, report: DataReport) -> None:
        if self.get_for_share(report.sha256) is not None:
            _add_report.run(self._connection, REPORTS.dump(report))

    def add_upload(self, upload: Upload) -> None:
        _add_upload.run(self._connection, UPLOADS.dump(upload))

    def delete_upload(self, sha256: str, member_id: str) -> None:
        this = (_uploads.c.sha256 == sha256, _uploads.c.member_id == member_id)
        self._connection.execute(delete(_uploads).where(*this))

    def uploaders(self, sha256: str) -> set[str]:
        statement = select(_uploads.c.member_id).where(_uploads.c.sha256 == sha256)
        return {member for (member,) in self._connection.execute(statement)}

    def discard(self, key: str, store: str | None = None) -> None:
        _discard.run(self._connection, {"key": key, "store": store})

    def discarded(self, limit: int) -> list[tuple[str, str | None]]:
        rows = self._connection.execute(select(_discarded.c.key, _discarded.c.store).limit(limit))
        return [(key, store) for key, store in rows]

    def delete_discarded(self, key: str) -> None:
        self._connection.execute(delete(_discarded).where(_discarded.c.key == key))
