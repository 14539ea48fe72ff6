"""The pushed script. One text contains the worker, its ticket, and the code that starts it."""

from __future__ import annotations

import base64
import bz2
import io
import json
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.ports.providers import LaunchRejected, LaunchRequest
from worker.shared import packages, wheel
from worker.shared.messages import Ticket

MAX_SOURCE = 900_000
"""Characters. Kaggle refuses sources of about a megabyte."""
LINE = 100
"""Characters of a line of the packed worker."""
RUN_OVER_S = 60.0
"""Seconds that a worker may exceed its budget before the start script ends it."""


def file_name(key: str) -> str:
    """The file name for a granted key. Keys contain `/`, file names may not."""
    return key.replace("/", "__") + ".bin"


def kernel_source(request: LaunchRequest) -> str:
    """The whole script for one lease. Raises `LaunchRejected` if it is too long."""
    ticket = Ticket(
        lease=request.lease_id,
        token=request.token,
        budget_s=request.budget_s,
        fence=request.fence,
        server_url=request.server_url,
        assignment=request.assignment,
    )
    carried = {
        "ticket": ticket.model_dump(mode="json"),
        "files": {key: file_name(key) for key in request.inputs},
        "requirements": packages.every_line(),
        "stop_after_s": request.budget_s + RUN_OVER_S,
    }
    about = f"session {request.lease_id} of job {request.job_id}. Created automatically for one session."
    source = script(about, carried, adapters=request.exports or request.chats)
    if len(source) > MAX_SOURCE:
        raise LaunchRejected(
            f"the script for this session has {len(source):,} characters, Kaggle accepts at most {MAX_SOURCE:,}. "
            "Shorten the job's sample prompts"
        )
    return source


def packages_source() -> str:
    """The whole script that stores the packages as one file, so that sessions need not install them."""
    carried = {"task": "packages", "requirements": packages.every_line()}
    return script("prepares the packages for training. Created automatically, kept for later sessions.", carried)


def script(about: str, carried: Mapping[str, Any], *, adapters: bool = False) -> str:
    """The pushed text: a comment, the code that starts the worker, the worker, and the values that it needs.

    With `adapters` the worker can export adapters and chat with them.
    """
    return "\n".join(
        [
            f"# Trainhop: {about}",  # a __future__ import must come first, and only a comment may precede it
            (Path(__file__).with_name("boot.py")).read_text(),
            "",
            f'WORKER = """\n{packed(wheel.build(adapters=adapters).data)}"""',
            f"CARRIED = {json.dumps(carried)!r}",
            'if __name__ == "__main__":',
            "    sys.exit(main(json.loads(CARRIED), WORKER))",
            "",
        ]
    )


@lru_cache(maxsize=2)  # every session of a server brings the same worker
def packed(worker: bytes) -> str:
    """The files of a wheel that a script needs, as lines of base85 of a zip file compressed by bzip2.

    The zip file itself is not compressed: all files together compress to two thirds of what each alone does.
    """
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(worker)) as built, zipfile.ZipFile(plain, "w") as files:
        for entry in built.infolist():
            # `trainhop` is for notebooks and programs, and a RECORD for pip alone.
            if not entry.filename.startswith("trainhop/") and not entry.filename.endswith("/RECORD"):
                files.writestr(zipfile.ZipInfo(entry.filename, entry.date_time), built.read(entry))
    text = base64.b85encode(bz2.compress(plain.getvalue())).decode()
    return "".join(f"{text[at : at + LINE]}\n" for at in range(0, len(text), LINE))
