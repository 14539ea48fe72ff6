"""What lies on the emulated hub, and who may see and read it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class RefusedError(Exception):
    """A refusal as the hub words it: a status, and headers that its client reads."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Commit:
    """A commit that was pushed, with the title and the description that it was given."""

    oid: str
    title: str
    message: str = ""


@dataclass(kw_only=True)
class Repo:
    """A repository of one commit, or of those in `history`, oldest first.

    `readers` are the accounts that may read it where it is gated or private.

    `snapshots` are the files of those commits. `lost` are large files by sha256 that were deleted for ever. While `lag`
    counts down, the commit before the newest is shown as the newest.

    `large` names the files that are kept apart and reached by a redirect: weights always are. With `xet` those have a
    Xet address, too, behind which nobody answers.
    """

    id: str
    files: Mapping[str, bytes]
    kind: str = "model"
    gated: bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set[str])
    large: frozenset[str] = frozenset()
    xet: bool = False
    parameters: int | None = None
    licence: str = ""
    downloads: int = 0
    history: list[Commit] = field(default_factory=list)
    snapshots: dict[str, Mapping[str, bytes]] = field(default_factory=dict[str, Mapping[str, bytes]])
    lost: set[str] = field(default_factory=set[str])
    lag: int = 0

    def shown(self) -> str:
        """The commit that is shown as the newest one: an older one while `lag` counts down."""
        if self.lag and len(self.history) > 1:
            self.lag -= 1
            return self.history[-2].oid
        return self.commit

    def files_at(self, revision: str) -> Mapping[str, bytes]:
        """The files of a commit, without large ones whose bytes were deleted for ever."""
        files = self.snapshots.get(revision, self.files)
        return {name: data for name, data in files.items() if hashlib.sha256(data).hexdigest() not in self.lost}

    @property
    def commit(self) -> str:
        """Forty hex digits: the newest commit, or ones that depend on the name and the bytes."""
        if self.history:
            return self.history[-1].oid
        digest = hashlib.sha1(self.id.encode(), usedforsecurity=False)
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()

    def is_large(self, name: str) -> bool:
        """Whether the file is kept apart."""
        return name in self.large or name.endswith((".safetensors", ".parquet"))

    def etag(self, name: str) -> str:
        """A large file's sha256, a small one's id in git."""
        return etag(self.files[name], is_large=self.is_large(name))

    def see(self, account: str | None) -> None:
        """Raise unless the account may know of the repository."""
        if self.private and account not in self.readers:
            raise missing(account)

    def is_seen(self, account: str | None) -> bool:
        """Whether the account may know of the repository."""
        return not self.private or account in self.readers

    def listed(self, told: frozenset[str]) -> dict[str, Any]:
        """Its entry in the answer to a search: the id, and of the other facts those that are in `told`."""
        said = self.info(blobs=False)
        said |= {"downloads": self.downloads, "tags": ["text-generation", *self._licence_tag()]}
        return {"id": self.id, "modelId": self.id} | {key: value for key, value in said.items() if key in told}

    def _licence_tag(self) -> list[str]:
        return [f"license:{self.licence}"] if self.licence else []

    def read(self, account: str | None) -> None:
        """Raise unless the account may read its files."""
        self.see(account)
        if self.gated and account not in self.readers:
            words = f"Access to {self.kind} {self.id} is restricted."
            raise RefusedError(401 if account is None else 403, words, "GatedRepo")

    def at(self, revision: str) -> None:
        """Raise unless there is such a revision."""
        if revision not in ("main", self.commit, *(one.oid for one in self.history)):
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def info(self, *, blobs: bool) -> dict[str, Any]:
        """What the API says of it."""
        siblings = [{"rfilename": name} | (self._blob(name) if blobs else {}) for name in self.files]
        said: dict[str, Any] = {
            "id": self.id,
            "sha": self.shown(),
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "siblings": siblings,
        }
        if self.parameters is not None:
            said["safetensors"] = {"parameters": {"F32": self.parameters}, "total": self.parameters}
        return said

    def _blob(self, name: str) -> dict[str, Any]:
        size = len(self.files[name])
        found: dict[str, Any] = {"size": size, "blobId": self.etag(name)[:40]}
        if self.is_large(name):
            found["lfs"] = {"size": size, "sha256": self.etag(name), "pointerSize": 134}
        return found

    def tree(self) -> list[dict[str, Any]]:
        """The listing of all its files."""
        found: list[dict[str, Any]] = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": self.etag(name)[:40]}
            if self.is_large(name):
                entry["lfs"] = {"size": len(data), "oid": self.etag(name), "pointerSize": 134}
            found.append(entry)
        return found


def etag(data: bytes, *, is_large: bool) -> str:
    """A large file's sha256, a small one's id in git."""
    if is_large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def checked(*, xet: bool = False) -> Repo:
    """The public repository that a check of a machine asks for."""
    return Repo(id="hf-internal-testing/tiny-random-gpt2", files={"model.safetensors": b"weights" * 1000}, xet=xet)


def missing(account: str | None) -> RefusedError:
    """The hub does not tell strangers what there is."""
    if account is None:
        return RefusedError(401, "Invalid username or password.")
    return RefusedError(404, "Repository not found", "RepoNotFound")
