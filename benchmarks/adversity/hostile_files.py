"""Hostile data files, sent to a real server over HTTP: bombs, nesting, encodings and broken containers.

Each is uploaded, and previewed where it was taken. Measured is what a person waits and what the server and its children
hold: no answer may be a 5xx, none may take longer than 10 s, and no process may hold more than 512 MiB.
"""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
from pyarrow import parquet

from benchmarks.lab import lab
from benchmarks.report import Figure
from benchmarks.tiny_job import say

MAX_S, MAX_MIB = 10.0, 512
LOOK_S = 0.05
MIB = 2**20
ROW = '{"text": "a row"}\n'
Write = Callable[[Path], object]


@dataclass
class Watch:
    """The largest resident memory of a process and of each of its children."""

    pid: int
    most: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Look until stopped."""
        server = psutil.Process(self.pid)
        while not self.stopped.wait(LOOK_S):
            for one in [server, *server.children(recursive=True)]:
                try:
                    self.most = max(self.most, one.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def hostile_files(folder: Path) -> Iterator[Figure]:
    """All files, against a server of their own."""
    with lab(folder, local_slots=0) as server:
        server.client.timeout = httpx.Timeout(120)
        watch = Watch(server.pid)
        thread = threading.Thread(target=watch.look)
        thread.start()
        try:
            statuses, slow, errors, count = _all(server.client, folder / "hostile", watch)
        finally:
            watch.stopped.set()
            thread.join()
    say(f"  statuses: {dict(sorted(statuses.items()))}")
    yield Figure(name="hostile files", value=count, bar=">= 300", ok=count >= 300)
    yield Figure(name="hostile files over 10 s", value=len(slow), bar="0", ok=not slow)
    largest = watch.most // MIB
    yield Figure(name="largest process in MiB", value=largest, bar=f"<= {MAX_MIB}", ok=largest <= MAX_MIB)
    yield Figure(name="answers with 5xx", value=len(errors), bar="0", ok=not errors)


def _all(client: httpx.Client, path: Path, watch: Watch) -> tuple[Counter[int], list[str], list[str], int]:
    statuses, slow, errors, count = Counter[int](), list[str](), list[str](), 0
    for name, suffix, write in _files(random.Random(15)):
        write(path)
        count += 1
        for status, took, what in _ask(client, path, suffix):
            statuses[status] += 1
            if took > MAX_S:
                slow.append(f"{name}: {what} took {took:.1f} s")
                say(f"  {slow[-1]}")
            if status >= 500:
                errors.append(f"{name}: {what} answered {status}")
                say(f"  {errors[-1]}")
        path.unlink()
        if count % 50 == 0:
            say(f"  {count} files, {watch.most // MIB} MiB at most")
    return statuses, slow, errors, count


def _ask(client: httpx.Client, path: Path, suffix: str) -> Iterator[tuple[int, float, str]]:
    began = time.monotonic()
    with path.open("rb") as file:
        answer = client.post("/datasets", params={"name": f"rows{suffix}"}, content=file)
    yield answer.status_code, time.monotonic() - began, "upload"
    if answer.status_code == 201:
        began = time.monotonic()
        look = client.get(f"/datasets/{answer.json()['sha256']}/preview")
        yield look.status_code, time.monotonic() - began, "preview"


# --- files -----------------------------------------------------------------------------------------------


def _files(rng: random.Random) -> Iterator[tuple[str, str, Write]]:
    for name, column in _columns().items():
        for compression in ("zstd", "gzip", "snappy", "none"):
            for schema in (True, False):
                write = _parquet(column, compression=compression, store_schema=schema)
                yield f"parquet of {name}, {compression}, {schema}", ".parquet", write
    for number in range(60):
        yield f"broken parquet {number}", ".parquet", _broken(rng)
    for name, data in _texts().items():
        for suffix in (".jsonl", ".json", ".csv", ".parquet"):
            yield f"{name} as {suffix}", suffix, lambda path, data=data: path.write_bytes(data)


def _columns() -> dict[str, Callable[[], pa.Array]]:
    def repeated(value: str, rows: int) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))

    def nested(value: str, rows: int) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), repeated(value, rows))

    def deep(levels: int) -> pa.Array:
        array: pa.Array = pa.array(["x"])
        for _ in range(levels):
            array = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array)
        return array

    return {
        "4 MiB x 2000": lambda: repeated("x" * 4 * MIB, 2_000),
        "1 MiB x 20000": lambda: repeated("x" * MIB, 20_000),
        "64 KiB x 200000": lambda: repeated("x" * 65_536, 200_000),
        "4 MiB x 2000 in lists": lambda: nested("x" * 4 * MIB, 2_000),
        "one value of 60 MiB": lambda: pa.array(["x" * 60 * MIB]),
        "15 MiB x 8": lambda: pa.array(["x" * 15 * MIB] * 8),
        "30 levels": lambda: deep(30),
        "a million numbers": lambda: pa.array(range(1_000_000)),
        "nulls": lambda: pa.nulls(2_000_000, pa.string()),
        "a list of a million": lambda: pa.array([["x"] * 1_000_000]),
        "bytes": lambda: pa.array([b"\xff\xfe" * 100] * 100),
        "half a pair": lambda: pa.array([{"role": "user", "content": "x"}] * 10),
    }


def _parquet(column: Callable[[], pa.Array], **how: Any) -> Write:
    return lambda path: parquet.write_table(pa.table({"text": column()}), path, **how)


def _broken(rng: random.Random) -> Write:
    def write(path: Path) -> None:
        table = pa.table({"text": [f"row {n}" for n in range(200)], "n": list(range(200))})
        parquet.write_table(table, path, compression=rng.choice(["zstd", "snappy", "none"]))
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 4, 64])):
            data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(4, len(data)) : -rng.choice([8, 100])]
        path.write_bytes(bytes(data))

    return write


def _texts() -> dict[str, bytes]:
    row, long = ROW.encode(), b"x" * 17 * MIB
    texts: dict[str, str | bytes] = {
        "nothing": b"",
        "blanks": b" \n" * 100_000,
        "NUL": b"\0" * MIB,
        "NUL in a row": row + b'{"text": "a\0b"}\n',
        "escaped NUL": row + b'{"text": "\\u0000"}\n',
        "half a pair": row + b'{"text": "\\ud800"}\n',
        "latin-1": row + "é".encode("latin-1"),
        "UTF-16": ROW.encode("utf-16"),
        "UTF-32": ROW.encode("utf-32"),
        "two BOMs": b"\xef\xbb\xbf" * 2 + row,
        "overlong UTF-8": b'{"text": "\xc0\xaf"}\n',
        "gz": gzip.compress(row * 1000),
        "a gz bomb": gzip.compress(b"\0" * 200 * MIB),
        "a long line": b'{"text": "' + long + b'"}\n',
        "a long line without an end": long,
        "long lines": (b'{"text": "' + b"x" * 15 * MIB + b'"}\n') * 3,
        "lists in a row": b'{"text": [' + b"[]," * (5 * MIB) + b"[]]}\n",
        "turns in a row": b'{"messages": [' + b'{"role":"user","content":"a"},' * 400_000 + b"{}]}\n",
        "keys in a row": ("{" + ",".join(f'"k{n}": 1' for n in range(500_000)) + "}\n").encode(),
        "one key again and again": b'{"text": "a"' + b', "text": "a"' * 500_000 + b"}\n",
        "deep lists": b"[" * 5 * MIB,
        "deep objects": b'{"a":' * MIB,
        "deep rows": b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "many digits": b'{"text": ' + b"1" * 100_000 + b"}\n",
        "a large exponent": b'{"text": 1e999999999}\n',
        "NaN": b'{"text": NaN}\n',
        "an array of numbers": b"[" + b"1," * 2_000_000 + b"1]",
        "an array of rows": b"[" + b'{"text":"a"},' * 200_000 + b'{"text":"a"}]',
        "an array on many lines": b"[\n" + b'{"text":\n"a"},\n' * 200_000 + b'{"text":"a"}]',
        "an array without an end": b"[" + b'{"text":"a"},\n' * 200_000,
        "an array of an open string": b'[{"text": "' + b"a\n" * 4 * MIB,
        "rows after an array": b'[{"text":"a"}]\n' + row * 1000,
        "an array in an array": b"[[" + row + b"]]",
        "short lines": b"{}\n" * 300_000,
        "an open quote": b'text\n"' + b"a\n" * 10 * MIB,
        "many columns": b"," * 10 * MIB,
        "many fields": b"text\n" + b"," * 10 * MIB,
        "many quotes": b"text\n" + b'"' * 10 * MIB,
        "returns": b"text\r" * MIB,
        "one column again and again": b"text," * 900 + b"\n" + b"a," * 900,
        "formulas": b"text\n=cmd|'/c calc'!A0\n",
        "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>',
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "zip": b"PK\x03\x04" + b"\0" * 1000,
        "PAR1 alone": b"PAR1",
        "PAR1 and PAR1": b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1",
        "a large footer": b"PAR1" + b"\0" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        "escapes": row + json.dumps({"text": "\x1b]0;x\x07\u202e"}).encode(),
        "controls": row + json.dumps({"text": "".join(map(chr, range(1, 32)))}).encode(),
    }
    return {name: text.encode() if isinstance(text, str) else text for name, text in texts.items()}
