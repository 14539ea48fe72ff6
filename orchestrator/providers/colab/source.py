"""The bundle for one lease and the cell that starts it.

The bundle is a zip file with the worker, its ticket and its input files.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.ports.providers import LaunchRequest, ProviderUnavailable
from orchestrator.ports.stores import StoreError
from worker.shared import wheel as bundle
from worker.shared.messages import Ticket

MARK = "trainhop: the worker is started"
RUN_OVER_S = 60.0
"""Seconds that a worker may exceed its budget before the start script ends it."""
_CELL = """\
import pathlib, subprocess, sys, zipfile
name = {name!r}
parts = sorted(pathlib.Path().glob(name + ".zip.*"))
with open(name + ".zip", "wb") as whole:
    for part in parts:
        whole.write(part.read_bytes())
        part.unlink()
zipfile.ZipFile(name + ".zip").extractall(name)
pathlib.Path(name + ".zip").unlink()
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
worker = subprocess.Popen([sys.executable, "boot.py"], cwd=name, start_new_session=True, **quiet)
print({mark!r}, flush=True)
worker.wait()
"""


def cell(name: str) -> str:
    """Code that starts the worker beside the kernel and then waits for it."""
    return _CELL.format(name=name, mark=MARK)


def wheel(adapters: bool) -> bytes:
    """The wheel of the installed worker, with the part for finished adapters or without it."""
    return bundle.build(adapters=adapters).data


def pack(request: LaunchRequest, target: Path, worker: Callable[[bool], bytes] = wheel) -> None:
    """Write the zip file. `worker` returns the worker's wheel.

    Raises `ProviderUnavailable` if an input cannot be read or is damaged.
    """
    ticket = Ticket(
        lease=request.lease_id,
        token=request.token,
        budget_s=request.budget_s,
        fence=request.fence,
        server_url=request.server_url,
        assignment=request.assignment,
    )
    names = {key: f"input.{number}" for number, key in enumerate(request.inputs)}
    plan = {
        "ticket": ticket.model_dump(mode="json"),
        "files": names,
        "requirements": [*bundle.requirements(), *bundle.requirements("train")],
        "stop_after_s": request.budget_s + RUN_OVER_S,
    }
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.touch(mode=0o600)
    with zipfile.ZipFile(target, "w") as whole:
        whole.writestr("boot.py", Path(__file__).with_name("boot.py").read_text())
        whole.writestr("plan.json", json.dumps(plan))
        whole.writestr("worker.whl", worker(request.exports or request.chats))
        for key, name in names.items():
            _add(whole, name, request, key)


def _add(whole: zipfile.ZipFile, name: str, request: LaunchRequest, key: str) -> None:
    given = request.assignment
    assert given is not None
    read = given.reads
    grant = next(g for g in read if g.key == key)
    digest = hashlib.sha256()
    try:
        with whole.open(name, "w", force_zip64=True) as file:
            for chunk in request.inputs[key]():
                digest.update(chunk)
                file.write(chunk)
    except StoreError as error:
        raise ProviderUnavailable(f"{key} cannot be read for Colab: {error}") from error
    if grant.sha256 is not None and digest.hexdigest() != grant.sha256:
        raise ProviderUnavailable(f"{key} is damaged in the store (sha256 {digest.hexdigest()[:12]})")
