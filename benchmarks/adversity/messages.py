"""Hostile messages of a worker with a valid token: huge, deep, of wrong types, not finite, repeated, out of order."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.adversity.fuzz_inputs import OF_A_MANIFEST
from benchmarks.adversity.http_server import LOOP_MS, Watched, watched
from benchmarks.report import Figure
from tests.http.http_client import Machine
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe

LEAST = 300
MAX_S = 10.0
MAX_MIB = 512
MAX_LIST_BYTES = 1 << 20
HUGE = 1_000_000
OLD = 58
"""Reports that come twice and in any order."""
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), float("-inf"), "", "x" * HUGE),
    *("a\x00b", "\ud800", "é" * 1_000, [], [[]] * 1_000, {}, {"a": {"b": 1}}, {str(n): n for n in range(10_000)}),
)
_HASH = "0" * 64


def messages(folder: Path) -> Iterator[Figure]:
    """Send each message, then ask for everything that a member sees of the job."""
    with watched(folder) as server:
        server.api.admin.submit(max_steps=100)
        machine = Machine.launched(server.api, server.pool)
        assert machine.start().status_code == 200
        _forget_peak()
        before, sent, failed, slowest = _memory("VmRSS"), 0, 0, 0.0
        for verb, body in _all(machine):
            begun = time.perf_counter()
            answer = machine.caller.call("POST", f"/leases/{machine.lease}/{verb}", content=body, headers=_JSON)
            slowest = max(slowest, time.perf_counter() - begun)
            sent += 1
            failed += answer.status_code >= 500
        yield Figure(name="hostile messages", value=sent, bar=f">= {LEAST}", ok=sent >= LEAST)
        yield Figure(name="answers 5xx", value=failed, bar="0", ok=not failed)
        yield Figure(name="slowest answer, s", value=round(slowest, 2), bar=f"< {MAX_S:.0f}", ok=slowest < MAX_S)
        grown = (_memory("VmHWM") - before) / 1024
        yield Figure(name="memory on top, MiB", value=round(grown), bar=f"< {MAX_MIB}", ok=grown < MAX_MIB)
        yield from _afterwards(server, machine)
        blocked = 1000 * server.watch.longest
        yield Figure(name="loop blocked, ms", value=round(blocked), bar=f"<= {LOOP_MS}", ok=blocked <= LOOP_MS)


_JSON = {"Content-Type": "application/json"}


def _afterwards(server: Watched, machine: Machine) -> Iterator[Figure]:
    """An honest report is accepted, and every list and page of the job is small and answers."""
    honest = machine.report(99)
    yield Figure(name="an honest report after them", value=honest.status_code, bar="200", ok=honest.status_code == 200)
    job, session, longest, wrong = machine.assignment["job"], machine.lease, 0, 0
    begun = time.perf_counter()
    for path in ("/jobs", "/sessions", f"/jobs/{job}", f"/jobs/{job}/sessions", f"/jobs/{job}/events"):
        answer = server.api.admin.get(path)
        longest, wrong = max(longest, len(answer.content)), wrong + (answer.status_code != 200)
    for path in (f"/jobs/{job}/metrics", f"/jobs/{job}/samples", f"/sessions/{session}/readings"):
        wrong += server.api.admin.get(path).status_code != 200
    for page in ("/", f"/jobs/{job}", f"/jobs/{job}/sessions/{session}", "/fleet"):
        wrong += server.api.client.get(page, headers={"Authorization": f"Bearer {server.api.admin_token}"}).is_error
    took = time.perf_counter() - begun
    yield Figure(name="lists and pages that fail", value=wrong, bar="0", ok=not wrong)
    ok = longest < MAX_LIST_BYTES
    yield Figure(name="largest list, bytes", value=longest, bar=f"< {MAX_LIST_BYTES}", ok=ok)
    yield Figure(name="all lists and pages, s", value=round(took, 2), bar=f"< {MAX_S:.0f}", ok=took < MAX_S)


def _all(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """Every report has a number of its own: one that was heard before would be answered without being stored."""
    honest, numbers = _honest(machine), count(1)
    for verb, message in honest.items():
        for field in message:
            for value in _VALUES:
                new = {"seq": next(numbers)} if "seq" in message else {}
                yield verb, _text(message | new | {field: value})
        yield from ((verb, body) for body in _malformed(message))
    yield from (("report", _text(body | {"seq": next(numbers)})) for body in _large_reports(honest["report"]))
    yield from _old(machine, next(numbers))
    machine.seq = next(numbers) + OLD


def _honest(machine: Machine) -> dict[str, dict[str, Any]]:
    said = {"lease": machine.lease, "fence": machine.fence, "seq": 1}
    recipe = Recipe.of(JobSpec.model_validate(machine.assignment["spec"])).model_dump(mode="json")
    manifest = {"job": machine.assignment["job"], "fence": 1, "step": 5, "recipe": recipe, "state": {}} | OF_A_MANIFEST
    return {
        "start": {"protocol": 1, "nonce": "n1", "hardware": {"device": "cpu"}, "versions": {}, "image": ""},
        "report": said
        | {"step": 1, "phase": "train", "metrics": [], "samples": [], "reading": {}, "ledger": {}, "fidelity": "exact"}
        | {"seconds_per_step": 1.0, "seconds_left": 1.0, "backend": "hf"},
        "offer": said | {"key": "jobs/x", "sha256": _HASH, "size": 1, "manifest": manifest},
        "grants": {"fence": 1, "kind": "checkpoint", "count": 1},
    }


def _malformed(message: dict[str, Any]) -> Iterator[bytes]:
    whole = _text(message)
    yield from (b"", b"{", b"null", b"[" * 100_000, b'{"a":' * 50_000, whole[:-1], whole + whole, b"\xff" + whole)
    yield _text(message | {"unknown": [[[]]] * 200_000})
    yield _text(message | {f"unknown{n}": n for n in range(80_000)})
    yield whole[:-1] + b',"deep":' + b"[" * 150 + b"]" * 150 + b"}"


def _large_reports(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    row = {"step": 1, "values": {"loss": 1.0}}
    yield report | {"metrics": [row] * 30_000}
    yield report | {"metrics": [[]] * 300_000}
    yield report | {"metrics": [{"step": n, "values": {f"m{i}": 1.0 for i in range(64)}} for n in range(700)]}
    yield report | {"metrics": [{"step": 1, "values": {f"m{i}": "x" for i in range(80_000)}}]}
    yield report | {"metrics": [row | {"values": {"loss": "NaN"}}, row | {"values": {"loss": "-Infinity"}}]}
    yield report | {"samples": [{"step": 1, "prompt": "p" * 10_000, "text": "t" * 10_000}] * 100}
    yield report | {"samples": [{"step": n, "prompt": str(n), "text": "t"} for n in range(20_000)]}
    yield report | {"ledger": {f"phase{n}": 1.0 for n in range(80_000)}}
    yield report | {"ledger": {"train": 1e308, "save": "Infinity", "boot": "NaN"}}
    yield report | {"reading": {"cpu_percent": "Infinity", "rss_bytes": 10**300, "gpu_percent": -1}}


def _old(machine: Machine, first: int) -> Iterator[tuple[str, bytes]]:
    """Replays and reorders: the numbers of a session in any order, each twice."""
    numbers = list(range(first, first + OLD)) * 2
    random.Random(0).shuffle(numbers)
    for seq in numbers:
        said = {"lease": machine.lease, "fence": 1, "seq": seq, "step": seq, "phase": "train"}
        yield "report", _text(said | {"metrics": [{"step": seq, "values": {"loss": 1.0}}]})
    for fence in (0, 2, 2**31 - 1):
        yield "report", _text({"lease": machine.lease, "fence": fence, "seq": 1, "step": 1, "phase": "train"})
        yield "finish", _text({"lease": machine.lease, "fence": fence, "seq": 1, "step": 1})
    long = {"message": "m" * HUGE, "detail": "d" * HUGE, "permanent": False, "bad_checkpoint": _HASH}
    yield "finish", _text({"lease": machine.lease, "fence": 9, "seq": 1, "step": 1, "failure": long})
    yield "release", _text({"lease": machine.lease, "fence": 9, "seq": 1, "step": 1, "reason": "deadline"})


def _text(message: dict[str, Any]) -> bytes:
    """As an old worker's JSON: not finite numbers are bare words, and half a character is escaped."""
    return json.dumps(message).encode()


def _memory(which: str) -> int:
    """A figure of this process in KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
