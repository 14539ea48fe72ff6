"""The result of a probe, and the signed lines that contain it. Standard library only."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.shared.signed_lines import signed

TRAINING = "training"
EQUAL_BYTES = "equal_bytes"
ALL_REDUCE = "all_reduce"
TIME_LIMIT = "time_limit"
CANCEL = "cancel"
LOG = "log"
HUB = "hub"
DRIVE_UPLOAD = "drive_upload"
INPUTS = "inputs"
DRIVE_SIGN_IN = "drive_sign_in"
PROBES = (TRAINING, EQUAL_BYTES, ALL_REDUCE, TIME_LIMIT, CANCEL, LOG, HUB, DRIVE_UPLOAD, INPUTS, DRIVE_SIGN_IN)

OK, FAILED, NOT_ASKED = "ok", "failed", "not asked"
MAX_WORDS = 400
MAX_DATA = 4_000
"""Maximum characters of one probe's data as JSON."""
_SPEAKING = threading.Lock()


class ProbeError(Exception):
    """A probe found an error: one sentence for a person, and the measured values."""

    def __init__(self, words: str, **data: Any) -> None:
        super().__init__(words)
        self.data = data


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a probe: `status` is `OK`, `FAILED` or `NOT_ASKED`.

    `words` is one sentence. `data` has the measured values (JSON).
    """

    name: str
    status: str
    words: str
    seconds: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, said: object) -> Outcome | None:
        """Read a machine's JSON. None if it is not the result of a known probe.

        Long words and data are truncated.
        """
        if (
            not isinstance(said, dict)
            or said.get("name") not in PROBES
            or said.get("status") not in (OK, FAILED, NOT_ASKED)
        ):
            return None
        data, seconds = said.get("data"), said.get("seconds")
        fits = isinstance(data, dict) and len(json.dumps(data)) <= MAX_DATA
        return cls(
            name=said["name"],
            status=said["status"],
            words=one_line(said.get("words", "")),
            seconds=round(float(seconds), 1) if isinstance(seconds, (int, float)) and 0 <= seconds < 1e6 else 0.0,
            data=data if fits and isinstance(data, dict) else {},
        )

    def as_dict(self) -> dict[str, Any]:
        """The inverse of `read`."""
        return asdict(self)


def one_line(text: object) -> str:
    """External text as one short line."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(plain.split())[:MAX_WORDS]


def attempt(name: str, probe: Callable[[], tuple[str, dict[str, Any]]]) -> Outcome:
    """Run a probe, which returns its words and data. Any exception becomes its result and stops no other probe."""
    began = time.monotonic()

    def ended(status: str, words: str, data: dict[str, Any]) -> Outcome:
        seconds = round(time.monotonic() - began, 1)
        return Outcome(name=name, status=status, words=one_line(words), seconds=seconds, data=data)

    try:
        words, data = probe()
    except ProbeError as error:
        return ended(FAILED, str(error), error.data)
    except Exception as error:  # noqa: BLE001  a probe can fail in unknown ways
        return ended(FAILED, f"{type(error).__name__}: {error}", {})
    return ended(OK, words, data)


def not_asked(name: str, why: str) -> Outcome:
    """The result of a probe that this check leaves out."""
    return Outcome(name=name, status=NOT_ASKED, words=why)


def say(token: str, kind: str, **more: Any) -> None:
    """Print one whole signed line. Several threads print."""
    with _SPEAKING:
        sys.stdout.write(signed(token, json.dumps({"kind": kind, **more}, separators=(",", ":"))) + "\n")
        sys.stdout.flush()
