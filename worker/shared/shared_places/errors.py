"""What a shared place can answer other than yes. Messages are sentences for people and never contain a token.

PlaceError
├── LostError        somebody else moved the document: this write did not happen
├── BusyError        the place is occupied: repeat the same write later
├── UnknownError     no usable answer: the write may have happened or not
├── MissingError     there is no such file
├── DamagedError     what is stored differs from what was written
└── RefusedError     a person has to change something first
    ├── FullError
    ├── OtherJobError
    └── ForkError
"""

from __future__ import annotations


class PlaceError(Exception):
    """A shared place did not do what it was asked for."""


class LostError(PlaceError):
    """The document is no longer what the writer expected."""


class BusyError(PlaceError):
    """Nothing was changed. Repeat it, after `after_s` seconds if the place named a time."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class UnknownError(PlaceError):
    """There was no usable answer. Read again to find out what happened."""


class MissingError(PlaceError):
    """There is no such file."""


class DamagedError(PlaceError):
    """The stored bytes are not those that were written."""


class RefusedError(PlaceError):
    """The place cannot be used like this. Repeating does not help."""


class FullError(RefusedError):
    """The place has no space left."""


class OtherJobError(RefusedError):
    """The place contains the run of another job."""


class ForkError(RefusedError):
    """Two sessions have continued from the same checkpoint. They are never merged."""
