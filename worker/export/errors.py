"""Why an export was refused, in one sentence with the remedy."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot be made from these files, or on this computer. Nothing was published."""


class RoomError(ExportError):
    """This computer has too little memory or disk, or lacks a package. `cause` is one of `worker.shared.causes`."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class CheckError(ExportError):
    """The finished files do not compute what base model and adapter compute. Nothing was published."""
