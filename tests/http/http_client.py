"""Helpers that speak HTTP only: what a person's client and a machine's worker would send."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from starlette.testclient import TestClient

from orchestrator.bootstrap import App
from orchestrator.entrypoints.http.app import make_app
from orchestrator.services.dispatch import dispatch
from tests.helpers.loop_watch import LoopWatch
from tests.helpers.manifests import manifest
from worker.shared import checkpoint_file
from worker.shared.certificates import certificates
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe

ROWS = b"".join(b'{"text": "row %d"}\n' % n for n in range(32))


@dataclass(frozen=True)
class Api:
    """The application under test and a client for it."""

    app: App
    client: TestClient | Any

    @property
    def admin_token(self) -> str:
        return self.app.token_file.read_text().strip()

    def as_(self, token: str) -> ApiUser:
        return ApiUser(self, token)

    @property
    def admin(self) -> ApiUser:
        return self.as_(self.admin_token)


@dataclass(frozen=True)
class ApiUser:
    """Somebody with a token; paths are below /api/v1."""

    api: Api
    token: str

    def call(self, method: str, path: str, **more: Any):
        headers = {"Authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return self.api.client.request(method, f"/api/v1{path}", headers=headers, **more)

    def get(self, path: str, **more: Any):
        return self.call("GET", path, **more)

    def post(self, path: str, json: Any = None, **more: Any):
        return self.call("POST", path, json=json, **more)

    def upload(self, data: bytes = ROWS, name: str = "rows.jsonl", **query: Any):
        return self.call("POST", "/datasets", params={"name": name, **query}, content=data)

    def job_file(self, **changes: Any) -> dict[str, Any]:
        data = self.upload().json()["sha256"]
        return {
            "name": "small",
            "base_model": "org/small",
            "datasets": [{"path": f"sha256:{data}"}],
            "max_steps": 10,
        } | changes

    def submit(self, **changes: Any) -> dict[str, Any]:
        answer = self.post("/jobs", self.job_file(**changes))
        assert answer.status_code == 201, answer.text
        return answer.json()


@dataclass(frozen=True)
class People:
    """An admin and two members who know nothing of each other."""

    admin: ApiUser
    ann: ApiUser
    bob: ApiUser

    @classmethod
    def of(cls, api: Api) -> People:
        def member(name: str) -> ApiUser:
            assert api.admin.post("/members", {"name": name}).status_code == 201
            made = api.admin.post("/tokens", {"member": name, "name": "test"})
            assert made.status_code == 201, made.text
            return api.as_(made.json()["secret"])

        assert api.admin.call("PUT", "/team", json={"everyone_sees_jobs": False}).status_code == 200
        return cls(admin=api.admin, ann=member("ann"), bob=member("bob"))


class Machine:
    """A worker driven by hand: it holds one lease's token and nothing else."""

    def __init__(self, api: Api, lease: str, token: str) -> None:
        self.api, self.lease, self.caller = api, lease, api.as_(token)
        self.seq, self.fence = 0, 1
        self.assignment: dict[str, Any] = {}
        self.head: str | None = None

    @classmethod
    def launched(cls, api: Api, provider: Any) -> Machine:
        """The machine that the next dispatch starts."""
        before = len(provider.launched)
        dispatch(api.app.context)
        assert len(provider.launched) == before + 1
        request = provider.launched[-1]
        return cls(api, request.lease_id, request.token)

    def say(self, verb: str, body: dict[str, Any], **more: Any):
        return self.caller.post(f"/leases/{self.lease}/{verb}", body, **more)

    def start(self, nonce: str = "n1", device: str = "cpu"):
        hardware = {"device": device, "name": f"test {device}"}
        answer = self.say("start", {"protocol": 1, "nonce": nonce, "hardware": hardware})
        if answer.status_code == 200:
            self.assignment = answer.json()
            self.fence = self.assignment["fence"]
            self.head = (self.assignment["resume"] or {}).get("sha256")
        return answer

    def said(self, kind: str, **more: Any) -> dict[str, Any]:
        self.seq += 1
        return {"kind": kind, "lease": self.lease, "fence": self.fence, "seq": self.seq} | more

    def report(self, step: int, **more: Any):
        body = self.said(
            "report", step=step, phase="train", metrics=[{"step": step, "values": {"loss": 1.0 / (step + 1)}}]
        )
        return self.say("report", body | more)

    def save(self, step: int, folder: Path, base_sha256: str | None = None):
        """Write a checkpoint, upload it through a grant, offer it."""
        grant = next(g for g in self.assignment["uploads"] if g["kind"] == "checkpoint")
        self.assignment["uploads"].remove(grant)
        recipe = Recipe.of(JobSpec.model_validate(self.assignment["spec"]))
        recipe = recipe.model_copy(update={"base_sha256": base_sha256})
        made = manifest(self.assignment["job"], step, recipe, fence=self.fence, parent=self.head)
        path = folder / f"{self.lease}-{step}.safetensors"
        sha256, size = checkpoint_file.write(path, {"a": np.full(4, step, dtype=np.float32)}, made)
        stored = self.put(grant, path.read_bytes())
        assert stored.is_success or stored.json()["type"].endswith("stale-fence")  # its offer must be refused as well
        offer = self.said("offer", key=grant["key"], sha256=sha256, size=size, manifest=made.model_dump(mode="json"))
        answer = self.say("offer", offer)
        if answer.status_code == 200 and answer.json()["committed"]:
            self.head = sha256
        return answer

    def put(self, grant: dict[str, Any], data: bytes):
        """Use an upload grant the way a remote worker does: its URL and its headers, no token."""
        if grant.get("resumable"):
            return httpx.put(grant["url"], content=data, trust_env=False)
        path = grant["url"].partition("/api/v1")[2]
        return self.api.client.put(f"/api/v1{path}", content=data, headers=grant["headers"])

    def finish(self, step: int, data: bytes = b"PK the adapter", adapter_sha256: str = "a" * 64):
        """Upload an adapter and say the last word; the hash is that of the weights in it."""
        grant = next(g for g in self.assignment["uploads"] if g["kind"] == "adapter")
        assert self.put(grant, data).is_success
        digest = hashlib.sha256(data).hexdigest()
        adapter = {"key": grant["key"], "sha256": digest, "size": len(data), "adapter_sha256": adapter_sha256}
        return self.say("finish", self.said("finish", step=step, adapter=adapter))


class _Client:
    """The TestClient's `request` over a real socket."""

    def __init__(self, url: str) -> None:
        self.base_url = url
        self._http = httpx.Client(base_url=url, verify=certificates(), timeout=20)
        self.request, self.get, self.put, self.stream = (
            self._http.request, self._http.get, self._http.put, self._http.stream
        )  # fmt: skip

    def close(self) -> None:
        self._http.close()


@contextlib.contextmanager
def served(app: App) -> Iterator[Api]:
    """The application behind a real socket of this computer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # a client may call before the server's thread has come up
        config = uvicorn.Config(make_app(app), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        server, watch = uvicorn.Server(config), LoopWatch()

        def serve() -> None:
            with asyncio.Runner(loop_factory=watch.new_loop) as runner:
                runner.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=serve)
        thread.start()
        client = _Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield Api(app=app, client=client)
        finally:
            client.close()
            server.should_exit = True
            thread.join()
    watch.check()
