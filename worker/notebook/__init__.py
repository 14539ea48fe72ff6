"""A worker in a notebook that its owner runs.

Notebooks call it as `trainhop.notebook.run`. Notebooks of earlier versions use `from worker.notebook import run`.
"""

from __future__ import annotations

from typing import Any

from worker.notebook.errors import NotebookError
from worker.notebook.packages import borrowed

__all__ = ["NotebookError", "run"]


def run(code: str, *, server: str | None = None, drive: dict[str, str] | None = None, credentials: Any = None) -> None:
    """Claim the job, train while this session lasts, show progress, save, and release the job.

    `server` is the server's URL. For a server that cannot be called, `drive` holds the addresses of the mailbox
    documents, and `credentials` are the google-auth credentials of the person who runs the notebook. Interrupting the
    cell saves and releases the job at once. Raises `NotebookError` with one sentence if the job was not claimed.
    """
    with borrowed():
        from worker.notebook.http_connection import HttpConnection  # needs the packages of the block
        from worker.notebook.mailbox_connection import MailboxConnection
        from worker.notebook.session import work

        if (server is None) == (drive is None):
            raise NotebookError("The call needs either server= or drive=. Pass one of them.")
        work(code, HttpConnection(server) if server is not None else MailboxConnection(drive or {}, credentials))
