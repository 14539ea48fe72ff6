"""The worker that sessions of a joined machine run: always that of its server."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import worker
from worker.joined.membership import MachineError
from worker.joined.server import Server
from worker.shared import wheel
from worker.shared.files import move_into_place, temporary_folder
from worker.shared.joined_messages import WorkerFile


def code_folder(server: Server, folder: Path, wanted: WorkerFile, python: str) -> Path:
    """The folder that is first on the path of a session. The server's worker is downloaded once, below `folder`.

    The installed worker is used if it is the same and if `python`, which runs it, is this one. Raises `MachineError` or
    `Away`.
    """
    if python == sys.executable and wanted.sha256 == wheel.build(adapters=True).sha256:
        return Path(worker.__file__).parents[1]
    place = folder / f"worker-{wanted.sha256[:16]}"
    if not place.is_dir():
        data = server.worker(wanted.name, wanted.sha256)
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise MachineError("The worker that the server has sent is damaged. Start `trainhop join` again.")
        with temporary_folder(".worker-", folder) as aside:
            zipfile.ZipFile(io.BytesIO(data)).extractall(aside / "new")
            move_into_place(aside / "new", place, durable=False)
    return place
