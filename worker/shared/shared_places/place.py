"""What a shared place has to do: keep files that never change, and small documents with compare-and-swap."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_DOC_BYTES = 1 << 16
"""Size limit of a document, for example of HEAD."""
READ_BYTES = 8 << 20
"""The usual size of a piece of a file."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file in a place: its name, and its size in bytes."""

    name: str
    size: int


class Place(Protocol):
    """One shared place. Every call may raise `BusyError`, `UnknownError` or `RefusedError`.

    `address` names it for people. A session that holds the place writes HEAD at least every `beat_every_s` seconds. If
    HEAD stays the same for `patience_s`, others may take it over.

    A document is compared by its content, so no content may ever be written twice: each has a fresh nonce. Versions,
    etags and commit ids are the place's own affair, and may change without a change of the document.
    """

    address: str
    beat_every_s: float
    patience_s: float

    def read_doc(self, name: str) -> bytes | None:
        """The document's content, None if there is none. May be older than the newest one."""
        ...

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        """Replace the document's content if it is `expected`; None: if there is none. Raises `LostError`.

        After `UnknownError` it may have happened. The same call may be repeated, and may then raise `LostError` because
        the first one succeeded.
        """
        ...

    def put(self, name: str, source: Path) -> None:
        """Create a file. An existing file of that name stays as it is."""
        ...

    def sha256(self, name: str) -> str:
        """The digest of the bytes as they are stored. Raises `MissingError`."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to `end` (excluded), in pieces. Raises `MissingError`."""
        ...

    def blobs(self) -> list[Blob]:
        """All files, in no particular order. Documents are not listed."""
        ...

    def delete(self, names: Collection[str]) -> None:
        """Delete files so that their space is free again. A missing file is not an error."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


def digest(place: Place, name: str) -> str:
    """The sha256 of a file, from its bytes."""
    found = hashlib.sha256()
    for piece in place.read(name):
        found.update(piece)
    return found.hexdigest()
