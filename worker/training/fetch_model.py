"""`python -m worker.training.fetch_model NAME`: download a base model from the hub.

Prints the result as one line of JSON. It is a separate process, because the hub's client can hang in compiled code and
can then only be killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from worker.agent.limits import full_disk
from worker.shared.model_support import weights_of
from worker.shared.process import end_with_the_parent

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
"""Files beside the weights. They come first, so that a folder with complete weights is complete."""
OTHERS = ["original/*", "*/*.safetensors", "consolidated*"]
"""The same weights in formats that transformers does not load."""
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """The result of a download: a folder, or the reason why there is none.

    `limited` means "too many requests", and `wait_s` is the hub's retry time in seconds (0: none given). `stalled` is
    set by the process that killed the download.
    """

    kind: Literal["folder", "missing", "gated", "limited", "full", "away", "stalled"]
    words: str
    wait_s: float = 0.0


class _TooManyRequests(Exception):
    """The hub limits requests from this address. The client would otherwise wait without a message."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many requests")
        self.wait_s = wait_s


def cached(name: str) -> Path | None:
    """The folder of a model that is complete in the hub's cache, or None.

    Without network access any revision is used, otherwise only one that is named by its commit.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if not constants.HF_HUB_OFFLINE and not _COMMIT.fullmatch(revision):
        return None
    with contextlib.suppress(HFValidationError, LocalEntryNotFoundError):
        snapshot = snapshot_download(
            repository, revision=revision or None, allow_patterns=SMALL, ignore_patterns=OTHERS, local_files_only=True
        )
        folder = Path(snapshot)
        if constants.HF_HUB_OFFLINE or _is_whole(folder):
            return folder
    return None


def _is_whole(directory: Path) -> bool:
    weights = weights_of(directory)
    has_config = (directory / "config.json").is_file() and any(directory.glob("*token*"))
    return has_config and bool(weights) and all(path.is_file() for path in weights)


def attempt(name: str) -> DownloadResult:
    """Download the needed files of a model into the hub's cache. Never raises."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return DownloadResult(kind="folder", words=str(_bring(name)))
    except _TooManyRequests as error:
        return DownloadResult(kind="limited", words=str(error), wait_s=error.wait_s)
    except GatedRepoError as error:
        return DownloadResult(kind="gated", words=_first_line(error))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        return DownloadResult(kind="missing", words=_first_line(error))
    except Exception as error:  # noqa: BLE001  the client raises many types of hub and network errors
        if full := full_disk(error):
            return DownloadResult(kind="full", words=full)
        kind = "gated" if _status(error) in (401, 403) else "away"
        return DownloadResult(kind=kind, words=_first_line(error))


def _bring(name: str) -> Path:
    repository, _, revision = name.partition("@")
    folder = _snapshot(repository, revision or None, SMALL)
    # By commit, so that all files have the same version.
    _snapshot(repository, folder.name, ["model.safetensors"])
    if not (folder / "model.safetensors").exists():
        shards = [path.name for path in weights_of(folder)]
        _snapshot(repository, folder.name, shards or ["*.safetensors"])
    return folder


def _snapshot(repository: str, revision: str | None, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted), ignore_patterns=OTHERS))


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _raise_when_limited() -> None:
    import httpx
    from huggingface_hub import set_client_factory

    def raise_when_limited(response: httpx.Response) -> None:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            retry_after = response.headers.get("retry-after", "")
            raise _TooManyRequests(float(retry_after) if retry_after.isdecimal() else 0.0)

    set_client_factory(
        lambda: httpx.Client(event_hooks={"response": [raise_when_limited]}, follow_redirects=True, timeout=None)  # noqa: S113  the parent process has a timeout
    )


def main() -> None:
    """Download the model and print the result."""
    end_with_the_parent()
    _raise_when_limited()
    print(json.dumps(asdict(attempt(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
