"""A dataset is checked row by row when it arrives and kept once, by the sha256 of its bytes, for all who brought it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.ports.providers import Context, StoreError
from orchestrator.ports.repository import Dataset, Transaction, Upload
from orchestrator.services.errors import from_store
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.ids import new_id
from worker.shared.checkpoint_file import sha256_file
from worker.shared.dataset_files import DatasetError, inspect
from worker.shared.messages import DatasetSpec, FileFormat, RowFormat

_BY_SUFFIX = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".json": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
}


def file_format(name: str) -> FileFormat:
    """The container by the file's name; raises `InvalidError` for one that is not known."""
    found = _BY_SUFFIX.get(Path(name).suffix.lower())
    if found is None:
        raise InvalidError(f"{name}: a dataset is a .jsonl, .csv or .parquet file", [("/name", "has another ending")])
    return found


def add_dataset(ctx: Context, member_id: str, path: Path, name: str, row_format: RowFormat = RowFormat.AUTO) -> Dataset:
    """Check every row of the file and keep it; the same bytes again are the same dataset.

    How the first upload has read them stays their default; the answer says how they were read this time.
    """
    container = file_format(name)
    try:
        info = inspect(path, row_format, container)
    except DatasetError as error:
        raise InvalidError(f"{name}: {error}", [("/", str(error))]) from error
    sha256, now = sha256_file(path), ctx.clock.now()
    upload = Upload(id=new_id("upload", now), sha256=sha256, member_id=member_id, name=name, created_at=now)
    with ctx.uow() as tx:
        known = tx.hold_dataset(sha256)
        if known is not None:
            tx.add_upload(upload)
    if known is not None:
        as_read = {"row_format": info.type, "rows": info.rows, "file_format": info.file_format}
        return known if known.row_format == info.type else replace(known, **as_read)
    # A name of its own: whoever deletes what was there before, however late, does not mean these bytes.
    key = f"datasets/{sha256}.{secrets.token_hex(4)}"
    try:
        stored = ctx.stores.local().put(key, path)
    except StoreError as error:
        raise from_store(error) from error
    dataset = Dataset(
        sha256=sha256,
        size=stored.size,
        file_format=info.file_format,
        row_format=info.type,
        rows=info.rows,
        name=name,
        member_id=member_id,
        created_at=now,
        key=key,
    )
    with ctx.uow() as tx:
        if tx.add_dataset(dataset).key != key:  # somebody brought the same bytes at the same time
            tx.discard(key)
        tx.add_upload(upload)
    return dataset


def resolve_dataset(ctx: Context, member_id: str, spec: DatasetSpec, place: int) -> DatasetSpec:
    """The entry with its bytes pinned: sha256, container, row format and number of rows."""
    try:
        dataset = _find(ctx, member_id, spec)
    except InvalidError as error:
        pointer = f"/datasets/{place}/path"
        raise InvalidError(str(error), [(pointer, m) for _, m in error.problems] or [(pointer, str(error))]) from error
    return spec.model_copy(
        update={
            "sha256": dataset.sha256,
            "file_format": FileFormat(dataset.file_format),
            "type": RowFormat(dataset.row_format),
            "rows": dataset.rows,
        }
    )


def _find(ctx: Context, member_id: str, spec: DatasetSpec) -> Dataset:
    if spec.path.startswith("sha256:"):
        return _uploaded(ctx, spec)
    found = ctx.catalog.dataset(spec.path, spec.split, token_of(ctx, member_id))
    return add_dataset(ctx, member_id, found.path, found.name, spec.type)


def _uploaded(ctx: Context, spec: DatasetSpec) -> Dataset:
    sha256 = spec.path.removeprefix("sha256:")
    with ctx.uow() as tx:
        dataset = tx.dataset(sha256)
    if dataset is None:
        raise InvalidError(f"no dataset {sha256[:12]} was uploaded here; upload the file first")
    if spec.type in (RowFormat.AUTO, RowFormat(dataset.row_format)):
        return dataset
    return _read_otherwise(ctx, dataset, spec.type)


def _read_otherwise(ctx: Context, dataset: Dataset, row_format: RowFormat) -> Dataset:
    """The same bytes with rows of another format, if every one of them is such a row."""
    with NamedTemporaryFile() as copy:
        try:
            copy.writelines(ctx.stores.local().read(dataset.key))
        except StoreError as error:
            raise from_store(error) from error
        copy.flush()
        try:
            info = inspect(Path(copy.name), row_format, FileFormat(dataset.file_format))
        except DatasetError as error:
            raise InvalidError(
                f"the uploaded rows are {dataset.row_format}, the job says {row_format}: {error}"
            ) from error
    return replace(dataset, row_format=info.type)


def dataset_by_id(ctx: Context, sha256: str) -> Dataset:
    """A dataset that was uploaded; raises `NotFoundError`."""
    with ctx.uow() as tx:
        dataset = tx.dataset(sha256)
    if dataset is None:
        raise NotFoundError(f"there is no dataset {sha256}")
    return dataset


def hold(tx: Transaction, hashes: Iterable[str]) -> tuple[int, str] | None:
    """Keep a job's data files from being deleted before it is written down; place and words of the first that is gone."""
    for place, sha256 in enumerate(hashes):
        if tx.hold_dataset(sha256) is None:
            return place, f"the data file {sha256[:12]} was deleted: upload it again, and it is there for this job too"
    return None
