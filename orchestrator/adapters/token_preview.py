"""Rows token by token, as the worker's own code sees them, from a process with little time and memory.

See `worker.training.token_preview`: a chat template is a program and a tokenizer's files may come from anybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import worker
from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.ports.providers import ROWS_MEASURED, ROWS_SHOWN, Catalog, Piece, TokenLook, TokenRow
from worker.shared.messages import FileFormat, RowFormat

CPU_S = 15
"""Of computing; what has given no answer by then goes round in circles."""
WAIT_S = 60.0
MEASURE_S = 5.0
AT_ONCE = 2
FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
MAX_BYTES = 64 << 20
"""Of tokenizer files fetched from the hub."""
HUB_TIMEOUT_S = 10.0
NOT_HERE = "the model's tokenizer is not on this computer"
_PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")


class TokenLooks:
    """Looks at a data file with a model's tokenizer and chat template, where these can be had."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        offline: bool,
        cpu_s: int = CPU_S,
        endpoint: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """`endpoint` and `cache` stand in for the hub's address and the client's own folder, for tests."""
        self._catalog, self._offline, self._cpu_s = catalog, offline, cpu_s
        self._endpoint, self._cache = endpoint, cache
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
        token: str | None = None,
    ) -> TokenLook:
        """What the job's worker would see, read with this hub token; `away` says in words why there is nothing."""
        try:
            folder = self._folder(model, token)
        except (InvalidError, UnavailableError) as error:
            return TokenLook(away=str(error))
        except Exception:  # noqa: BLE001  the hub's client raises a dozen kinds
            return TokenLook(away=NOT_HERE)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return TokenLook(away=NOT_HERE)
        request = {
            "tokenizer": str(folder),
            "file": str(file),
            "row_format": str(row_format),
            "file_format": str(file_format),
            "sequence_len": sequence_len,
            "train_on_inputs": train_on_inputs,
            "rows_shown": ROWS_SHOWN,
            "rows_measured": ROWS_MEASURED,
            "seconds": MEASURE_S,
            "cpu_s": self._cpu_s,
        }
        if not self._room.acquire(timeout=WAIT_S):
            return TokenLook(away="others are looking at their data; try again in a moment")
        try:
            return self._ask(request)
        finally:
            self._room.release()

    def _folder(self, model: str, token: str | None) -> Path:
        name = self._catalog.model(model, token).name
        if Path(name).is_absolute():
            return Path(name)
        from huggingface_hub import HfApi, snapshot_download

        repo, _, revision = name.partition("@")
        if not self._offline:
            api = HfApi(endpoint=self._endpoint, token=token or False)
            info = api.model_info(repo, revision=revision or None, files_metadata=True, timeout=HUB_TIMEOUT_S)
            sizes = [s.size or 0 for s in info.siblings or () if any(fnmatch(s.rfilename, f) for f in FILES)]
            if sum(sizes) > MAX_BYTES:
                raise InvalidError(
                    f"the tokenizer of {model} takes {sum(sizes) >> 20} MiB: it is not fetched for a look"
                )
        found = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=FILES,
            local_files_only=self._offline,
            token=token or False,  # never the operator's own
            endpoint=self._endpoint,
            cache_dir=self._cache,
        )
        return Path(found)

    def _ask(self, request: dict[str, Any]) -> TokenLook:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "PYTHONPATH": str(Path(worker.__file__).parent.parent),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "critical",
        }
        with tempfile.TemporaryDirectory(prefix="trainhop-look-") as folder:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "worker.training.token_preview"],
                    input=json.dumps(request),
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env=environment,
                    timeout=WAIT_S,
                    check=False,
                )
                return _as_look(json.loads(done.stdout.splitlines()[-1]))
            except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
                return TokenLook(away=f"the model's tokenizer and chat template gave no answer in {self._cpu_s} s")


def _as_look(answer: dict[str, Any]) -> TokenLook:
    rows: Any = answer.pop("shown", ())
    shown = tuple(TokenRow(**row | {"pieces": tuple(Piece(**piece) for piece in row["pieces"])}) for row in rows)
    return TokenLook(shown=shown, **answer)
