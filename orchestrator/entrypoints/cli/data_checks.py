"""`trainhop datasets check`: the data checks on this computer. They need no server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.findings import show_report
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put_json, say
from worker.shared.counted_words import many

if TYPE_CHECKING:
    from worker.shared.data_checks.runner import Data, Options, Outcome
    from worker.shared.data_checks.token_facts import TokenFacts
    from worker.shared.dataset_spec import RowFormat


def check_dataset(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSONL, CSV or Parquet file of this computer.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A folder or a Hugging Face model. Its tokenizer is needed for two checks."),
    ] = None,
    sequence_len: Annotated[int, typer.Option(min=8, help="Maximum tokens per row, as in the job file.")] = 1024,
    train_on_inputs: Annotated[bool, typer.Option("--train-on-inputs", help="As in the job file.")] = False,
    row_format: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="The row format, as in the job file.")
    ] = "auto",
    columns: Annotated[
        str, typer.Option(metavar="YAML", help="Names of columns as in a job file, such as 'field_messages: turns'.")
    ] = "",
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Validation rows of your own, to find leaks and a shift.")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Items of a benchmark that you will use, as JSON lines. Repeatable."),
    ] = None,
    phrases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More phrases of refusals and boilerplate, one per line.")
    ] = None,
    clean_file: Annotated[
        Path | None,
        typer.Option("--clean", metavar="OUT", help="Write a copy without the rows that were found, as JSON lines."),
    ] = None,
    clean_validation: Annotated[
        Path | None, typer.Option(metavar="OUT", help="The same for the validation rows: a copy without the leaks.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Look for faults in a data file: copies, leaks, contradictions, keys, personal data, and more.

    No server is needed. The exit code is 1 if a job with this file would be refused.
    """
    # The checks need NumPy, and other commands do not wait for it.
    from worker.shared.data_checks.runner import Options
    from worker.shared.dataset_files import DatasetError

    if clean_validation is not None and validation is None:
        raise CommandError(Exit.USAGE, "--clean-validation needs --validation")
    kind = _row_format(row_format)
    _refuse_same([file, validation], [clean_file, clean_validation])
    try:
        with ExitStack() as files:
            data = files.enter_context(_ready(file, kind, columns))
            compared = None if validation is None else files.enter_context(_ready(validation, kind, columns))
            options = Options(
                validation=compared,
                benchmarks=dict(_benchmark(text) for text in benchmark or ()),
                phrases=phrases,
                tokens=_tokens(data.path, data.row_format, model, sequence_len, train_on_inputs=train_on_inputs),
            )
            outcome = _checked(data, options)
            if clean_file is not None:
                _write(data.path, outcome.left_out, clean_file)
            if clean_validation is not None and compared is not None:
                _write(compared.path, outcome.left_out_validation, clean_validation)
    except DatasetError as error:
        raise CommandError(Exit.FAILED, f"{file}: {clean(error)}") from error
    report = outcome.report.to_json()
    if as_json:
        put_json(report)
    else:
        show_report(report)
    if any(finding.level == "stop" for finding in outcome.report.findings):
        raise typer.Exit(int(Exit.FAILED))


def _checked(data: Data, options: Options) -> Outcome:
    from worker.shared.data_checks.runner import check

    return check(data, options)


@contextmanager
def _ready(file: Path, row_format: RowFormat, columns: str) -> Iterator[Data]:
    """The file as machines read it, as a server would make it of an upload."""
    from orchestrator.domain.errors import InvalidError
    from orchestrator.services.dataset_preparing import Source, prepared
    from orchestrator.services.datasets import file_format
    from orchestrator.services.named_columns import named_columns
    from worker.shared.data_checks.runner import Data
    from worker.shared.dataset_files import detect_file_format

    try:
        mapping = named_columns(columns, row_format)
    except InvalidError as error:
        raise CommandError(Exit.USAGE, f"--columns: {error}") from error
    try:
        container = file_format(file.name)
    except InvalidError:  # the checks read a file whatever its name is
        container = detect_file_format(file)
    with prepared([Source(path=file, name=file.name)], container, row_format, mapping) as ready:
        known = None if ready.path == file else ready.container
        yield Data(path=ready.path, row_format=ready.row_format, container=known)


def _row_format(name: str) -> RowFormat:
    from worker.shared.dataset_spec import RowFormat

    if name not in list(RowFormat):
        raise CommandError(Exit.USAGE, f"--type {name}: expected one of {', '.join(RowFormat)}")
    return RowFormat(name)


def _refuse_same(sources: list[Path | None], copies: list[Path | None]) -> None:
    taken = {path.resolve() for path in sources if path is not None}
    for copy in copies:
        if copy is not None and copy.resolve() in taken:
            raise CommandError(Exit.USAGE, f"{copy}: the copy needs a name of its own")
        taken |= set() if copy is None else {copy.resolve()}


def _benchmark(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise CommandError(Exit.USAGE, f"--benchmark {text}: expected NAME=FILE")
    return name, Path(path)


def _write(file: Path, left_out: frozenset[int], copy: Path) -> None:
    """Write the copy at once, or nothing."""
    from worker.shared.data_checks.clean_copy import write_clean

    with tempfile.NamedTemporaryFile(dir=copy.resolve().parent, prefix=".clean-", delete=False) as out:
        try:
            kept = write_clean(file, None, left_out, out)
            Path(out.name).chmod(0o644)
            Path(out.name).replace(copy)
        finally:
            Path(out.name).unlink(missing_ok=True)
    say(f"{copy}: {many(kept, 'row')}, {len(left_out)} left out")


def _tokens(
    file: Path, row_format: RowFormat, model: str | None, sequence_len: int, *, train_on_inputs: bool
) -> TokenFacts:
    from worker.shared.data_checks.token_facts import TokenFacts

    if model is None:
        return TokenFacts(away="no tokenizer; name a model with --model")
    from orchestrator.adapters.token_preview import TokenLooks

    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    return TokenLooks(None, offline=False).counts(
        name, file.resolve(), row_format, sequence_len=sequence_len, train_on_inputs=train_on_inputs
    )
