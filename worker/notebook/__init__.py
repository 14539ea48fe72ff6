"""A worker inside a notebook that its owner runs: in Colab, in an interactive Kaggle session, in plain Jupyter.

from worker.notebook import run
run("CODE", server="https://trainhop.example")
"""

from __future__ import annotations

from typing import Any

from worker.notebook.errors import NotebookError
from worker.notebook.packages import borrowed

__all__ = ["NotebookError", "run"]


def run(code: str, *, server: str | None = None, drive: dict[str, str] | None = None, credentials: Any = None) -> None:
    """Claim the code's job, train while this session lasts, show progress, save, and hand the job back.

    The server is called at its address; one that cannot be called is reached by the documents at the addresses in `drive`,
    with google-auth's `credentials` of the person who runs the notebook. Interrupting the cell saves and hands back at once.
    Raises `NotebookError`, one sentence, where the job was not claimed.
    """
    with borrowed():
        from worker.notebook.calling import Calling  # these import what may have been lacking a moment ago
        from worker.notebook.session import work
        from worker.notebook.writing import Writing

        if (server is None) == (drive is None):
            raise NotebookError("either server= or drive= says where the job comes from")
        work(code, Calling(server) if server is not None else Writing(drive or {}, credentials))
