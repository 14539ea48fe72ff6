"""What a Colab machine runs beside its kernel: unpack the worker, start it, write its output down in pieces, end in time.

Needs nothing but Python. It lies in a folder with `plan.json` and the files that the plan names, and says in `ended.json` how the
worker ended. Its output is written to `log.00000` and so on, each of a size that one request can fetch.
"""

from __future__ import annotations

import json
import sys
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

SEGMENT_BYTES = 64 << 10


class Log:
    """The session's output, in segments that only grow and are finished before the next one begins."""

    def __init__(self) -> None:
        self._number = 0
        self._file = self._open()

    def _open(self) -> BinaryIO:
        return Path(f"log.{self._number:05d}").open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        """One more line."""
        if self._file.tell() >= SEGMENT_BYTES:
            self._file.close()
            self._number += 1
            self._file = self._open()
        self._file.write(line)


def work(log: Log, began: float) -> tuple[int, str]:
    """Work off one lease; returns the worker's exit code and, where it could not begin, why."""
    plan, home = json.loads(Path("plan.json").read_text()), Path.cwd()
    zipfile.ZipFile("worker.whl").extractall("lib")
    sys.path.insert(0, str(home / "lib"))
    from worker.agent import boot
    from worker.shared import package_folder

    ticket, lost = plan["ticket"], []
    found = {name: home / name for name in [*plan["files"].values(), package_folder.STAGED] if Path(name).is_file()}
    if assignment := ticket.get("assignment"):
        Path("keep").mkdir(exist_ok=True)
        assignment["keep_dir"] = str(home / "keep")
        lost = boot.place_inputs(assignment, plan["files"], found)
    start = boot.Start(
        ticket=ticket,
        requirements=plan["requirements"],
        stop_after_s=plan["stop_after_s"],
        home=home,
        lib=home / "lib",
        began=began,
        write=lambda line: log.write(f"{line}\n".encode()),
        relay=log.write,
        staged=found.get(package_folder.STAGED),
    )
    code, problem = boot.work(start, lost, "Colab")
    for outbox in boot.outboxes(start):
        if outbox.is_file():
            outbox.replace("outbox.jsonl")
            break
    return code, problem


def main() -> None:
    """Say how it ended, whatever happened."""
    began, log = time.monotonic(), Log()
    code, problem = 2, "the worker could not be started"
    try:
        code, problem = work(log, began)
    except Exception as error:
        log.write(f"trainhop: cannot start: {error}\n".encode())
        problem = f"{problem} ({error})"
        raise
    finally:
        Path(".ended").write_text(json.dumps({"code": code, "problem": problem}))
        Path(".ended").replace("ended.json")


if __name__ == "__main__":
    main()
