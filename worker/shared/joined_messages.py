"""Messages between the server and the agent of a machine that has joined it.

Orders are levels, not events: the server repeats an order until the machine's report shows that it was carried out. So
a lost reply changes nothing, and nothing is started twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from worker.shared.messages import Ticket
from worker.shared.wire import Count, Line, MaybeNumber, Sha256, Size, Text, Wire, first_entries, first_lines

JOIN_PROTOCOL = 1
"""Increased when an old agent could misread a new server."""
MAX_SLOTS = 64
MAX_SESSIONS = 256
"""Sessions that a machine reports at once: those that run, and ended ones that the server has not collected yet."""
MAX_GPUS = 64
PIECE_BYTES = 192 << 10
"""Of a file in one report."""
MAX_PIECE = PIECE_BYTES * 4 // 3 + 8
WAIT_S = 20.0
"""How long the server keeps a machine's call for orders open."""
LogName = Literal["log", "messages"]


class Gpu(Wire):
    """One GPU now: bytes of memory, and how busy it is in percent."""

    name: Line
    total_bytes: Size
    used_bytes: Size = 0
    percent: MaybeNumber = None


class MachineReadings(Wire):
    """What an agent has measured of its machine. Sizes in bytes, `load` over one minute."""

    gpus: Annotated[tuple[Gpu, ...], first_lines(MAX_GPUS)] = ()
    processors: Size = 0
    load: MaybeNumber = None
    ram_bytes: Size = 0
    ram_free_bytes: Size = 0
    disk_free_bytes: Size = 0


class MachineOffer(Wire):
    """What a machine offers: `slots` sessions at once, each with `memory_bytes`, which is a GPU's if it has one.

    `closed_reason` says why it starts none now.
    """

    hostname: Line
    python: Line
    slots: Annotated[int, Field(ge=0, le=MAX_SLOTS)]
    memory_bytes: Size
    gpu: bool = False
    closed_reason: Text = ""


class JoinRequest(Wire):
    """A machine joins with its code. `nonce` is created once per run, so a repeated call is safe."""

    protocol: Count
    code: Annotated[Text, Field(max_length=100)]
    nonce: Annotated[Text, Field(min_length=16, max_length=64)]
    name: Annotated[Text, Field(max_length=100)] = ""
    offer: MachineOffer


class Joined(Wire):
    """The machine's place on the server: its account, the token that opens nothing else, and the server's own id."""

    account: str
    name: str
    token: str
    instance: str


class FilePiece(Wire):
    """Bytes of a session's log or of its messages from `offset`, in base64."""

    name: LogName
    offset: Size
    data: Annotated[str, Field(max_length=MAX_PIECE)]


class SessionReport(Wire):
    """One session on the machine. `code` is its process's exit code, None if that is not known.

    A session counts as ended only when the server has all its messages.
    """

    lease: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    state: Literal["running", "ended"]
    pid: Size = 0
    code: int | None = None
    detail: Text = ""
    pieces: Annotated[tuple[FilePiece, ...], Field(max_length=2)] = ()


class MachineReport(Wire):
    """What runs on a machine, and what it could start. `clock` is its time of day, only to show that it is wrong."""

    protocol: Count
    offer: MachineOffer
    readings: MachineReadings = MachineReadings()
    sessions: Annotated[tuple[SessionReport, ...], Field(max_length=MAX_SESSIONS)] = ()
    clock: float = 0.0


class StartOrder(Wire):
    """Start a worker with this ticket and these variables. The server's address in the ticket is not used."""

    ticket: Ticket
    variables: Annotated[dict[str, str], first_entries(100)] = Field(default_factory=dict)


class WorkerFile(Wire):
    """The wheel with the server's worker, which it serves under this name and sha256."""

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    sha256: Sha256


class Orders(Wire):
    """What the server wants of a machine now.

    `start` has sessions that the machine did not report yet. `stop` and `forget` name sessions that it reports: end the
    process, and delete the folder. `sizes` has how many bytes of each file of a session the server has.
    """

    start: tuple[StartOrder, ...] = ()
    stop: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    worker: WorkerFile | None = None
    sizes: dict[str, dict[LogName, int]]
