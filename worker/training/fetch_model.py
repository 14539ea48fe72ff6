"""`python -m worker.training.fetch_model NAME`: brings a base model from the hub and prints what came of it, one line of JSON.

A process of its own, because the hub's client can hang in compiled code, and can then only be killed.
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
from worker.shared.process import end_with_the_parent

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
"""What stands beside the weights. It comes first, so that a folder with whole weights is whole."""
OTHERS = ["original/*", "*/*.safetensors", "consolidated*"]
"""The same weights in forms that transformers does not load."""
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a download: a folder, or why there is none.

    `limited` is "too many requests", with the seconds that the hub asks for in `wait_s` (0: it names none). `stalled` is said by
    whoever had to end the download.
    """

    kind: Literal["folder", "missing", "gated", "limited", "full", "away", "stalled"]
    words: str
    wait_s: float = 0.0


class _TooManyRequests(Exception):
    """The hub wants fewer requests from this address; the client itself would wait where nobody sees it."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many requests")
        self.wait_s = wait_s


def cached(name: str) -> Path | None:
    """The folder of a model that lies whole in the hub's cache: one named by its commit, or any while the hub is switched off."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if not constants.HF_HUB_OFFLINE and not _COMMIT.fullmatch(revision):
        return None
    with contextlib.suppress(HFValidationError, LocalEntryNotFoundError):
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=SMALL, ignore_patterns=OTHERS, local_files_only=True
        )
        folder = Path(found)
        if constants.HF_HUB_OFFLINE or _is_whole(folder):
            return folder
    return None


def weights_of(directory: Path) -> list[Path]:
    """The weight files that transformers loads from a folder, whether or not they are there; empty if it names none.

    Others may lie beside them: the same weights in one piece, or in the form of those who made them.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [directory / Path(name).name for name in sorted(shards)]
    return []


def _is_whole(directory: Path) -> bool:
    weights = weights_of(directory)
    told = (directory / "config.json").is_file() and any(directory.glob("*token*"))
    return told and bool(weights) and all(path.is_file() for path in weights)


def attempt(name: str) -> Answer:
    """Bring what is needed of a model, and no more, into the hub's cache; never raises."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Answer(kind="folder", words=str(_bring(name)))
    except _TooManyRequests as error:
        return Answer(kind="limited", words=str(error), wait_s=error.wait_s)
    except GatedRepoError as error:
        return Answer(kind="gated", words=_first_line(error))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        return Answer(kind="missing", words=_first_line(error))
    except Exception as error:  # noqa: BLE001  the client raises a dozen kinds for a hub, or a network, that does not do its work
        if full := full_disk(error):
            return Answer(kind="full", words=full)
        kind = "gated" if _status(error) in (401, 403) else "away"
        return Answer(kind=kind, words=_first_line(error))


def _bring(name: str) -> Path:
    repository, _, revision = name.partition("@")
    folder = _snapshot(repository, revision or None, SMALL)
    # From here on by its commit, so that nothing of another version comes in.
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


def _say_so_when_limited() -> None:
    import httpx
    from huggingface_hub import set_client_factory

    def look(response: httpx.Response) -> None:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            asked = response.headers.get("retry-after", "")
            raise _TooManyRequests(float(asked) if asked.isdecimal() else 0.0)

    set_client_factory(
        lambda: httpx.Client(event_hooks={"response": [look]}, follow_redirects=True, timeout=None)  # noqa: S113  watched
    )


def main() -> None:
    """Download and say what came of it."""
    end_with_the_parent()
    _say_so_when_limited()
    print(json.dumps(asdict(attempt(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
