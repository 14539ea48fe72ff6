"""The error that a notebook shows to its user."""

from __future__ import annotations


class NotebookError(Exception):
    """One sentence for the person at the notebook. IPython shows it without a traceback."""

    def __str__(self) -> str:
        text = super().__str__()
        return text[:1].upper() + text[1:]

    def _render_traceback_(self) -> list[str]:
        return [str(self)]
