"""Requests drawn from the OpenAPI document for every operation, by callers who may: as drawn, on ids that exist, and as
valid bodies with one value replaced."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.core import NotSet

from benchmarks.adversity.fuzz_inputs import Inputs, Request
from benchmarks.adversity.http_server import LOOP_MS, watched
from benchmarks.adversity.shards import Shard, in_shards
from benchmarks.report import Figure

LEAST_CASES = 100_000
CASES = int(os.environ.get("BENCH_FUZZ_CASES", str(LEAST_CASES)))
LEAST_SHARE = 0.95
AT_ONCE = 20
"""Cases that are drawn of one operation before the next one has its turn."""
MIXED = 4
"""Requests for each drawn case with the valid body, one value replaced."""
_LEFT_OUT = frozenset({"start_demo"})
"""Starts processes that train."""


@dataclass
class _Counts:
    sent: int = 0
    errors: list[str] = field(default_factory=list[str])
    operations: set[str] = field(default_factory=set[str])
    reached: set[str] = field(default_factory=set[str])
    blocked_s: float = 0.0


def fuzz(folder: Path) -> Iterator[Figure]:
    """Send `CASES` requests, from several processes if asked, and count the answers of all."""
    counts = _Counts()
    for part in in_shards(_go_round, folder, CASES):
        counts.sent += part.sent
        counts.errors += part.errors
        counts.operations |= part.operations
        counts.reached |= part.reached
        counts.blocked_s = max(counts.blocked_s, part.blocked_s)
    yield Figure(name="cases", value=counts.sent, bar=f">= {LEAST_CASES}", ok=counts.sent >= LEAST_CASES)
    yield Figure(
        name="answers 5xx, other than 503 with Retry-After", value=len(counts.errors), bar="0", ok=not counts.errors
    )
    for error in counts.errors[:5]:
        yield Figure(name="example", value=error, bar="none", ok=False)
    share = len(counts.reached) / len(counts.operations)
    missed = ", ".join(sorted(counts.operations - counts.reached))
    value = f"{share:.1%} of {len(counts.operations)}, without {missed}"
    yield Figure(name="operations answered with 2xx", value=value, bar=">= 95 %", ok=share >= LEAST_SHARE)
    blocked = 1000 * counts.blocked_s
    yield Figure(name="loop blocked, ms", value=round(blocked), bar=f"<= {LOOP_MS}", ok=blocked <= LOOP_MS)


def _go_round(shard: Shard) -> _Counts:
    """Go round all operations of one server until the shard has sent its requests. Each turn has its own seed."""
    counts = _Counts()
    with watched(shard.folder) as server, tempfile.TemporaryDirectory() as files:
        document = server.api.client.get("/openapi.json").json()
        inputs = Inputs(server, Path(files))
        schema: Any = schemathesis.openapi.from_dict(document)
        found: list[Any] = [each.ok() for each in schema.get_all_operations()]
        operations = [o for o in found if o.definition.raw["operationId"] not in _LEFT_OUT]
        turn = shard.number
        while counts.sent < shard.amount:
            for operation in operations:
                _draw(operation, inputs, counts, turn)
            turn += shard.of
        counts.operations = {o.definition.raw["operationId"] for o in found}
        counts.blocked_s = server.watch.longest
    return counts


def _draw(operation: Any, inputs: Inputs, counts: _Counts, turn: int) -> None:
    name, dice = operation.definition.raw["operationId"], random.Random(turn)
    valid = inputs.of(name)
    _send(operation, name, inputs, counts, valid)

    @hypothesis.seed(turn)
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=AT_ONCE,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    def draw(case: Any) -> None:
        drawn = Request(
            path={k: str(v) for k, v in (case.path_parameters or {}).items()},
            body=None if isinstance(case.body, NotSet) else case.body,
            query=dict(case.query or {}),
            headers={k: str(v) for k, v in (case.headers or {}).items()},
            caller=valid.caller,
        )
        _send(operation, name, inputs, counts, drawn)
        there = replace(drawn, path=valid.path, headers=drawn.headers | valid.headers)
        _send(operation, name, inputs, counts, there)
        for _ in range(MIXED):
            mixed = replace(there, body=_mixed(valid.body, drawn.body, dice), query=valid.query)
            _send(operation, name, inputs, counts, mixed)

    draw()


_ODD = (None, True, -1, 2**63, 1e308, "", "x" * 3_000, "\ud800", [], {}, [[[]]], {"a": {"b": []}})


def _mixed(valid: Any, drawn: Any, dice: random.Random) -> Any:
    """The valid body with one value from the drawn one, or an odd one."""
    if not isinstance(valid, dict) or not valid:
        return valid if valid is not None else drawn
    key = dice.choice([*valid, *(drawn if isinstance(drawn, dict) else ())])
    return valid | {key: drawn[key] if isinstance(drawn, dict) and key in drawn else dice.choice(_ODD)}


def _send(operation: Any, name: str, inputs: Inputs, counts: _Counts, request: Request) -> None:
    method = "HEAD" if operation.path.endswith("/stream") else operation.method.upper()  # a stream has no end
    headers = dict(request.headers)
    if request.caller is not None:
        headers["Authorization"] = f"Bearer {request.caller.token}"
    body = request.body
    if body is not None and not isinstance(body, bytes):
        headers["Content-Type"] = "application/json"
        body = json.dumps(body).encode()
    with contextlib.suppress(httpx.InvalidURL, UnicodeEncodeError, ValueError):  # cannot be sent at all
        url = httpx.URL("http://127.0.0.1" + _filled(operation.path, request.path))
        answer = inputs.admin.api.client.request(
            method, str(url), params=_flat(request.query), headers=headers, content=body, follow_redirects=False
        )
        counts.sent += 1
        if answer.status_code >= 500 and not (answer.status_code == 503 and "retry-after" in answer.headers):
            counts.errors.append(f"{name}: {answer.status_code} for {str(request)[:300]}")
        if answer.is_success:
            counts.reached.add(name)


def _filled(path: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        path = path.replace("{" + name + "}", quote(value, safe="/" if name == "key" else ""))
    return path


def _flat(query: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (str, int, float, bool)) else json.dumps(v) for k, v in query.items()}
