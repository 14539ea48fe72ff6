"""Rows token by token as the worker's code encodes them, from a process with limited time and memory.

See `worker.training.token_preview`. A chat template is a program, and a tokenizer's files may be untrusted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import worker
from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.ports.catalog import ROWS_MEASURED, ROWS_SHOWN, Catalog, Piece, PieceCount, TokenLook, TokenRow
from worker.shared.data_checks.token_facts import TokenFacts, facts_of
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.job_spec import ENCODING, JobSpec
from worker.shared.limited_call import LITTLE_MEMORY
from worker.shared.new_tokens import NewTokens
from worker.shared.package_folder import search_path
from worker.shared.process import variables

CPU_S = 15
"""Limit of computing time. A process that has no result by then is in an endless loop."""
WAIT_S = 60.0
MEASURE_S = 5.0
PIECES_CPU_S, PIECES_WAIT_S = 20, 30.0
ROWS_COUNTED, COUNT_S, COUNT_CPU_S = 2_000, 20.0, 30
"""Rows, evenly from a file, whose ends and lengths are counted."""
AT_ONCE = 2
FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
MAX_BYTES = 64 << 20
"""Limit for tokenizer files from the hub."""
HUB_TIMEOUT_S = 10.0
BUSY = "the server is busy with other previews. Try again in a moment"
NOT_HERE = "the model's tokenizer is not on this computer"


class TokenLooks:
    """Previews a data file with a model's tokenizer and chat template, if they are available."""

    def __init__(
        self,
        catalog: Catalog | None,
        *,
        offline: bool,
        cpu_s: int = CPU_S,
        pieces_cpu_s: int = PIECES_CPU_S,
        endpoint: str | None = None,
        cache: Path | None = None,
        packages: str = "",
    ) -> None:
        """Without a `catalog` only `counts` can be used. `endpoint` and `cache` replace the hub's, for tests.

        `packages` are more folders of Python packages, as in PYTHONPATH.
        """
        self._catalog, self._offline, self._cpu_s, self._pieces_cpu_s = catalog, offline, cpu_s, pieces_cpu_s
        self._endpoint, self._cache, self._packages = endpoint, cache, packages
        self._room = threading.BoundedSemaphore(AT_ONCE)

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
        """The rows as the job's worker would encode them. Implements `ports.Looks`.

        `away` is the reason why there is no preview.
        """
        request = {
            "file": str(file),
            "row_format": str(row_format),
            "file_format": str(file_format),
            "sequence_len": sequence_len,
            "train_on_inputs": train_on_inputs,
            "encoding": encoding,
            "rendered_at": rendered_at,
            "taught": taught.model_dump() if taught is not None else {},
            "chat_template": chat_template,
            "split_texts": split_texts,
            "rows_shown": ROWS_SHOWN,
            "rows_measured": ROWS_MEASURED,
            "seconds": MEASURE_S,
            "cpu_s": self._cpu_s,
        }
        request |= new_tokens.model_dump(include=set(NewTokens.model_fields)) if new_tokens is not None else {}
        return _as_look(self._answer("token_preview", model, request, token=token, local_only=local_only))

    def counts(
        self, model: str, file: Path, row_format: RowFormat, *, sequence_len: int, train_on_inputs: bool
    ) -> TokenFacts:
        """What the data checks need of the tokenizer of a model."""
        request = {
            "file": str(file),
            "row_format": str(row_format),
            "sequence_len": sequence_len,
            "train_on_inputs": train_on_inputs,
            "rows": ROWS_COUNTED,
            "seconds": COUNT_S,
            "cpu_s": COUNT_CPU_S,
        }
        return facts_of(self._answer("token_counts", model, request))

    def pieces(self, spec: JobSpec, files: Sequence[Path]) -> PieceCount:
        """The pieces of the texts of a pinned job. Implements `ports.Looks`."""
        request = {
            "files": [str(file) for file in files],
            "spec": spec.model_dump(mode="json"),
            "cpu_s": self._pieces_cpu_s,
        }
        found = self._answer("piece_counts", spec.base_model, request, local_only=True, wait_s=PIECES_WAIT_S)
        if found.get("away") == BUSY:
            raise UnavailableError(f"{BUSY[0].upper()}{BUSY[1:]}.")
        return PieceCount(**found)

    def _answer(
        self,
        program: str,
        model: str,
        request: dict[str, Any],
        *,
        token: str | None = None,
        local_only: bool = False,
        wait_s: float = WAIT_S,
    ) -> dict[str, Any]:
        """What `worker.training.<program>` answers about the model's tokenizer, or `away` with the reason."""
        try:
            name = model if local_only or self._catalog is None else self._catalog.model(model, token).name
            folder = self._folder(name, token, offline=self._offline or local_only)
        except (InvalidError, UnavailableError) as error:
            return {"away": str(error)}
        except Exception:  # noqa: BLE001  the hub's client raises many types
            return {"away": NOT_HERE}
        if not _has_tokenizer(folder):
            return {"away": NOT_HERE}
        if not self._room.acquire(timeout=MEASURE_S if local_only else WAIT_S):
            return {"away": BUSY}
        try:
            return self._ask(program, request | {"tokenizer": str(folder)}, wait_s)
        finally:
            self._room.release()

    def has(self, model: str) -> bool:
        """Whether the tokenizer of this pinned model is on the server."""
        try:
            return _has_tokenizer(self._folder(model, None, offline=True))
        except Exception:  # noqa: BLE001  the hub's client raises many types
            return False

    def _folder(self, name: str, token: str | None, *, offline: bool) -> Path:
        if Path(name).is_absolute():
            return Path(name)
        from huggingface_hub import HfApi, snapshot_download

        repo, _, revision = name.partition("@")
        if not offline:
            api = HfApi(endpoint=self._endpoint, token=token or False)
            info = api.model_info(repo, revision=revision or None, files_metadata=True, timeout=HUB_TIMEOUT_S)
            sizes = [s.size or 0 for s in info.siblings or () if any(fnmatch(s.rfilename, f) for f in FILES)]
            if sum(sizes) > MAX_BYTES:
                raise InvalidError(
                    f"the tokenizer of {repo} has {sum(sizes) >> 20} MiB, which is too large for a preview"
                )
        found = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=FILES,
            local_files_only=offline,
            token=token or False,  # never the operator's token
            endpoint=self._endpoint,
            cache_dir=self._cache,
        )
        return Path(found)

    def _ask(self, program: str, request: dict[str, Any], wait_s: float) -> dict[str, Any]:
        environment = variables() | LITTLE_MEMORY
        environment |= {
            "PYTHONPATH": search_path([Path(worker.__file__).parent.parent], self._packages),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "critical",
        }
        with tempfile.TemporaryDirectory(prefix="trainhop-look-") as folder:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", f"worker.training.{program}"],
                    input=json.dumps(request),
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env=environment,
                    timeout=wait_s,
                    check=False,
                )
                return json.loads(done.stdout.splitlines()[-1])
            except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
                limit = request["cpu_s"]
                return {"away": f"the model's tokenizer and chat template did not finish within {limit} s"}


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _as_look(answer: dict[str, Any]) -> TokenLook:
    rows: Any = answer.pop("shown", ())
    counts: Any = answer.pop("counts", None)
    shown = tuple(TokenRow(**row | {"pieces": tuple(Piece(**piece) for piece in row["pieces"])}) for row in rows)
    return TokenLook(shown=shown, counts=facts_of(counts) if counts else None, **answer)
