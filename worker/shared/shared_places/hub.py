"""A private repository on the Hugging Face Hub as a shared place, through the Hub's own client.

The compare-and-swap is a commit with `parent_commit`. A file is a commit of its own, read back before HEAD names it.
Commit ids are never part of the chain: deleting files, or a person's commit, changes them and leaves HEAD as it is.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.shared.hub_names import repo_name
from worker.shared.shared_places.errors import (
    BusyError,
    FullError,
    LostError,
    MissingError,
    PlaceError,
    RefusedError,
    UnknownError,
)
from worker.shared.shared_places.place import MAX_DOC_BYTES, READ_BYTES, Blob, digest

DOCUMENTS = "documents/"
MINE = "~/"
SWAP_TRIES = 4
"""How often a commit is repeated that lost to one that left the document as it is."""
TIMEOUT_S = 120.0
MAX_WAIT_S = 600.0
MAX_WORDS = 200
_BUSY = frozenset({409, 429, 503})
_OWN_FILES = frozenset({".gitattributes", "README.md"})
_NO_SPACE = re.compile(r"storage|quota", re.IGNORECASE)


class HubRepository:
    """A place in this repository, which is created if it is missing. Raises `RefusedError` if it cannot be one.

    `~/NAME` is one of the token's own account.

    The Hub limits commits, so signs of life are five minutes apart.
    """

    beat_every_s = 300.0
    patience_s = 900.0

    def __init__(self, repo: str, *, token: str | None = None, endpoint: str | None = None, api: Any = None) -> None:
        mine = repo.startswith(MINE)
        try:
            repo_name(repo.replace(MINE, "me/", 1))
            self._repo = repo
        except ValueError as error:
            raise RefusedError(f"hf://{repo[:MAX_WORDS]}: {error}") from None
        self.address = f"hf://{repo}"
        self._api = api or _client(endpoint, token)
        self._tip: str | None = None
        self._known: dict[str, tuple[str, bytes]] = {}
        self._prepare(is_mine=mine)

    def _prepare(self, *, is_mine: bool) -> None:
        with self._translated():
            owner, me = self._repo.split("/")[0], self._api.whoami()
        if is_mine:
            self._repo = f"{me['name']}/{self._repo.partition('/')[2]}"
            self.address, owner = f"hf://{self._repo}", me["name"]
        if me["name"].lower() != owner.lower():
            raise RefusedError(
                f"{self.address} belongs to {owner}, but the token belongs to {me['name']}. Write hf://{me['name']}/NAME"
            )
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise RefusedError(f"the Hugging Face token may only read. Create one with write access to {self._repo}")
        try:
            with self._translated():
                info = self._api.repo_info(self._repo)
        except MissingError:
            with self._translated():
                self._api.create_repo(self._repo, private=True, exist_ok=True)
                info = self._api.repo_info(self._repo)
        if not info.private:
            raise RefusedError(
                f"{self.address} is public, and anyone could read the run. Make it private, or name a new repository"
            )
        self._tip = info.sha

    # --- documents ---

    def read_doc(self, name: str) -> bytes | None:
        return self._newest(name)[1]

    def _newest(self, name: str) -> tuple[str, bytes | None]:
        """The newest commit that the Hub shows, and the document in it."""
        with self._translated():
            tip = str(self._api.repo_info(self._repo).sha)
            self._tip = tip
            try:
                return tip, b"".join(self._pieces(DOCUMENTS + name, tip, 0, MAX_DOC_BYTES))
            except MissingError:
                return tip, None

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        tip, content = self._known.pop(name, ("", None))
        for _ in range(SWAP_TRIES):
            if not tip or content != expected:
                tip, content = self._newest(name)
            if content != expected:
                raise LostError(f"{name} in {self.address} was changed by another session")
            try:
                commit = self._commit(f"{name} changes", [self._addition(DOCUMENTS + name, new)], parent=tip)
            except LostError:  # a commit of another file, or the tip was read from an old copy
                tip = ""
                continue
            self._check(name, commit, new)
            self._known[name] = (commit, new)
            return
        raise BusyError(f"{self.address} receives many commits")

    def _check(self, name: str, commit: str, new: bytes) -> None:
        """Raise `UnknownError` unless this commit wrote the document.

        If the Hub has the content already, its client makes no commit, ignores the parent, and returns the newest
        commit of whomever.
        """
        with self._translated():
            if b"".join(self._pieces(DOCUMENTS + name, commit, 0, MAX_DOC_BYTES)) != new:
                raise UnknownError(f"{self.address} answered with another commit")

    def _commit(self, title: str, operations: list[Any], *, parent: str | None = None) -> str:
        with self._translated():
            made = self._api.create_commit(self._repo, operations, commit_message=title, parent_commit=parent)
        self._tip = str(made.oid)
        return self._tip

    @staticmethod
    def _addition(name: str, content: Any) -> Any:
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)

    # --- files ---

    def put(self, name: str, source: Path) -> None:
        if self._is_there(name):
            return
        try:
            with source.open("rb") as file:  # a path would be uploaded in another way than by LFS
                self._commit(f"Add {name}", [self._addition(name, file)])
        except LostError as error:
            raise BusyError(str(error)) from None

    def _is_there(self, name: str) -> bool:
        with self._translated():
            return bool(self._api.get_paths_info(self._repo, [name]))

    def sha256(self, name: str) -> str:
        return digest(self, name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._translated():
            try:
                yield from self._pieces(name, self._tip or "main", start, end)
                return
            except MissingError:  # a commit that is older than the file, or that is gone from the history
                self._tip = str(self._api.repo_info(self._repo).sha)
            yield from self._pieces(name, self._tip, start, end)

    def _pieces(self, name: str, revision: str, start: int, end: int | None) -> Iterator[bytes]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if end is not None and end <= start:
            return
        url = hf_hub_url(self._repo, name, revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token)
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._translated(), get_session().stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416:  # an empty file, or a range after its end
                return
            if answer.is_error:
                answer.read()
            hf_raise_for_status(answer)
            left = None if end is None else end - start
            for piece in answer.iter_bytes(READ_BYTES):
                yield piece if left is None else piece[:left]
                left = None if left is None else max(0, left - len(piece))

    def blobs(self) -> list[Blob]:
        return [Blob(name=file.path, size=file.size) for file in self._files() if not _is_ours(file.path)]

    def _files(self) -> list[Any]:
        with self._translated():
            found = self._api.list_repo_tree(self._repo, recursive=True)
            return [entry for entry in found if hasattr(entry, "size")]

    def delete(self, names: Collection[str]) -> None:
        """Delete the bytes, then the files: whoever is stopped in between finds the files again.

        The history keeps pointers to them, and its commit ids.
        """
        from huggingface_hub import CommitOperationDelete

        files = self._files()
        with self._translated():
            kept = {file.lfs.sha256 for file in files if file.lfs is not None and file.path not in names}
            stored = [file for file in self._api.list_lfs_files(self._repo) if file.filename in names]
            free = [file for file in stored if file.oid not in kept]
            self._api.permanently_delete_lfs_files(self._repo, free, rewrite_history=False)
        if old := [file.path for file in files if file.path in names]:
            with contextlib.suppress(MissingError):  # an earlier attempt succeeded
                self._commit("Delete old checkpoints", [CommitOperationDelete(path_in_repo=path) for path in old])

    def close(self) -> None:
        """The Hub's client keeps its connections."""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            yield
        except LocalTokenNotFoundError:
            raise RefusedError("hf:// needs a Hugging Face token with write access: set HF_TOKEN") from None
        except OfflineModeIsEnabled:
            raise RefusedError("hf:// needs the network, but HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            raise self._meaning(error.response.status_code, error) from None
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):
                raise UnknownError(f"no answer from the Hugging Face Hub ({type(error).__name__})") from None
            raise

    def _meaning(self, status: int, error: Any) -> PlaceError:
        words = f"the Hugging Face Hub answered {status} for {self._repo}"
        said = str(getattr(error, "server_message", "") or "")[:MAX_WORDS]
        if status in _BUSY:
            return BusyError(words, _asked_to_wait(error.response.headers))
        if status in (403, 413) and _NO_SPACE.search(said):
            return FullError(
                f"{self.address} is full: the Hub's limit of private storage is reached. Delete files there"
            )
        if status in (401, 403):
            return RefusedError(f"the Hugging Face token may not write to {self._repo}. Create one with write access")
        kinds: dict[int, type[PlaceError]] = {412: LostError, 404: MissingError}
        return kinds.get(status, UnknownError if status >= 500 else RefusedError)(words)


def _is_ours(path: str) -> bool:
    return path.startswith(DOCUMENTS) or path in _OWN_FILES


def _asked_to_wait(headers: Any) -> float:
    """Seconds, from `Retry-After` or from the reset of a rate limit that is used up."""
    found = re.fullmatch(r"(\d{1,6})", headers.get("Retry-After", "").strip())
    found = found or re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))
    return min(float(found[1]), MAX_WAIT_S) if found else 0.0


def _client(endpoint: str | None, token: str | None) -> Any:
    """The Hub's client with a time limit for its requests, which it has not, and without a warning at each upload."""
    try:
        from huggingface_hub import HfApi, set_client_factory
        from huggingface_hub.utils import _http
    except ImportError:
        raise RefusedError("hf:// needs the package huggingface_hub: pip install huggingface_hub") from None
    api = HfApi(endpoint=endpoint, token=token)
    if getattr(_http._GLOBAL_CLIENT_FACTORY, "is_limited", False):  # noqa: SLF001
        return api

    def limited() -> Any:
        client = _http.default_client_factory()
        client.timeout = TIMEOUT_S
        return client

    logging.getLogger("huggingface_hub._commit_api").addFilter(lambda record: "binary IO buffer" not in str(record.msg))
    limited.is_limited = True  # pyright: ignore[reportFunctionMemberAccess]
    set_client_factory(limited)
    return api
