"""Adapters that jobs continue from: one of a finished job, or one that was uploaded.

The archive of both files is kept as a data file, by its sha256 and for each member who brought it. So it has the rights
of a data file: a hash gives none, it stays while an unfinished job needs it, and a clone keeps it. A job whose adapter
was taken can be deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.domain.storage import ADAPTER, Dataset
from orchestrator.ports.stores import StoreError
from orchestrator.services.access import owned_job
from orchestrator.services.adapter_conflicts import conflicts
from orchestrator.services.adapter_files import AdapterError, AdapterFiles, pack, read_adapter
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied, keep_file
from orchestrator.services.stored_adapters import unpack_adapter
from orchestrator.services.stores import from_store
from worker.shared.adapter_archive import ArchiveError, unpack
from worker.shared.checkpoint_file import sha256_file
from worker.shared.job_spec import JobSpec
from worker.shared.new_tokens import NewTokens
from worker.shared.spec_errors import explain
from worker.shared.start_adapter import WEIGHTS, StartAdapter

POINTER = "/lora_model_dir"
_SHA256 = "sha256:"
MAX_KNOWN = 100
"""Adapters whose files are not read again."""


def bring(ctx: Context, member_id: str, archive: Path, name: str) -> Dataset:
    """Check an uploaded archive of an adapter and keep its two files. Raises `InvalidError`."""
    with _in_words(name), TemporaryDirectory() as work:
        unpack(archive, Path(work) / "adapter")
        read_adapter(Path(work) / "adapter")
        return _kept(ctx, member_id, Path(work), name)


def resolve(
    ctx: Context, actor: Actor, spec: JobSpec, given: Collection[str]
) -> tuple[JobSpec, AdapterFiles | None, tuple[str, ...]]:
    """The spec with the adapter and its settings pinned, what the adapter's files say, and notes for the author.

    `given` are the hashes of files that the actor may read without an upload. Raises `InvalidError`.
    """
    path = spec.lora_model_dir
    if path is None:
        return spec.model_copy(update={"lora_model": None}), None, ()
    with _in_words("lora_model_dir"), TemporaryDirectory() as work:
        if path.startswith(_SHA256):
            start, files = _uploaded(ctx, actor, spec, path.removeprefix(_SHA256), given, Path(work))
        elif path.startswith("job-"):
            start, files = _of_job(ctx, actor, path, Path(work))
        else:
            raise AdapterError(
                f"{path} is neither a job nor an upload. Name a finished job of yours by its id, or a folder of your "
                "computer, which the command line uploads. Of an adapter on a hub, download the folder first."
            )
    return pinned_to(spec, start, files), files, (f"The job continues from {source_of(start)}.",)


def pinned_to(spec: JobSpec, start: StartAdapter, files: AdapterFiles) -> JobSpec:
    """The spec with this adapter and its settings. Raises `InvalidError` for a job that does not fit it."""
    if faults := conflicts(spec, files):
        words = "; ".join(f"{pointer[1:]}: {fault}" for pointer, fault in faults)
        raise InvalidError(f"The job does not fit the adapter that it continues from. {words}", faults)
    taken = {key: value for key, value in files.settings.items() if key not in spec.model_fields_set}
    filled = spec.model_copy(update={"lora_model": start, "lora_model_dir": f"{_SHA256}{start.sha256}", **taken})
    try:
        return JobSpec.model_validate(filled.model_dump(mode="json"))
    except ValidationError as error:
        words = "; ".join(f"{key[1:]}: {fault}" for key, fault in explain(error))
        raise InvalidError(f"The adapter's settings are not those of a job. {words}", [(POINTER, words)]) from error


def source_of(start: StartAdapter) -> str:
    """Where an adapter came from, in words."""
    whose = f"the adapter of job {start.job}" if start.job else "an adapter"
    return f"{whose}{f' ({start.name})' if start.name else ''}, sha256 {start.weights_sha256[:16]}"


def _of_job(ctx: Context, actor: Actor, job_id: str, work: Path) -> tuple[StartAdapter, AdapterFiles]:
    try:
        with ctx.uow() as tx:
            job = owned_job(tx, actor, job_id)
    except TrainhopError as error:  # not there, or not theirs to use
        raise AdapterError(str(error)) from error
    if job.adapter_key is None:
        raise AdapterError(f"Job {job_id} is {job.state.word} and has no adapter. Name a job that has succeeded.")
    if any(job.spec.get(key) for key in NewTokens.model_fields):
        raise AdapterError(f"Job {job_id} has added tokens, and a job cannot continue from such an adapter.")
    known = ctx.start_adapters.get(job.adapter_key)
    if known is not None and _has(ctx, actor, known[0].sha256):
        return known[0].model_copy(update={"name": job.name[:255], "job": job_id}), known[1]
    folder = unpack_adapter(ctx, job, work)
    files = read_adapter(folder)
    kept = _kept(ctx, actor.member_id, work, job.name)
    return _remembered(ctx, job.adapter_key, _named(kept, folder, job.name, job_id), files)


def _uploaded(
    ctx: Context, actor: Actor, spec: JobSpec, sha256: str, given: Collection[str], work: Path
) -> tuple[StartAdapter, AdapterFiles]:
    with ctx.uow() as tx:
        kept = tx.datasets.get_of(sha256, actor.member_id)
        if kept is None and sha256 in given:
            kept = tx.datasets.get(sha256)
    if kept is None:
        raise AdapterError(f"There is no adapter {sha256[:12]}. Upload its folder first.")
    if kept.row_format != ADAPTER:
        raise AdapterError(f"{kept.name} is a file of rows. Name an adapter.")
    known = ctx.start_adapters.get(kept.key)
    if known is None:
        with copied(ctx, kept) as archive:
            unpack(archive, work / "adapter")
        files = read_adapter(work / "adapter")
        known = _remembered(ctx, kept.key, _named(kept, work / "adapter", kept.name, None), files)
    start = known[0].model_copy(update={"name": kept.name[:255]})
    return replace_source(ctx, spec, start), known[1]


def _has(ctx: Context, actor: Actor, sha256: str) -> bool:
    with ctx.uow() as tx:
        return tx.datasets.get_of(sha256, actor.member_id) is not None


def _remembered(ctx: Context, key: str, start: StartAdapter, files: AdapterFiles) -> tuple[StartAdapter, AdapterFiles]:
    """What the file under this key of the store has, so that the next plan does not read it again."""
    ctx.start_adapters[key] = start, files
    if len(ctx.start_adapters) > MAX_KNOWN:
        ctx.start_adapters.pop(next(iter(ctx.start_adapters)), None)
    return start, files


def replace_source(ctx: Context, spec: JobSpec, start: StartAdapter) -> StartAdapter:
    """With the job that the spec says it came from, if that job did end with these weights."""
    said = spec.lora_model
    if said is None or said.job is None or said.sha256 != start.sha256:
        return start
    with ctx.uow() as tx:
        job = tx.jobs.get_many([said.job]).get(said.job)
    if job is None or job.adapter_sha256 != start.weights_sha256:
        return start
    return start.model_copy(update={"job": job.id, "name": job.name})


def _named(kept: Dataset, folder: Path, name: str, job: str | None) -> StartAdapter:
    weights = sha256_file(folder / WEIGHTS)
    return StartAdapter(sha256=kept.sha256, weights_sha256=weights, name=name[:255], job=job)


def _kept(ctx: Context, member_id: str, work: Path, name: str) -> Dataset:
    """The archive of `work/adapter` as a data file of the member."""
    archive = work / "start.zip"
    pack(work / "adapter", archive)
    return keep_file(ctx, member_id, archive, name[:255], ADAPTER, "zip")


@contextmanager
def _in_words(name: str) -> Generator[None]:
    try:
        yield
    except StoreError as error:
        raise from_store(error) from error
    except (AdapterError, ArchiveError) as error:
        raise InvalidError(f"{name}: {error}", [(POINTER, str(error))]) from error
