"""A place without a working compare-and-swap: each version of a document is a file with a name of its own.

Nothing is overwritten, so nothing is lost. But two sessions can continue from the same version. Each of them, and
whoever reads next, finds the two versions of the same number and refuses to choose.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from worker.shared.shared_places.errors import ForkError, LostError
from worker.shared.shared_places.place import MAX_DOC_BYTES, Blob, Place

NOTE = (
    "This place does not support compare-and-swap. Run only one session at a time: if two run, Trainhop reports it and "
    "continues neither."
)
VERSIONS = "versions/"
KEPT_VERSIONS = 100
_NAME = re.compile(rf"{VERSIONS}(?P<doc>.+)/(?P<number>\d{{8}})-[0-9a-f]{{16}}")


class SingleWriter:
    """The same place with documents made of files."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.address, self.beat_every_s, self.patience_s = place.address, place.beat_every_s, place.patience_s

    def read_doc(self, name: str) -> bytes | None:
        versions = self._versions(name)
        return self._content(versions) if versions else None

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        if self.read_doc(name) != expected:
            raise LostError(f"{name} in {self.address} was changed by another session")
        before = self._versions(name)
        number = max(before, default=0) + 1
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "version"
            source.write_bytes(new)
            self._place.put(f"{VERSIONS}{name}/{number:08d}-{secrets.token_hex(8)}", source)
        self._content(self._versions(name))
        self._place.delete([old for n, names in before.items() if n < number - KEPT_VERSIONS for old in names])

    def _versions(self, name: str) -> dict[int, list[str]]:
        """Names of files by the number of their version."""
        versions: dict[int, list[str]] = {}
        for blob in self._place.blobs():
            if (found := _NAME.fullmatch(blob.name)) and found["doc"] == name:
                versions.setdefault(int(found["number"]), []).append(blob.name)
        return versions

    def _content(self, versions: dict[int, list[str]]) -> bytes:
        if forked := [number for number, names in sorted(versions.items()) if len(names) > 1]:
            names = " and ".join(sorted(versions[forked[0]]))
            raise ForkError(
                f"Two sessions wrote to {self.address} at the same time: {names}. Stop both and delete the files of one"
            )
        return b"".join(self._place.read(versions[max(versions)][0], 0, MAX_DOC_BYTES))

    # --- files ---

    def put(self, name: str, source: Path) -> None:
        self._place.put(name, source)

    def sha256(self, name: str) -> str:
        return self._place.sha256(name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return self._place.read(name, start, end)

    def blobs(self) -> list[Blob]:
        return [blob for blob in self._place.blobs() if not blob.name.startswith(VERSIONS)]

    def delete(self, names: Collection[str]) -> None:
        self._place.delete(names)

    def close(self) -> None:
        self._place.close()
