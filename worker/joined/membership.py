"""What a machine keeps of the server that it has joined, in a folder that only its user can read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from worker.shared.files import create_once

FILE = "joined.json"
LEAVING = "leaving.json"
LOCK = "agent.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MachineError(Exception):
    """The command cannot be carried out. The message is one sentence that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The machine's place on a server. `token` opens nothing but that place. `python` runs the workers.

    `shares` sessions share each GPU, or the processor where there is none.
    """

    server: str
    account: str
    name: str
    token: str
    instance: str
    python: str
    shares: int = 1


def default_folder() -> Path:
    """Where a machine's place is kept by default."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "trainhop" / "joined"


def read(folder: Path) -> Membership | None:
    """The place that this folder has. None if it has none. Raises `MachineError` for a damaged file."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text())
        return Membership(**{field.name: found[field.name] for field in fields(Membership)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MachineError(f"{path} cannot be read ({error}). Delete it, and join with a new code.") from None


def keep(folder: Path, membership: Membership) -> None:
    """Store the place. Raises `MachineError` if the folder has one already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not create_once(folder / FILE, json.dumps(asdict(membership), indent=1)):
        refuse_joined(folder, membership.server)


def refuse_joined(folder: Path, server: str) -> None:
    """Raise `MachineError` if the folder has a place already, with the name of its server."""
    if (known := read(folder)) is None:
        return
    if known.server == server:
        raise MachineError(
            f"This machine has already joined {server} as {known.name}. Start it with `trainhop join`, or leave "
            "first with `trainhop leave`."
        )
    raise MachineError(
        f"This machine has already joined {known.server} as {known.name}. Leave it first with `trainhop leave`, or "
        f"join {server} with another folder: --folder DIR."
    )


def boot_id() -> str:
    """An id that changes with each start of this machine. Empty where the system has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def asked_to(folder: Path, boot: str) -> str:
    """`leave` or `drain` if a person has asked this machine for it since its last start, otherwise empty."""
    try:
        asked = json.loads((folder / LEAVING).read_text())
    except (OSError, ValueError):
        return ""
    if asked.get("what") == "drain" and asked.get("boot") != boot:
        (folder / LEAVING).unlink(missing_ok=True)
        return ""
    return str(asked.get("what", ""))


def ask_to(folder: Path, what: str) -> None:
    """Have the agent of this folder save its sessions and end, and with `leave` leave its server."""
    (folder / LEAVING).write_text(json.dumps({"what": what, "boot": boot_id()}))
