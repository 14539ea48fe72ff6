"""Datasets: checked row by row on upload, and kept once by the sha256 of their bytes for all uploaders.

Only a member who uploaded the bytes, or whose job was cloned or retried with them, can read them. For others there is
no such dataset: its sha256 is printed in model cards and gives no right. Each uploader can remove a dataset for
themselves. Its bytes are deleted with the last one.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.storage import ADAPTER, Dataset, Upload
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import StoreError
from orchestrator.services.context import Context, new_id
from orchestrator.services.data_reading import first_keys, inspect
from orchestrator.services.dataset_preparing import Prepared, Source, prepared
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.stores import from_store
from worker.shared.checkpoint_file import sha256_file
from worker.shared.dataset_files import DatasetError, DatasetInfo
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.row_keys import UnusedKeys

_BY_SUFFIX = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".json": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
}

NO_NAMES: Mapping[str, Any] = MappingProxyType({})

DISCARDED_AT_ONCE = 100
HEAD_BYTES, HEAD_ROWS = 64 * 2**10, 1_000
"""The part of a file in which keys are looked for afterwards. An upload names those of all rows."""
MAX_PACKED_BYTES = 64 * 2**20
_KEYS: dict[tuple[str, RowFormat], tuple[str, ...]] = {}
"""Keys that were found, by what they depend on."""
MAX_KEYS = 1_000


def file_format(name: str) -> FileFormat:
    """The container format by the file's name. Raises `InvalidError` for an unknown one."""
    container = _BY_SUFFIX.get(Path(name.lower().removesuffix(".gz")).suffix)
    if container is None:
        raise InvalidError(
            f"{name} has an unknown file type. Use a .jsonl, .csv or .parquet file, or one of them as .gz.",
            [("/name", "has an unknown extension")],
        )
    return container


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A file that was checked and kept, and the keys of its rows that training does not use."""

    dataset: Dataset
    unused_keys: tuple[str, ...]


def add_dataset(ctx: Context, member_id: str, path: Path, name: str, row_format: RowFormat = RowFormat.AUTO) -> Dataset:
    """Like `bring`, where the keys of the rows are shown elsewhere."""
    return bring(ctx, member_id, path, name, row_format).dataset


def bring(
    ctx: Context,
    member_id: str,
    path: Path,
    name: str,
    row_format: RowFormat = RowFormat.AUTO,
    *,
    mapping: Mapping[str, Any] = NO_NAMES,
    parent: str = "",
) -> Brought:
    """Check every row of the file and keep it, or the one that `dataset_preparing` makes of it.

    The same bytes again are the same dataset. The row format of the first upload stays the default. The result says how
    the rows were read this time. `mapping` names columns as in a job file. `parent` is the sha256 of the file that this
    one is a clean copy of.
    """
    source = Source(path=path, name=name)
    with in_words(name), prepared([source], file_format(name), row_format, mapping) as ready:
        return keep(ctx, member_id, ready, parent)


def keep(ctx: Context, member_id: str, ready: Prepared, parent: str = "") -> Brought:
    """Check every row of a prepared file and keep it. Raises `DatasetError`."""
    info = inspect(ready.path, ready.row_format, ready.container)
    kept = _kept(ctx, member_id, ready.path, ready.name, info, parent)
    return Brought(dataset=kept, unused_keys=(*ready.unread, *info.unused))


@contextmanager
def in_words(name: str) -> Generator[None]:
    """Name the file in its error."""
    try:
        yield
    except DatasetError as error:
        raise InvalidError(f"{name}: {error}", [("/", str(error))]) from error


def _kept(ctx: Context, member_id: str, path: Path, name: str, info: DatasetInfo, parent: str) -> Dataset:
    found = keep_file(ctx, member_id, path, name, info.type, info.file_format, info.rows, parent)
    as_read = {"row_format": info.type, "rows": info.rows, "file_format": info.file_format}
    return found if found.row_format == info.type else replace(found, **as_read)


def keep_file(
    ctx: Context,
    member_id: str,
    path: Path,
    name: str,
    row_format: str,
    file_format: str,
    rows: int = 0,
    parent: str = "",
) -> Dataset:
    """The file as one of the member's. The same bytes are stored once, as what they were first brought as.

    `rows` and `parent` are those of a data file.
    """
    sha256, now = sha256_file(path), ctx.clock.now()
    upload = Upload(id=new_id("upload", now), sha256=sha256, member_id=member_id, name=name, created_at=now)
    with ctx.uow() as tx:
        known = tx.datasets.get_for_share(sha256)
        if known is not None:
            tx.datasets.add_upload(upload)
    if known is not None:
        return replace(known, name=name, member_id=member_id, created_at=now)
    # A unique key: a late deletion of an earlier file with the same bytes does not touch this one.
    key = f"datasets/{sha256}.{secrets.token_hex(4)}"
    try:
        stored = ctx.stores.local().put(key, path)
    except StoreError as error:
        raise from_store(error) from error
    dataset = Dataset(
        sha256=sha256,
        size=stored.size,
        file_format=file_format,
        row_format=row_format,
        rows=rows,
        name=name,
        member_id=member_id,
        created_at=now,
        key=key,
        parent=parent,
    )
    with ctx.uow() as tx:
        if tx.datasets.add(dataset).key != key:  # the same bytes were uploaded at the same time
            tx.datasets.discard(key)
        tx.datasets.add_upload(upload)
    return dataset


def resolve_dataset(
    ctx: Context, member_id: str, spec: DatasetSpec, pointer: str, given: Collection[str] = ()
) -> DatasetSpec:
    """The entry with its bytes pinned: sha256, container, row format and number of rows.

    `pointer` is the place of its path in the request. `given` are the datasets of a job that the member may clone.
    """
    try:
        dataset = _find(ctx, member_id, spec, given)
    except InvalidError as error:
        raise InvalidError(str(error), [(pointer, m) for _, m in error.problems] or [(pointer, str(error))]) from error
    pins: dict[str, Any] = {
        "sha256": dataset.sha256,
        "file_format": FileFormat(dataset.file_format),
        "type": RowFormat(dataset.row_format),
        "rows": dataset.rows,
    }
    if spec.path.startswith("sha256:"):  # its columns have been read, and the file has the usual ones
        return spec.as_read.model_copy(update=pins | {"path": f"sha256:{dataset.sha256}"})
    return spec.model_copy(update=pins)


def _find(ctx: Context, member_id: str, spec: DatasetSpec, given: Collection[str]) -> Dataset:
    if spec.path.startswith("sha256:"):
        return _uploaded(ctx, member_id, spec, given)
    found = ctx.catalog.dataset(spec.path, spec.split, token_of(ctx, member_id), subset=spec.name)
    sources = [Source(path=each.path, name=each.name) for each in found]
    name = sources[0].name
    with in_words(name), prepared(sources, file_format(name), spec.type, spec.mapping) as ready:
        return keep(ctx, member_id, ready).dataset


def _uploaded(ctx: Context, member_id: str, spec: DatasetSpec, given: Collection[str]) -> Dataset:
    sha256 = spec.path.removeprefix("sha256:")
    with ctx.uow() as tx:
        dataset = tx.datasets.get_of(sha256, member_id)
        if dataset is None and sha256 in given:
            dataset = tx.datasets.get(sha256)
    if dataset is None:
        raise InvalidError(f"There is no dataset {sha256[:12]}. Upload the file first.")
    if dataset.row_format == ADAPTER:
        raise InvalidError(f"{dataset.name} is an adapter and has no rows. Use it as lora_model_dir.")
    if spec.mapping:
        with copied(ctx, dataset) as path, in_words(dataset.name):
            named = Source(path=path, name=dataset.name)
            with prepared([named], FileFormat(dataset.file_format), spec.type, spec.mapping) as ready:
                return keep(ctx, member_id, ready).dataset
    if spec.type in (RowFormat.AUTO, RowFormat(dataset.row_format)):
        return dataset
    return _read_otherwise(ctx, dataset, spec.type)


def _read_otherwise(ctx: Context, dataset: Dataset, row_format: RowFormat) -> Dataset:
    """The same bytes with another row format, if every row has that format."""
    with copied(ctx, dataset) as path:
        try:
            info = inspect(path, row_format, FileFormat(dataset.file_format))
        except DatasetError as error:
            raise InvalidError(f"The uploaded rows are {dataset.row_format}, not {row_format}: {error}") from error
    return replace(dataset, row_format=info.type)


@contextmanager
def copied(ctx: Context, dataset: Dataset, size: int | None = None) -> Generator[Path]:
    """A copy of a stored data file, or of its first `size` bytes, on this computer."""
    store = ctx.stores.local()
    with NamedTemporaryFile() as copy:
        try:
            copy.writelines(store.read(dataset.key) if size is None else [store.head(dataset.key, size)])
        except StoreError as error:
            raise from_store(error) from error
        copy.flush()
        yield Path(copy.name)


def dataset_by_id(ctx: Context, actor: Actor, sha256: str) -> Dataset:
    """A dataset that the actor uploaded. Raises `NotFoundError`, also if only others did."""
    with ctx.uow() as tx:
        dataset = tx.datasets.get_of(sha256, actor.member_id)
    if dataset is None:
        raise NotFoundError(f"There is no dataset {sha256}. List them with `trainhop datasets ls`.")
    if dataset.row_format == ADAPTER:
        raise NotFoundError(f"{dataset.name} is an adapter and has no rows. Jobs use it as lora_model_dir.")
    return dataset


def unused_keys(ctx: Context, spec: JobSpec) -> tuple[str, ...]:
    """Keys in the first rows of a job's files that training does not use."""
    unused = UnusedKeys()
    for entry in spec.datasets:
        with ctx.uow() as tx:
            dataset = tx.datasets.get(entry.sha256 or "")
        if dataset is not None:
            unused.add(keys_of(ctx, replace(dataset, row_format=entry.type)))
    return unused.names


def keys_of(ctx: Context, dataset: Dataset) -> tuple[str, ...]:
    """Keys in the first rows of an uploaded file that training does not use."""
    container, row_format = FileFormat(dataset.file_format), RowFormat(dataset.row_format)
    is_packed = container is FileFormat.PARQUET  # its columns are named at the end
    if is_packed and dataset.size > MAX_PACKED_BYTES:
        return ()
    known = _KEYS.get((dataset.sha256, row_format))
    if known is None:
        with copied(ctx, dataset, None if is_packed else HEAD_BYTES) as head:
            known = _KEYS[dataset.sha256, row_format] = first_keys(head, row_format, container, HEAD_ROWS)
        if len(_KEYS) > MAX_KEYS:
            _KEYS.pop(next(iter(_KEYS)), None)
    return known


def hold(tx: Transaction, member_id: str, hashes: Iterable[str], now: float) -> tuple[int, str] | None:
    """Keep the datasets of a member's job from being deleted until the job is written, and after that for the member.

    Returns the index and the message of the first missing one.
    """
    for place, sha256 in enumerate(hashes):
        dataset = tx.datasets.get_for_share(sha256)
        if dataset is None:
            return place, f"The data file {sha256[:12]} was deleted. Upload it again."
        if tx.datasets.get_of(sha256, member_id) is None:
            given = Upload(
                id=new_id("upload", now), sha256=sha256, member_id=member_id, name=dataset.name, created_at=now
            )
            tx.datasets.add_upload(given)
    return None


def delete_dataset(ctx: Context, actor: Actor, sha256: str, member: str | None = None) -> None:
    """Remove a data file of the actor's or, for admins, of another member's (name or id).

    Its bytes are deleted when the last member who uploaded them has removed them. Ended jobs do not keep them: such
    jobs cannot be retried or cloned until the same bytes are uploaded again. Raises `ConflictError` while an unfinished
    job of that member needs them.
    """
    with ctx.uow() as tx:
        owner = _owner(tx, actor, member)
        dataset = tx.datasets.get_for_update(sha256)
        brought_by = tx.datasets.uploaders(sha256)
        if dataset is None or owner not in brought_by:
            raise NotFoundError(f"There is no dataset {sha256}. List them with `trainhop datasets ls`.")
        _refuse_while_needed(tx, sha256, owner)
        tx.datasets.delete_upload(sha256, owner)
        if brought_by == {owner}:
            tx.datasets.delete(dataset)
            tx.audits.empty_units(sha256)  # its labels stay, its texts do not
    sweep_discarded(ctx)


def _owner(tx: Transaction, actor: Actor, member: str | None) -> str:
    if member is None:
        return actor.member_id
    owner = tx.members.get(member) or tx.members.get_by_name(member)
    if owner is None or not actor.may_see(owner.id):
        raise NotFoundError(f"There is no member {member}. List them with `trainhop members ls`.")
    return owner.id


def _refuse_while_needed(tx: Transaction, sha256: str, member_id: str) -> None:
    job = tx.jobs.find_using_dataset(sha256, member_id)
    if job is not None:
        raise ConflictError(
            f"Job {job.name} ({job.id}) is {job.state.word} and uses this file. "
            "Wait until it has ended, or cancel it first."
        )


def sweep_discarded(ctx: Context) -> None:
    """Delete the objects of deleted datasets and jobs. If a store does not answer, the next round tries again."""
    with ctx.uow() as tx:
        discarded = {key: _stores_of(ctx, tx, key, store) for key, store in tx.datasets.discarded(DISCARDED_AT_ONCE)}
    for key, stores in discarded.items():
        try:
            for name in stores:
                ctx.stores.get(name).delete(key)
        except StoreError:
            continue
        with ctx.uow() as tx:
            tx.datasets.delete_discarded(key)


def _stores_of(ctx: Context, tx: Transaction, key: str, store: str | None) -> list[str]:
    """The store that was named, or that of datasets with those that have a copy for notebooks."""
    if store is not None:
        return [store]
    return [ctx.stores.local().name, *(c.name for c in tx.stores.all() if tx.store_objects.get(c.name, key))]
