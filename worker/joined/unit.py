"""A unit of the user's own systemd, which starts the agent again with the machine. Nothing runs as root."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from worker.joined.membership import MachineError, default_folder

SYSTEMCTL_S = 30.0
_UNIT = """\
[Unit]
Description=Trainhop: sessions of a server's jobs on this machine
After=network-online.target

[Service]
ExecStart={python} -m worker.joined {folder}
Restart=on-failure
RestartSec=10
# The server no longer knows this machine.
RestartPreventExitStatus=3
# Sessions continue while the agent is restarted.
KillMode=process

[Install]
WantedBy=default.target
"""


def name(folder: Path) -> str:
    """The unit's name. A folder of one's own choice has its own."""
    if folder.absolute() == default_folder().absolute():
        return "trainhop-joined.service"
    return f"trainhop-joined-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}.service"


def path(folder: Path) -> Path:
    """Where the unit is stored."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user" / name(folder)


def text(folder: Path) -> str:
    """The unit. `%` begins a specifier there."""
    quoted = (f'"{str(part).replace("%", "%%")}"' for part in (sys.executable, folder.absolute()))
    python, place = quoted
    return _UNIT.format(python=python, folder=place)


def enable(folder: Path) -> str:
    """Write and start the unit. Returns what a person should know. Raises `MachineError`."""
    unit = path(folder)
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(text(folder))
    try:
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", unit.name)
    except MachineError:
        unit.unlink()
        raise
    linger = "" if _lingers() else f" Before a log-in it starts only after: loginctl enable-linger {getpass.getuser()}"
    return f"This machine works as {unit.name} and starts again with this machine.{linger}"


def disable(folder: Path) -> None:
    """Stop and remove the unit, if there is one."""
    unit = path(folder)
    if not unit.exists():
        return
    try:
        _systemctl("disable", "--now", unit.name)
    finally:
        unit.unlink(missing_ok=True)


def _systemctl(*words: str) -> None:
    try:
        subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=True)
    except FileNotFoundError:
        raise MachineError(
            "This machine has no systemd. Start it with `trainhop join`, for example from cron with @reboot."
        ) from None
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines() or ["no reason was given"]
        raise MachineError(
            f"The systemd of this user did not do it ({said[-1]}). Log in with a session of your own, not with su or "
            "sudo, or start it with `trainhop join`."
        ) from None


def _lingers() -> bool:
    command = ["loginctl", "show-user", getpass.getuser(), "--property=Linger", "--value"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=True).stdout.strip()
            == "yes"
        )
    except (OSError, subprocess.SubprocessError):
        return False
