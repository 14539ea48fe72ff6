"""HTTP of the emulated W&B server: runs that can be resumed, and their streams."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

HISTORY = "wandb-history.jsonl"


@dataclass
class Run:
    """A run as the server keeps it. `history` are its rows in their order, `states` how its writers have ended."""

    name: str
    display_name: str = ""
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: str = "{}"
    lines: list[str] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that is gone is no fault."""


class WandbEmulator:
    """The server. `faults` are those of the next pieces of streams: a status, or `cut` (kept, but not answered)."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.keys: set[str] = set()
        self.faults: list[str] = []
        self.bodies: list[str] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"emulator": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The data of an answer."""
        given, name = asked.get("variables") or {}, asked.get("operationName") or asked["query"]
        with self._lock:
            if "RunResumeStatus" in name:
                return {"model": _project(given) | {"bucket": _bucket(self.runs.get(given["name"]))}}
            if "UpsertBucket" in name:
                return {"upsertBucket": self._upsert(given)}
        if "CreateRunFiles" in name:
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "Viewer" in name or "viewer" in name:
            entity = {"id": "VXNlcjox", "entity": "ann", "username": "ann", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": entity, "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}}}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        is_new = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.display_name = given.get("displayName") or run.display_name
        run.notes = given.get("notes") or run.notes
        run.config |= json.loads(given.get("config") or "{}")
        found = {"id": f"run-{name}", "name": name, "displayName": run.display_name, "config": json.dumps(run.config)}
        found |= {"description": "", "sweepName": None, "historyLineCount": len(run.lines)}
        return {"bucket": found | {"project": _project(given)}, "inserted": is_new}

    def stream(self, name: str, piece: dict[str, Any]) -> str:
        """Keep a piece of a run's files. Lines that are there are replaced. Returns the fault to show."""
        with self._lock:
            run = self.runs[name]
            has_lines = HISTORY in piece.get("files", {})
            fault = self.faults.pop(0) if self.faults and has_lines else ""
            if fault not in ("", "cut"):
                return fault
            if has_lines:
                content = piece["files"][HISTORY]
                assert content["offset"] <= len(run.lines), "lines are missing in between"
                run.lines[content["offset"] : content["offset"] + len(content["content"])] = content["content"]
            for line in piece.get("files", {}).get("wandb-summary.json", {}).get("content", ()):
                run.summary = line
            if piece.get("complete"):
                run.states.append(piece.get("exitcode") or 0)
            return fault


def _project(given: dict[str, Any]) -> dict[str, Any]:
    entity = {"id": "RW50aXR5OjE=", "name": given.get("entity") or "ann"}
    return {"id": "UHJvamVjdDox", "name": given.get("project") or "trainhop", "entity": entity}


def _bucket(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "id": f"run-{run.name}",
        "name": run.name,
        "summaryMetrics": run.summary,
        "displayName": run.display_name,
        "logLineCount": 0,
        "historyLineCount": len(run.lines),
        "eventsLineCount": 0,
        "historyTail": json.dumps(run.lines[-1:]),
        "eventsTail": "[]",
        "config": json.dumps(run.config),
        "tags": [],
        "notes": run.notes,
        "wandbConfig": json.dumps({"t": 1}),
    }


class _Handler(BaseHTTPRequestHandler):
    emulator: WandbEmulator
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.emulator.bodies.append(f"{self.path} {body[:100_000].decode(errors='replace')}")
        if self.path.endswith("/file_stream"):
            fault = self.emulator.stream(self.path.split("/")[4], json.loads(body))
            if fault == "cut":
                self.close_connection = True
            elif fault:
                self._answer(int(fault), {"error": "emulated"})
            else:
                self._answer(200, {"exitcode": None, "limits": {}})
        elif self.path.startswith("/graphql"):
            self._answer(200, {"data": self.emulator.graphql(json.loads(body))})
        else:
            self._answer(200, {})

    do_GET = do_PUT = do_POST  # noqa: N815  the names that the library calls

    def _answer(self, status: int, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
