"""The start script on a Colab machine: unpacks the worker, starts it, stores its output and enforces its time limit.

Standard library only. Its folder contains `plan.json` and the files that the plan names. The script writes the worker's
end to `ended.json` and its output to `log.00000` and so on. One request can fetch a whole log segment.
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
    """The session's output in segments. A segment only grows, and it is complete before the next one begins."""

    def __init__(self) -> None:
        self._number = 0
        self._file = self._open()

    def _open(self) -> BinaryIO:
        return Path(f"log.{self._number:05d}").open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        """Write one line."""
        if self._file.tell() >= SEGMENT_BYTES:
            self._file.close()
            self._number += 1
            self._file = self._open()
        self._file.write(line)


def work(log: Log, began: float) -> tuple[int, str]:
    """Run one lease. Returns the worker's exit code, and the reason if it could not start."""
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
    """Run the lease and write `ended.json`, even after an error."""
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
