"""A worker inside a notebook that its owner runs: in Colab, in an interactive Kaggle session, in plain Jupyter.

from worker.notebook import run
run("CODE", server="https://trainhop.example")
"""

from __future__ import annotations

from worker.notebook.errors import NotebookError
from worker.notebook.packages import install, needed

__all__ = ["NotebookError", "run"]


def run(code: str, *, server: str) -> None:
    """Claim the code's job, train while this session lasts, show progress, save, and hand the job back.

    Interrupting the cell saves and hands back at once. Raises `NotebookError`, one sentence, where the job was not claimed.
    """
    install(needed())
    from worker.notebook.session import work  # not importable before

    work(code, server.rstrip("/"))
