"""`python -m tests.notebook.execute FILE`: what Run all does; the notebook with its outputs replaces the file.

In a process of its own: a kernel that is killed leaves its client with sockets and an event loop that nobody closes.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


def main(path: Path) -> None:
    """Execute the notebook; the kernel's process id is in `FILE.kernel` as soon as a cell runs."""
    notebook = nbformat.read(path, 4)

    def note_kernel(**_: Any) -> None:
        path.with_suffix(".kernel").write_text(str(cast("Any", client.km).provisioner.process.pid))

    client = NotebookClient(
        notebook,
        timeout=None,  # whoever opened it ends it
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=note_kernel,
    )
    with suppress(CellExecutionError, DeadKernelError):
        client.execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
