"""The commands of a person at a machine: join a server, leave it, drain for a restart."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from worker.joined import agent, membership, prepare, readings, unit
from worker.joined.membership import MachineError, Membership
from worker.joined.server import Away, Server
from worker.shared.counted_words import many
from worker.shared.files import is_locked
from worker.shared.joined_messages import JOIN_PROTOCOL, MAX_SLOTS, JoinRequest

TRIES = 3
WRONG_CLOCK_S = 60.0
LOOK_EVERY_S = 0.2
Say = Callable[[str], None]


def join(
    folder: Path, address: str, code: str, say: Say, *, name: str = "", shares: int = 1, python: str = sys.executable
) -> prepare.Prepared:
    """Exchange the code for a place on the server at this address. Returns what runs the workers.

    Raises `MachineError`.
    """
    address = _checked(address)
    if not 1 <= shares <= MAX_SLOTS:
        raise MachineError(f"--shares must be between 1 and {MAX_SLOTS}.")
    membership.refuse_joined(folder, address)
    found = prepare.check(python)
    offer = readings.offer(readings.gpus(found.torch), shares)
    server = Server(address)
    request = JoinRequest(protocol=JOIN_PROTOCOL, code=code, nonce=secrets.token_hex(16), name=name, offer=offer)
    joined = _exchange(server, request)
    made = Membership(
        server=address,
        account=joined.account,
        name=joined.name,
        token=joined.token,
        instance=joined.instance,
        python=python,
        shares=shares,
    )
    membership.keep(folder, made)
    say(f"Joined {address} as {made.name}: {many(offer.slots, 'slot')}, Python {found.python}.")
    if abs(server.ahead_s) > WRONG_CLOCK_S:
        where = "ahead of" if server.ahead_s > 0 else "behind"
        say(f"This machine's clock is {abs(server.ahead_s) / 60:.0f} minutes {where} the server's. Correct it.")
    return found


def _checked(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise MachineError(f"{address} is not the address of a server. Use for example http://192.168.0.10:8642.")
    return parts.geturl().rstrip("/")


def _exchange(server: Server, request: JoinRequest):  # noqa: ANN202  see `Server.join`
    for left in reversed(range(TRIES)):
        try:
            return server.join(request)
        except Away as error:
            if left == 0:
                raise MachineError(
                    f"{error}. Nothing was changed. Check the address, and that the server runs."
                ) from None
            time.sleep(LOOK_EVERY_S)
    raise AssertionError


def leave(folder: Path, say: Say, *, drain: bool = False) -> None:
    """Have the sessions save and end, and with `drain` keep the place, otherwise give it up. Raises `MachineError`.

    The agent does it. If none runs, this process is the agent meanwhile.
    """
    known = membership.read(folder)
    if known is None:
        raise MachineError("This machine has not joined a server.")
    membership.ask_to(folder, "drain" if drain else "leave")
    if is_locked(folder / membership.LOCK):
        say(f"{known.name}: sessions save and end")
        while is_locked(folder / membership.LOCK):
            time.sleep(LOOK_EVERY_S)
        if not drain and membership.read(folder) is not None:
            raise MachineError("`trainhop join` has ended before this machine had left. Run `trainhop leave` again.")
    else:
        agent.make(folder, say).run()
    if not drain:
        unit.disable(folder)
