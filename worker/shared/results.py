"""What a session ends with: the files of its last message, which are in the store by then."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from worker.shared.wire import Bytes, Count, Line, Sha256, Text, Wire, first_entries

MAX_EXPORT_FILES = 64
MAX_EXPORT_BYTES = 256 << 30
"""Of all files of an export together."""
_MAX_COMMANDS = 8
_MAX_NOTES = 16

Key = Annotated[Text, Field(max_length=255)]
_Commands = Annotated[dict[Line, Text], first_entries(_MAX_COMMANDS)]
_Ratio = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class ExportedAdapter(Wire):
    """The PEFT folder as a zip file under a grant. `adapter_sha256` is the hash of its `adapter_model.safetensors`."""

    key: Key
    sha256: Sha256
    size: Bytes
    adapter_sha256: Sha256


class StoredAnswers(Wire):
    """The answers file of an evaluation (`worker.shared.answers_file`) under a grant."""

    key: Key
    sha256: Sha256
    size: Bytes


class ExportedFile(Wire):
    """One file of an export under a grant. `name` is its name in the folder of the export."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    key: Key
    sha256: Sha256
    size: Bytes


class ExportCheck(Wire):
    """How far the export is from base model and adapter, over `tokens` tokens of a probe.

    `error` is relative to the size of the logits, `same` the share of tokens with the same next one. `adapter_effect`
    is how far the adapter moves the logits of the base model.
    """

    error: _Ratio
    same: _Ratio
    tokens: Count
    adapter_effect: _Ratio


class Nf4Difference(Wire):
    """How far the original base model is from its NF4 form, relative to its size."""

    weights: _Ratio
    logits: _Ratio


class ExportReport(Wire):
    """What `worker.export` says of an export. Commands call the folder of the export `path`."""

    format: Line
    type: Line
    path: Line
    architecture: Line
    base: Text
    onto: Line | None = None
    trained_on: Line
    nf4_difference: Nf4Difference | None = None
    check: ExportCheck
    notes: Annotated[tuple[Text, ...], Field(max_length=_MAX_NOTES)] = ()
    commands: _Commands


class StoredExport(Wire):
    """An export: its files in the store, and its report."""

    files: Annotated[tuple[ExportedFile, ...], Field(min_length=1, max_length=MAX_EXPORT_FILES)]
    report: ExportReport
