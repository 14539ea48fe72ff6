"""The script that is pushed: the worker itself, its ticket, and the code that starts it, in one text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.ports.providers import LaunchRejected, LaunchRequest
from worker.shared import packages, wheel
from worker.shared.messages import Ticket

MAX_SOURCE = 900_000
"""Characters. Kaggle is known to refuse sources of about a megabyte."""
RUN_OVER_S = 60.0
"""What a worker may take beyond its budget before the kernel's own script ends it."""


def file_name(key: str) -> str:
    """The name under which a granted file travels; keys hold `/`, names may not."""
    return key.replace("/", "__") + ".bin"


def kernel_source(request: LaunchRequest) -> str:
    """The whole script for one lease; raises `LaunchRejected` if it would be too long."""
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
    source = script(
        f"session {request.lease_id} of job {request.job_id}. Made by a machine, of use for one session.", carried
    )
    if len(source) > MAX_SOURCE:
        raise LaunchRejected(
            f"the script for this session would hold {len(source):,} characters, Kaggle takes {MAX_SOURCE:,} at most: "
            "shorten the job's sample prompts"
        )
    return source


def packages_source() -> str:
    """The whole script that leaves the packages as one file, which sessions then need not install."""
    carried = {"task": "packages", "requirements": packages.every_line()}
    return script(
        "prepares the packages that sessions train with. Made by a machine, kept for later sessions.", carried
    )


def script(about: str, carried: Mapping[str, Any]) -> str:
    """The text that is pushed: a comment, the code that starts the worker, the worker, and what is carried along."""
    return "\n".join(
        [
            f"# Trainhop: {about}",  # a __future__ import must come first, and a comment may stand before it
            (Path(__file__).with_name("boot.py")).read_text(),
            "",
            f'WORKER = """\n{worker_zip()}"""',
            f"CARRIED = {json.dumps(carried)!r}",
            'if __name__ == "__main__":',
            "    sys.exit(main(json.loads(CARRIED), WORKER))",
            "",
        ]
    )


def worker_zip() -> str:
    """The worker's wheel as base64: it is a zip, and Python runs out of it once it is unpacked."""
    return base64.encodebytes(wheel.build().data).decode()
