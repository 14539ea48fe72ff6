"""A client that a public generator makes from the OpenAPI document calls every operation and reads every answer."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.adversity.fuzz_inputs import Inputs, Request
from benchmarks.adversity.http_server import watched
from benchmarks.report import Figure

GENERATOR = "openapi-python-client==0.29.1"
"""Installed apart from us, because it needs an older typer than our command line is tested with."""
PROGRAM = "openapi-python-client"
CONFIG = "post_hooks: []\ncontent_type_overrides: {application/zip: application/octet-stream}\n"
PACKAGE = "generated_trainhop"
_STREAMS = ("/stream",)


def client(folder: Path) -> Iterator[Figure]:
    """Generate it, then call each operation with a valid request. A stream has no end and is left out."""
    with watched(folder) as server:
        document: dict[str, Any] = server.api.client.get("/openapi.json").json()
        complaint = _generate(folder, document)
        yield Figure(name="the generator's complaints", value=complaint or "none", bar="none", ok=not complaint)
        sys.path.insert(0, str(folder))
        made = importlib.import_module(PACKAGE).Client(base_url="http://127.0.0.1")
        made.set_httpx_client(server.api.client)
        inputs, called, good = Inputs(server, folder), 0, 0
        faults: list[str] = []
        for path, operation in _operations(document):
            answer = _call(made, operation, inputs.of(operation["operationId"]), server.api.client)
            called, good = called + 1, good + (answer.status_code < 400)
            if fault := _fault(answer, operation):
                faults.append(f"{operation['operationId']} {path}: {fault}")
        sys.path.remove(str(folder))
    yield Figure(name="operations called", value=called, bar=">= 76", ok=called >= 76)
    yield Figure(name="answers 2xx", value=good, bar=">= 72", ok=good >= 72)
    yield Figure(name="answers that it cannot read", value="; ".join(faults) or "none", bar="none", ok=not faults)


def _generate(folder: Path, document: dict[str, Any]) -> str:
    """Write the package. Returns what the generator complains about."""
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    there = folder / "generator"
    python = str(there / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(there)], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", GENERATOR], check=True)
    options = f"--path {folder / 'openapi.json'} --config {folder / 'config.yaml'} --output-path {folder / PACKAGE}"
    done = subprocess.run(
        [str(there / "bin" / PROGRAM), "generate", *options.split(), "--meta", "none", "--fail-on-warning"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else " ".join((done.stdout + done.stderr).split())


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if not path.endswith(_STREAMS) and operation["operationId"] != "start_demo":
                yield path, operation


def _call(made: Any, operation: dict[str, Any], valid: Request, http: Any) -> Any:
    module = importlib.import_module(f"{PACKAGE}.api.{operation['tags'][0]}.{operation['operationId']}")
    call = module.sync_detailed
    given: dict[str, Any] = {**valid.path, **valid.query, "x_grant": valid.headers.get("X-Grant", "")}
    wanted = inspect.signature(call).parameters
    arguments = {n: given.get(n, "unknown") for n, p in wanted.items() if p.default is p.empty or n in given}
    if "body" in wanted and valid.body is not None:
        kind = typing.get_type_hints(call)["body"]
        kind = next((k for k in typing.get_args(kind) if hasattr(k, "from_dict") or k.__name__ == "File"), kind)
        is_file = isinstance(valid.body, bytes)
        arguments["body"] = kind(payload=io.BytesIO(valid.body)) if is_file else kind.from_dict(valid.body)
    if valid.caller is not None:
        http.headers["Authorization"] = f"Bearer {valid.caller.token}"
    return call(**arguments | {"client": made})


def _fault(answer: Any, operation: dict[str, Any]) -> str:
    if answer.status_code >= 500 and b"unavailable" not in answer.content:
        return f"{answer.status_code} {answer.content[:200]!r}"
    documented = operation["responses"].get(str(int(answer.status_code)), {}).get("content", {})
    has_model = any(kind.endswith("json") for kind in documented)
    return f"{answer.status_code} is None" if has_model and answer.parsed is None else ""
