"""Pushes to an emulated hub by the real client, cut at 50 instants, and where the hub token can be found afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.adversity.canaries import words_in
from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import finished, job_file, say, write_rows
from benchmarks.tiny_model import make_tiny_llama
from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.services.hub_tokens import set_token
from tests.emulators.hub import HubEmulator
from tests.helpers.pushes import FILES, add_finished_job, archive

INSTANTS = 50
EVERY_NTH_CHILD = 5
"""At every fifth instant only the process that pushes is killed, at the others the server."""
WEIGHTS_BYTES = 400_000
OWNER, PUSHES = "ann-on-the-hub", "orchestrator.adapters.hub_push"
PATIENCE_S = 120.0
_SIDES = {"logs", "database", "answers", "machines", "process list"}


class _Cut:
    """Counts the instants of a push at the hub. At the instant `at` it calls `kill`, before the hub goes on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.at: int | None = None
        self.kill: Callable[[], None] = lambda: None
        self.done = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, instant: str) -> None:
        with self._lock:
            self.seen.append(instant)
            if self.at is not None and len(self.seen) == self.at + 1:
                self.kill()
                self.done.set()

    def arm(self, at: int | None, kill: Callable[[], None]) -> None:
        """Count from here on."""
        with self._lock:
            self.seen, self.at, self.kill = [], at, kill
            self.done.clear()


def push(folder: Path) -> Iterator[Figure]:
    """Kill the server, or the process that pushes, at 50 instants of a push. Then let it go on, and push once more."""
    cut = _Cut()
    with HubEmulator() as hub:
        token = "hf_" + secrets.token_hex(16)
        hub.accounts[token] = OWNER
        hub.at = cut
        jobs = _finished_jobs(folder / "data", hub, token, INSTANTS + 1)
        with lab(folder, hub_endpoint=hub.endpoint, local_slots=0) as server:
            all_instants = _instants(server, cut, jobs[0])
            step = len(all_instants) / INSTANTS
            chosen = [int(number * step) for number in range(INSTANTS)]
            after: Counter[int] = Counter()
            resumed: Counter[int] = Counter()
            repeated: Counter[int] = Counter()
            for number, (at, job) in enumerate(zip(chosen, jobs[1:], strict=True)):
                repo = f"{OWNER}/guide-{number}"
                counts = _cut_once(server, hub, cut, job, repo, at, is_child=number % EVERY_NTH_CHILD == 0)
                after[counts[0]] += 1
                resumed[counts[1]] += 1
                repeated[counts[2]] += 1
                say(f"    {number + 1} of {INSTANTS}, {all_instants[at]}: commits {counts}")
    yield Figure(
        name="different instants at which a push was killed",
        value=len(set(chosen)),
        bar=str(INSTANTS),
        ok=len(set(chosen)) == INSTANTS,
    )
    for name, found, allowed in (
        ("right after the kill", after, {0, 1}),
        ("after the push went on", resumed, {1}),
        ("after the push was repeated", repeated, {1}),
    ):
        bar = "0 or 1" if len(allowed) > 1 else "1 each"
        value = {f"{commits} commits": times for commits, times in sorted(found.items())}
        yield Figure(name=f"commits {name}", value=value, bar=bar, ok=set(found) <= allowed)
    yield Figure(
        name="kills with and without a commit at that time", value=dict(after), bar="both", ok=set(after) == {0, 1}
    )


def _finished_jobs(data: Path, hub: HubEmulator, token: str, count: int) -> list[str]:
    """Finished jobs of the admin, each with an adapter of its own, in a data folder that a server may be started on."""
    app = build(Settings(data_dir=data, hub_endpoint=hub.endpoint, local_slots=0))
    try:
        with app.context.uow() as tx:
            (admin,) = tx.members.all()
        set_token(app.context, admin.id, token)
        jobs = [f"job-push{number:04}" for number in range(count)]
        for number, job_id in enumerate(jobs):
            weights = random.Random(number).randbytes(WEIGHTS_BYTES)  # the hub would not ask for the same ones again
            content = archive({**FILES, "adapter_model.safetensors": weights})
            add_finished_job(app.context.uow, app.store, job_id, data.parent, data=content, weights=weights)
    finally:
        app.close()
    return jobs


def _start(server: Lab, job: str, repo: str) -> str:
    return server.post(f"/jobs/{job}/pushes", {"repo": repo})["id"]


def _ended(server: Lab, push_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = server.get(f"/pushes/{push_id}")
        return found if found["state"] != "running" else None

    ended = server.wait_for(look, "the end of a push", PATIENCE_S, 0.1)
    if ended["state"] != "pushed":
        raise RuntimeError(f"not pushed: {ended['reason']}")
    return ended


def _instants(server: Lab, cut: _Cut, job: str) -> list[str]:
    """The instants of a whole push, from its first request in the background on."""
    push_id = _start(server, job, f"{OWNER}/whole")
    cut.arm(None, lambda: None)
    _ended(server, push_id)
    return list(cut.seen)


def _cut_once(
    server: Lab, hub: HubEmulator, cut: _Cut, job: str, repo: str, at: int, *, is_child: bool
) -> tuple[int, int, int]:
    """The numbers of commits after the kill, after the push has gone on, and after it was repeated."""
    cut.arm(None, lambda: None)
    push_id = _start(server, job, repo)
    cut.arm(at, (lambda: _kill_child(server)) if is_child else server.kill)
    if not cut.done.wait(PATIENCE_S):
        raise TimeoutError(f"the push had fewer than {at} instants")
    time.sleep(0.1)
    cut.arm(None, lambda: None)
    after = len(hub.writes.commits(repo))
    if not is_child:
        server.up()
    _ended(server, push_id)
    resumed = len(hub.writes.commits(repo))
    _ended(server, _start(server, job, repo))
    return after, resumed, len(hub.writes.commits(repo))


def _kill_child(server: Lab) -> None:
    for pid in _pushing(server.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pushing(parent: int) -> list[int]:
    """The processes that push for this server."""
    return [pid for pid, line in _processes().items() if PUSHES.encode() in line and _parent(pid) == parent]


def _processes() -> dict[int, bytes]:
    """The command lines of all processes."""
    found: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


class _Watched:
    """What is in the process list, and in the variables of the server's children, at each instant of a push."""

    def __init__(self) -> None:
        self.server = 0
        self.texts: set[bytes] = set()
        self.pushing = 0

    def __call__(self, _instant: str) -> None:
        for pid, line in _processes().items():
            self.texts.add(line)
            if _parent(pid) == self.server:
                self.pushing += PUSHES.encode() in line
                with contextlib.suppress(OSError):
                    self.texts.add(Path(f"/proc/{pid}/environ").read_bytes())


def tokens(folder: Path) -> Iterator[Figure]:
    """Train a job that is pushed at its end to a hub that fails and repeats the token, and search for the token."""
    watched, token = _Watched(), "hf_" + secrets.token_hex(16)
    answers: list[bytes] = []
    with HubEmulator() as hub:
        hub.accounts[token] = OWNER
        settings = {"allowed_folders": json.dumps([str(folder)]), "hub_endpoint": hub.endpoint, "report_every_s": 1}
        with lab(folder / "lab", **settings) as server:
            server.client.event_hooks["response"] = [lambda answer: answers.append(answer.read())]
            server.put("/hub-token", {"token": token})
            watched.server, hub.at = server.pid, watched
            for match in ("POST .*/commit/main", "POST /api/repos/create"):
                hub.rules.add(match, status=500, body=token, headers={"X-Error-Message": token, "Retry-After": "1"})
            data = server.upload(write_rows(folder / "rows.jsonl"))
            file = job_file(make_tiny_llama(folder / "model"), data, "lora")
            job = server.post("/jobs", file | {"max_steps": 4, "hub_model_id": f"{OWNER}/trained"})["id"]
            server.wait_for(lambda: finished(server, job), "the job's end", 600, 0.2)
            (pushed,) = server.get(f"/jobs/{job}/pushes")["items"]
            state = _ended(server, pushed["id"])["state"]
            hub.rules.add("PUT /lfs/", times=0, status=403, body=token)
            failed = server.post(f"/jobs/{job}/pushes", {"repo": f"{OWNER}/second"})
            for path in ("", "/pushes", "/events", "/sessions", "/provenance", "/card", "/metrics"):
                server.client.get(f"/jobs/{job}{path}")
            for path in ("/hub-token", "/me", "/jobs", f"/pushes/{failed['id']}"):
                server.client.get(path)
        places = _places(server.data, answers, watched)
    yield Figure(name="the push that follows a job", value=state, bar="pushed", ok=state == "pushed")
    for place, contents in places.items():
        hits = words_in(contents, {"token": token, "open": f"{OWNER}/trained"})
        yield Figure(name=f"hub tokens in {place}", value=int("token" in hits), bar="0", ok="token" not in hits)
        if place in ("answers", "database"):
            yield Figure(name=f"the repository's name in {place}", value="open" in hits, bar="found", ok="open" in hits)
    found = {place: len(contents) for place, contents in places.items()}
    ok = set(places) >= _SIDES and all(found.values()) and watched.pushing > 0
    yield Figure(name="texts searched, some of them of a process that pushed", value=found, bar="some", ok=ok)
    leaked = sum(
        seen.authorization is not None for seen in hub.seen if "/lfs/" in seen.request and "PUT" in seen.request
    )
    yield Figure(name="uploads to the hub's storage that carry the token", value=leaked, bar="0", ok=leaked == 0)


def _places(data: Path, answers: list[bytes], watched: _Watched) -> dict[str, list[bytes]]:
    """Everything that was stored, printed or answered. Logs and machines are those of the server and its workers."""
    sessions = [path.read_bytes() for path in (data / "sessions").rglob("*") if path.is_file()]
    own = [path for path in data.rglob("*") if path.is_file() and "sessions" not in path.relative_to(data).parts]
    database = [path for path in own if path.name.startswith("trainhop.db")]
    return {
        "logs": [(data.parent / "server.log").read_bytes()],
        "database": [path.read_bytes() for path in database],
        "other files of the server": [path.read_bytes() for path in own if path not in database],
        "answers": answers,
        "machines": sessions,
        "process list": list(watched.texts),
    }
