"""The benchmarks of an evaluation: their items, fetched from the hub at a commit and kept by their bytes.

Machines get the items as they get data files. So they need no hub, and the data checks can read the items.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.ports.catalog import DatasetFile
from orchestrator.services.context import Context
from orchestrator.services.data_reading import within_limits
from orchestrator.services.datasets import add_dataset, file_format
from orchestrator.services.hub_tokens import token_of
from worker.shared.benchmark_list import BENCHMARKS, Benchmark
from worker.shared.dataset_files import DatasetError
from worker.shared.dataset_spec import RowFormat
from worker.shared.evaluation_spec import BenchmarkSpec

MAX_KNOWN = 100
"""Files of items that are remembered."""


def pinned_benchmarks(
    ctx: Context, member_id: str, asked: Sequence[BenchmarkSpec], pointer: str, given: Collection[str] = ()
) -> tuple[BenchmarkSpec, ...]:
    """The benchmarks with commit and items pinned.

    `pointer` is the place of the list in the request. `given` are files of a job that the member may clone. Raises
    `InvalidError` or `UnavailableError`, each with one sentence.
    """
    return tuple(_pinned(ctx, member_id, each, f"{pointer}/{place}", given) for place, each in enumerate(asked))


def _pinned(ctx: Context, member_id: str, asked: BenchmarkSpec, pointer: str, given: Collection[str]) -> BenchmarkSpec:
    benchmark = BENCHMARKS[asked.name]
    if asked.sha256 in given and asked.task_sha256 == benchmark.task_sha256:
        return asked
    repo = f"{benchmark.repo}@{asked.revision}" if asked.revision else benchmark.repo
    try:
        file = ctx.catalog.benchmark(repo, benchmark.file, token_of(ctx, member_id))
        sha256, rows = _known(ctx, member_id, benchmark, file)
    except DatasetError as error:
        words = f"The items of {asked.name} cannot be used. {benchmark.file} of {repo}: {error}."
        raise InvalidError(words, [(pointer, words)]) from error
    except UnavailableError as error:
        raise UnavailableError(f"{asked.name}: {error}", retry_after_s=error.retry_after_s) from error
    except InvalidError as error:
        words = f"{asked.name}: {error}"
        raise InvalidError(words, [(pointer, words)]) from error
    pins = {"revision": file.revision, "sha256": sha256, "rows": rows, "task_sha256": benchmark.task_sha256}
    return asked.model_copy(update=pins)


def _known(ctx: Context, member_id: str, benchmark: Benchmark, file: DatasetFile) -> tuple[str, int]:
    """The sha256 of the file of items, and how many there are. It is made once for a commit."""
    key = (benchmark.name, file.revision)
    known = ctx.benchmarks.get(key)
    if known is not None:
        with ctx.uow() as tx:
            if tx.datasets.get(known[0]) is not None:
                return known
    made = _kept(ctx, member_id, benchmark, file.path, file.name)
    if len(ctx.benchmarks) >= MAX_KNOWN:
        ctx.benchmarks.clear()
    ctx.benchmarks[key] = made
    return made


def _kept(ctx: Context, member_id: str, benchmark: Benchmark, path: Path, name: str) -> tuple[str, int]:
    with TemporaryDirectory(prefix="trainhop-benchmark-") as folder:
        out = Path(folder) / "items.jsonl"
        how = {"benchmark": benchmark.name, "out": str(out)}
        answer = within_limits("worker.shared.benchmark_files:made", path, file_format(name), how)
        dataset = add_dataset(ctx, member_id, out, f"{benchmark.name}.jsonl", RowFormat.TEXT)
    return dataset.sha256, answer["items"]
