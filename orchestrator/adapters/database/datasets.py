"""The part of a transaction that keeps data files, and who brought them."""

from __future__ import annotations

from sqlalchemy import Connection, Text, bindparam, cast, delete, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement, Upsert
from orchestrator.adapters.database.mapper import DATASETS, IS_UNENDED, JOBS, UPLOADS
from orchestrator.domain.model import Job
from orchestrator.ports.repository import Dataset, Upload

_table, _uploads, _discarded = tables.datasets, tables.uploads, tables.discarded
_held = Statement(
    DATASETS.select.where(_table.c.sha256 == bindparam("sha256")).with_for_update(read=True, key_share=True)
)
_add_dataset, _add_upload, _discard = Upsert(_table), Upsert(_uploads), Upsert(_discarded)


class DatasetRows:
    """See `persistence.Transaction`."""

    connection: Connection

    def dataset(self, sha256: str) -> Dataset | None:
        return DATASETS.get(self.connection, sha256=sha256)

    def hold_dataset(self, sha256: str) -> Dataset | None:
        row = _held.first(self.connection, {"sha256": sha256})
        return None if row is None else DATASETS.load(row)

    def lock_dataset(self, sha256: str) -> Dataset | None:
        return DATASETS.get(self.connection, lock=True, sha256=sha256)

    def add_dataset(self, dataset: Dataset) -> Dataset:
        while True:
            _add_dataset.run(self.connection, DATASETS.dump(dataset))
            held = self.hold_dataset(dataset.sha256)
            if held is not None:  # on PostgreSQL the one that was there may have been deleted in between
                return held

    def add_upload(self, upload: Upload) -> None:
        _add_upload.run(self.connection, UPLOADS.dump(upload))

    def uploaders(self, sha256: str) -> set[str]:
        found = select(_uploads.c.member_id).where(_uploads.c.sha256 == sha256)
        return {member for (member,) in self.connection.execute(found)}

    def remove_upload(self, sha256: str, member_id: str) -> None:
        this = (_uploads.c.sha256 == sha256, _uploads.c.member_id == member_id)
        self.connection.execute(delete(_uploads).where(*this))

    def delete_dataset(self, dataset: Dataset) -> None:
        self.connection.execute(delete(_table).where(_table.c.sha256 == dataset.sha256))
        self.discard(dataset.key)

    def job_that_needs(self, sha256: str, member_id: str | None) -> Job | None:
        jobs = tables.jobs.c
        # As the file is written down: a quotation mark within a name has a backslash before it.
        needing = [IS_UNENDED, cast(jobs.spec, Text).contains(f'"sha256": "{sha256}"')]
        if member_id is not None:
            needing.append(jobs.member_id == member_id)
        row = self.connection.execute(JOBS.select.where(*needing).limit(1)).first()
        return None if row is None else JOBS.load(row)

    def discard(self, key: str) -> None:
        _discard.run(self.connection, {"key": key})

    def discarded(self, limit: int) -> list[str]:
        return [key for (key,) in self.connection.execute(select(_discarded.c.key).limit(limit))]

    def forget_discarded(self, key: str) -> None:
        self.connection.execute(delete(_discarded).where(_discarded.c.key == key))
