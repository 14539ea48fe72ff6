"""Models and data sets by name, on the Hugging Face hub and in folders of the operator, and rows as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.job_spec import ENCODING, JobSpec
from worker.shared.memory_estimate import Shape
from worker.shared.new_tokens import NewTokens


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model as it will be loaded: its pinned name and, where known, its parameters, shape and type.

    `positions` is the longest row for which it was trained. `has_position_table` says that longer ones are an error.
    `modules` are the full names of its weights' modules, empty if unknown.
    """

    name: str
    parameters: int | None = None
    shape: Shape | None = None
    kind: str = ""
    positions: int | None = None
    has_position_table: bool = False
    modules: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model in the answer to a search: its id, and what the hub says of it. An empty `licence` is not known."""

    id: str
    parameters: int | None = None
    licence: str = ""
    gated: bool = False
    private: bool = False
    downloads: int = 0


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """A dataset that was fetched to this server. `revision` is the commit of its repository, if it has one."""

    path: Path
    name: str
    revision: str = ""


ROWS_SHOWN = 5


ROWS_MEASURED = 100_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token as text, or several tokens that are one character. `text` is None for tokens that are not shown.

    `cut` tokens are never read.
    """

    text: str | None
    tokens: int
    trained: bool
    cut: bool


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A row in tokens: all of it, the part that is trained on, and the part that is cut off.

    It also counts how many of the cut tokens would have been trained on. `side` names the answer of a row of
    preferences. A text that is split is trained on in `parts` pieces.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    trained: int
    cut: int
    cut_trained: int
    side: str = ""
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class TokenLook:
    """Rows as a session would train on them. `lengths` are in tokens, for as many rows as there was time for.

    `untrained` rows have nothing left to learn once they are cut. `fault` is the error that the session would fail
    with. `untaught` is the same for a job without other data: no row of the file has anything to learn. `findings` are
    sentences about what the model will do differently from what the rows teach. `counts` are for the data checks.
    `away` says why no row could be tokenized.
    """

    shown: tuple[TokenRow, ...] = ()
    lengths: Sequence[int] = ()
    untrained: int = 0
    fault: str = ""
    untaught: str = ""
    findings: Sequence[str] = ()
    counts: TokenFacts | None = None
    away: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a look at the rows of a file has found, for one model. `away` if there was none, `at` the time of it.

    `measured` rows make `pieces` pieces if they are split, and `longer` rows make several.
    """

    at: float
    fault: str = ""
    untaught: str = ""
    findings: tuple[str, ...] = ()
    counts: TokenFacts | None = None
    away: bool = False
    measured: int = 0
    longer: int = 0
    pieces: int = 0


@dataclass(frozen=True, kw_only=True)
class PieceCount:
    """How many `pieces` the training rows of each dataset of a job make. `away` says why they are no more than a guess.

    There are `rows` training rows, and `longer` of them are texts of several pieces.
    """

    pieces: Sequence[int] = ()
    rows: int = 0
    longer: int = 0
    away: str = ""


class Looks(Protocol):
    """Shows the rows of a file as a session would train on them."""

    def has(self, model: str) -> bool:
        """Whether the tokenizer of this pinned model is on the server."""
        ...

    def of(
        self,
        model: str,
        file: Path,
        row_format: RowFormat,
        file_format: FileFormat,
        *,
        sequence_len: int,
        train_on_inputs: bool,
        encoding: int | None = ENCODING,
        rendered_at: float | None = None,
        taught: TaughtTurns | None = None,
        chat_template: str | None = None,
        split_texts: bool = False,
        new_tokens: NewTokens | None = None,
        token: str | None = None,
        local_only: bool = False,
    ) -> TokenLook:
        """The rows with the tokenizer of `model`, read with this hub token. `rendered_at` is the time they name.

        `encoding` is the job's version of the way from rows to tokens, `chat_template` its own template, and
        `new_tokens` has its own tokens. `taught` says which turns are trained on. With `split_texts`, all of a long
        text is read.
        With `local_only` the model is pinned, nothing is downloaded, and a busy server answers soon.
        """
        ...

    def pieces(self, spec: JobSpec, files: Sequence[Path]) -> PieceCount:
        """The pieces of the texts of a pinned job, whose datasets are `files`. Nothing is downloaded.

        Raises `UnavailableError` while the server is busy with others.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a model on the hub: its bytes if it is small, or a `url` that needs no sign-in for a while."""

    name: str
    sha256: str
    size: int
    url: str | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)


class Catalog(Protocol):
    """Looks up models and datasets that a job names, with a member's hub `token` if there is one.

    Raises `InvalidError` in words for what cannot be used, and `UnavailableError` while the hub does not answer.
    """

    def model(self, name: str, token: str | None = None, *, with_modules: bool = False) -> BaseModel:
        """The model of a hub id, pinned to a commit, or of a folder that the operator has allowed.

        `with_modules` asks the hub for the names of its modules too, as far as it tells them in time.
        """
        ...

    def search(self, words: str, token: str | None = None) -> Sequence[FoundModel]:
        """Models that write text and whose name has these words, most downloaded first."""
        ...

    def has_chat_template(self, name: str, token: str | None = None) -> bool | None:
        """Whether a model, named as `model` has pinned it, comes with a chat template. None if that is not known."""
        ...

    def dataset(
        self, path: str, split: str, token: str | None = None, *, subset: str | None = None
    ) -> Sequence[DatasetFile]:
        """The file of a hub dataset or all its shards in order, or one file in a folder the operator has allowed."""
        ...

    def benchmark(self, repo: str, file: str, token: str | None = None) -> DatasetFile:
        """The one file of a hub dataset with a name like the pattern `file`.

        `repo` may name a commit, as `REPO@COMMIT`. Otherwise it is the newest one.
        """
        ...

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        """The files that a machine reads of a gated or private model. Empty for one that it can fetch by itself."""
        ...

    def refuse_without_write(self, repo: str, token: str) -> None:
        """Raise `InvalidError` if the token's account may not write to this repository, or the server is offline."""
        ...

    def whose(self, token: str) -> str:
        """The name of the hub account that a token belongs to."""
        ...
