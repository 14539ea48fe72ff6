"""Training in an open notebook: in Colab, in an interactive Kaggle session, in plain Jupyter.

import trainhop
trainhop.notebook.run("CODE", server="https://trainhop.example")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainhop.own_worker import own_worker

if TYPE_CHECKING:
    from worker.notebook.errors import NotebookError

__all__ = ["NotebookError", "check", "run"]


def __getattr__(name: str) -> Any:
    if name != "NotebookError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with own_worker():
        from worker.notebook.errors import NotebookError

        return NotebookError


def run(code: str, *, server: str | None = None, drive: dict[str, str] | None = None, credentials: Any = None) -> None:
    """Claim the code's job, train while this session lasts, show progress, save, and release the job.

    The server is called at its address. If it cannot be called, `drive` holds the addresses of the documents through
    which it is reached, and `credentials` those of google-auth for the person who runs the notebook. Interrupting the
    cell saves and releases the job at once. Raises `NotebookError`, one sentence, if the job was not claimed.

    You may have a worker.py of your own. After the call `import worker` gets your file. While the call runs it gets our
    package of that name, in all threads.
    """
    with own_worker():
        from worker.notebook import run as train

        train(code, server=server, drive=drive, credentials=credentials)


def check(order: Mapping[str, Any], home: Path) -> None:
    """Answer the probes of a server's `order`. Our packages are in `home / "lib"`.

    Cells that a server makes call this.
    """
    with own_worker():
        from worker.doctor.cell import run as probe

        probe(order, home)
