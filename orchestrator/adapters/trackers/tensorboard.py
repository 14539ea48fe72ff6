"""TensorBoard: one event file per job in the server's data folder, written without a library.

A record is one step. What a killed writer has left of a record at the end of the file is cut off, so every step is
whole or not there. Source of the format: TensorFlow's `record_writer.h`, `event.proto` and `summary.proto`.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

from orchestrator.adapters.trackers.run import Login, Point, Run

LIBRARY = ""
NAME = "events.out.tfevents.{created:010d}.{id}"
_POLYNOMIAL = 0x82F63B78
_STRING = 7
"""DT_STRING in `types.proto`."""
_CHECKED_BYTES = 1 << 20
"""Of the file's end, where a writer may have been killed. What was before had been written to the disk."""


def login_fault(login: Login | None) -> str:
    """It needs none."""
    return "TensorBoard needs no login: its file is on this server." if login is not None else ""


def _table() -> tuple[int, ...]:
    found = list[int]()
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)  # noqa: PLW2901  the usual way to fill the table
        found.append(byte)
    return tuple(found)


_CRC = _table()


def masked_crc(data: bytes) -> bytes:
    """The masked CRC-32C of a record's part, 4 bytes."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFF_FFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282_EAD8) & 0xFFFF_FFFF)


def record(event: bytes) -> bytes:
    """A record of the file: length and event, each with its checksum."""
    length = struct.pack("<Q", len(event))
    return length + masked_crc(length) + event + masked_crc(event)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _field(number: int, payload: bytes) -> bytes:
    """A field with a length: a text, bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _event(at: float, step: int, rest: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", at) + b"\x10" + _varint(step) + rest


def _scalar(tag: str, value: float) -> bytes:
    return _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))


def _text(tag: str, text: str) -> bytes:
    plugin = _field(9, _field(1, _field(1, b"text")))
    tensor = b"\x08" + _varint(_STRING) + _field(2, _field(2, b"\x08\x01")) + _field(8, text.encode())
    return _field(1, _field(1, tag.encode()) + plugin + _field(8, tensor))


def _step_of(event: bytes) -> int:
    """The step of an event that this module has written. -1 if it is about the whole job."""
    place, step, shift = 10, 0, 0
    while True:
        step |= (event[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not event[place - 1] & 0x80:
            break
    return step or -1


def scan(file: BinaryIO) -> tuple[int, int]:
    """The length of the whole records, and the last step in them (-1 for none)."""
    size, whole, last = file.seek(0, os.SEEK_END), 0, -1
    file.seek(0)
    while len(head := file.read(12)) == 12 and masked_crc(head[:8]) == head[8:]:
        (length,) = struct.unpack("<Q", head[:8])
        if whole + 16 + length > size:
            break
        event, crc = file.read(length), file.read(4)
        if whole > size - _CHECKED_BYTES and masked_crc(event) != crc:
            break
        whole, last = whole + 16 + length, max(last, _step_of(event))
    return whole, last


class Events:
    """The event file of one job. Only one process has it open."""

    def __init__(self, run: Run) -> None:
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / NAME.format(created=int(run.created_at), id=run.id)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        whole, self._last = scan(self._file)
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            settings = json.dumps(run.config, indent=2, sort_keys=True)
            self._file.write(record(_event(run.created_at, 0, _field(3, b"brain.Event:2"))))
            lines = "    " + settings.replace("\n", "\n    ")  # Markdown's way to show a text as it is
            self._file.write(record(_event(run.created_at, 0, _field(5, _text("config", lines)))))
        self._notes = run.notes

    @property
    def last_step(self) -> int:
        return self._last

    def write(self, points: list[Point]) -> None:
        for step, at, values in points:
            summary = b"".join(_scalar(tag, value) for tag, value in sorted(values.items()))
            self._file.write(record(_event(at, step, _field(5, summary))))

    def close(self, state: str) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ""


def open_run(run: Run) -> Events:
    """Open the job's file, or make it."""
    return Events(run)
