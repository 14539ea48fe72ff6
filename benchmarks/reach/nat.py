"""A joined machine behind a router, between hosts made of network namespaces. Needs root, and says so without it.

    server (this host) --- router (translates addresses) --- machine (knows no way to the server, nor the server to it)

The router is a relay in a namespace of its own, because not every kernel can translate addresses or lose packets: each
piece is delayed, and some connections break. Meanwhile the machine's address changes, and then the router's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lab import lab
from benchmarks.reach.line import Line
from benchmarks.report import Figure
from benchmarks.tiny_job import finished, say, write_rows
from benchmarks.tiny_model import make_tiny_llama
from worker.shared.process import tied

STEPS = 60
DELAY_S, BREAKS = 0.15, 0.05
PATIENCE_S = 300.0
ROUTER, MACHINE, CABLE = (f"th-{name}-{os.getpid()}" for name in ("router", "machine", "c"))
HOST_SIDE, ROUTER_OUT, ROUTER_IN, INSIDE = "10.213.1.1", "10.213.1.2", "10.213.2.1", "10.213.2.2"
LATER_OUT, LATER_INSIDE = "10.213.1.7", "10.213.2.9"
RELAY_PORT = 8642


class Router(Line):
    """A line that delays what passes, and breaks some connections."""

    def carry(self, data: bytes, target: socket.socket) -> None:
        time.sleep(random.uniform(0.5, 1.5) * DELAY_S)
        if random.random() < BREAKS:
            raise OSError("lost")
        super().carry(data, target)


def figures(folder: Path) -> Iterator[Figure]:
    """One session, whatever happens on the way."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        say("left out: network namespaces need root and `ip`")
        yield Figure(name="a machine behind a router", value="left out: needs root and `ip`", bar="root", ok=True)
        return
    model, rows = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "local_slots": 0}
    network = {"host": "0.0.0.0", "allowed_hosts": json.dumps([ROUTER_IN])}
    with _hosts(), lab(folder / "lab", **settings, **network, lease_s=10, report_every_s=1, reconcile_s=0.5) as server:
        port = int(str(server.client.base_url).split(":")[2].partition("/")[0])
        machine, url = folder / "machine", f"http://{ROUTER_IN}:{RELAY_PORT}"
        router = _inside(ROUTER, "benchmarks.reach.nat", HOST_SIDE, str(port))
        agent = None
        try:
            server.wait_for(lambda: _reaches(MACHINE, ROUTER_IN, RELAY_PORT), "the router", PATIENCE_S, 0.5)
            direct = _reaches(MACHINE, HOST_SIDE, port)
            code = server.post("/machine-codes")["code"]
            agent = _inside(MACHINE, "benchmarks.reach.light_agent", str(machine), "1", url, code)
            account = server.wait_for(lambda: server.get("/machines")["items"], "the machine", PATIENCE_S, 0.5)[0]
            server.patch(f"/accounts/{account['account_id']}", {"config": {"same_folders": True}})
            asked = {"base_model": str(model), "datasets": [{"path": server.upload(rows)}], "max_steps": STEPS}
            job = server.post("/jobs", asked | {"placement": {"providers": ["joined"]}, "adapter": "lora"})["id"]
            server.wait_for(lambda: server.job(job)["state"] == "running", "the session", PATIENCE_S, 0.5)
            _ip(MACHINE, "addr", "del", f"{INSIDE}/24", "dev", "inside")
            _ip(MACHINE, "addr", "add", f"{LATER_INSIDE}/24", "dev", "inside")
            time.sleep(5)
            _ip(ROUTER, "addr", "del", f"{ROUTER_OUT}/24", "dev", "out")
            _ip(ROUTER, "addr", "add", f"{LATER_OUT}/24", "dev", "out")
            server.wait_for(lambda: finished(server, job), "the job's end", PATIENCE_S, 0.5)
            sessions = len(server.get(f"/jobs/{job}/sessions")["items"])
        finally:
            for process in filter(None, (agent, router)):
                process.kill()
                process.wait()
            for note in machine.glob("sessions/*/pid.json"):  # a session outlives its agent
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
    yield Figure(name="the machine reaches the server without its router", value=direct, bar="false", ok=not direct)
    yield Figure(name="sessions of the job behind a router", value=sessions, bar="1", ok=sessions == 1)


@contextlib.contextmanager
def _hosts() -> Iterator[None]:
    """This host, a router and a machine, joined by two cables."""
    try:
        for name in (ROUTER, MACHINE):
            subprocess.run(["ip", "netns", "add", name], check=True)
            _ip(name, "link", "set", "lo", "up")
        _ip(None, "link", "add", CABLE, "type", "veth", "peer", "name", "out", "netns", ROUTER)
        _ip(None, "addr", "add", f"{HOST_SIDE}/24", "dev", CABLE)
        _ip(None, "link", "set", CABLE, "up")
        _ip(ROUTER, "addr", "add", f"{ROUTER_OUT}/24", "dev", "out")
        _ip(ROUTER, "link", "set", "out", "up")
        _ip(ROUTER, "link", "add", "in", "type", "veth", "peer", "name", "inside", "netns", MACHINE)
        _ip(ROUTER, "addr", "add", f"{ROUTER_IN}/24", "dev", "in")
        _ip(ROUTER, "link", "set", "in", "up")
        _ip(MACHINE, "addr", "add", f"{INSIDE}/24", "dev", "inside")
        _ip(MACHINE, "link", "set", "inside", "up")
        yield
    finally:
        for words in (["netns", "del", ROUTER], ["netns", "del", MACHINE], ["link", "del", CABLE]):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def _ip(name: str | None, *words: str) -> None:
    where = ["-n", name] if name is not None else []
    subprocess.run(["ip", *where, *words], check=True)


def _inside(name: str, module: str, *words: str) -> subprocess.Popen[bytes]:
    ip = shutil.which("ip") or "ip"
    return subprocess.Popen(tied([ip, "netns", "exec", name, sys.executable, "-m", module, *words]))


def _reaches(name: str, host: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
    command = ["ip", "netns", "exec", name, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    Router(int(sys.argv[2]), sys.argv[1], listen=("0.0.0.0", RELAY_PORT)).join()
