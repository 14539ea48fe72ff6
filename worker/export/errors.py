"""Why an export was refused, in one sentence with the remedy."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot be made from these files, or on this computer. Nothing was published."""


class CheckError(ExportError):
    """The finished files do not compute what base model and adapter compute. Nothing was published."""
