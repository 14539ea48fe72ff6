"""A check of an account: three kernels that answer ten probes, and what is known only from outside of them.

`main` holds the probes of a machine, `limit` waits to be ended at its time limit, `cancel` to be cancelled. Their names and that
of the small dataset hold the check's id, by which all four are deleted afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.ports.diagnosis import CheckOrder, Examined
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.providers.kaggle.client import Connection, Push
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.kernel import script
from orchestrator.providers.kaggle.launch import GPU_SHAPE, plain
from orchestrator.providers.kaggle.stream import lines, pieces, stored
from worker.doctor import outcome
from worker.doctor.kernel import FLOOD_LINE, KEPT_FILE
from worker.doctor.outcome import Outcome, ProbeError, attempt, not_asked
from worker.shared import wheel
from worker.shared.messages import LINE_MARK, signed_message

TERMINAL = frozenset({"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"})
ROLES = ("main", "limit", "cancel")
LEFT_OUT = "left out of this check"
STAGED = "trainhop-check.bin"
STAGED_BYTES = 4096
QUIET_S = 20.0
"""A log that says nothing for so long is opened again: every kernel of a check speaks once a second."""
MAX_FILE = 1 << 20
Said = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds and bytes of a check.

    `limit_s` is the time limit of the kernel that is to be ended, `answer_s` how long the kernel of the probes is waited for,
    `over_s` the other two beyond their time, `ready_s` the dataset, `listed_s` the files of an ended kernel.
    """

    limit_s: float = 90.0
    answer_s: float = 600.0
    over_s: float = 240.0
    ready_s: float = 90.0
    listed_s: float = 30.0
    probe_s: float = 180.0
    hub_s: float = 45.0
    poll_s: float = 2.0
    stamp_every_s: float = 1.0
    flood_bytes: int = 4 << 20
    hub_repo: str = "hf-internal-testing/tiny-random-gpt2"
    hub_file: str = "model.safetensors"


def names(check_id: str) -> dict[str, str]:
    """The slugs of a check by role, and that of its dataset under `data`."""
    return {role: f"trainhop-{plain(check_id)}-{role}"[:50] for role in (*ROLES, "data")}


def clear(connection: Connection, owner: str, check_id: str) -> None:
    """Delete everything of a check; raises the first refusal once all was tried."""
    slugs, first = names(check_id), None
    for role in (*ROLES, "data"):
        remove = connection.delete_dataset if role == "data" else connection.delete_kernel
        try:
            remove(owner, slugs[role])
        except ProviderUnavailable as error:
            first = first or error
    if first is not None:
        raise first


class Check:
    """One check under way. `tell` hears of every probe that has ended."""

    def __init__(
        self,
        connection: Connection,
        owner: str,
        order: CheckOrder,
        limits: Limits,
        tell: Callable[[Outcome], None],
    ) -> None:
        self._connection, self._owner, self._order = connection, owner, order
        self._limits, self._tell, self._slugs = limits, tell, names(order.id)
        self._versions: dict[str, str] = {}
        self._image = ""
        self._over = threading.Event()

    def run(self) -> Examined:
        """All of it; raises `KaggleError` or `ProviderUnavailable` where the kernel of the probes could not even be started."""
        with ThreadPoolExecutor(len(ROLES)) as pool:
            main = pool.submit(self._main)
            aside = [
                pool.submit(self._aside, outcome.TIME_LIMIT, self._time_limit),
                pool.submit(self._aside, outcome.CANCEL, self._cancel),
            ]
            found = {each.name: each for each in (*self._result(main), *(a.result() for a in aside))}
        outcomes = tuple(found[name] for name in outcome.PROBES)
        return Examined(image=self._image, versions=self._versions, outcomes=outcomes)

    def _result(self, main: Future[list[Outcome]]) -> list[Outcome]:
        try:
            return main.result()
        except BaseException:
            self._over.set()  # the others need not be waited for
            raise

    def _aside(self, name: str, probe: Callable[[], tuple[str, Said]]) -> Outcome:
        asked = name in self._order.probes
        found = attempt(name, probe) if asked else not_asked(name, LEFT_OUT)
        self._tell(found)
        return found

    # --- the kernel of the probes ---

    def _main(self) -> list[Outcome]:
        content, asked = secrets.token_bytes(STAGED_BYTES), self._order.probes
        ready_s = self._stage(content) if outcome.INPUTS in asked else None
        datasets = (f"{self._owner}/{self._slugs['data']}",) if ready_s is not None else ()
        pushed = time.monotonic()
        self._push("main", gpu=self._order.gpu, datasets=datasets, content=content)
        heard, lags, started_s, answer = {}, [], None, None
        for said in self._words("main", pushed + self._limits.answer_s):
            kind = said.get("kind")
            if kind == "began" and started_s is None:
                started_s, self._versions = time.monotonic() - pushed, _versions(said)
            elif kind == "stamp" and said["live"]:
                lags.append(time.time() - float(said["at"]))
            elif kind == "outcome" and (found := Outcome.read(said)) is not None:
                heard[found.name] = _with_times(found, ready_s, started_s)
                self._tell(heard[found.name])
            elif kind == "answer":
                answer, self._image = said, str(said.get("image", ""))[:64]
                break
        told = [o for each in (answer or {}).get("probes", ()) if (o := Outcome.read(each)) is not None]
        heard |= {found.name: _with_times(found, ready_s, started_s) for found in told}
        self._fill(heard, self._last_words("main") if answer is None else "")
        heard[outcome.LOG] = self._aside(outcome.LOG, lambda: self._log(lags, complete=answer is not None))
        return list(heard.values())

    def _fill(self, heard: dict[str, Outcome], why: str) -> None:
        """What the kernel did not come to is said to have failed, with its last words."""
        words = outcome.one_line(f"the kernel ended before this probe did: {why}")
        for name in outcome.PROBES:
            if name in heard or name in (outcome.LOG, outcome.TIME_LIMIT, outcome.CANCEL):
                continue
            asked = name in self._order.probes and name != outcome.DRIVE_SIGN_IN
            asked &= name != outcome.DRIVE_UPLOAD or bool(self._order.uploads)
            heard[name] = not_asked(name, LEFT_OUT)
            if asked:
                heard[name] = Outcome(name=name, status=outcome.FAILED, words=words)

    def _stage(self, content: bytes) -> float | None:
        """Bring a small file as a private dataset; seconds until it was READY, None if it did not become so."""
        slug, began = self._slugs["data"], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="trainhop-check-") as folder:
            source = Path(folder, STAGED)
            source.write_bytes(content)
            try:
                token = self._connection.upload(source, STAGED)
                self._connection.create_dataset(self._owner, slug, token)
                while self._connection.dataset_state(self._owner, slug) != "READY":
                    if time.monotonic() > began + self._limits.ready_s:
                        return None
                    time.sleep(self._limits.poll_s)
            except ProviderUnavailable:
                return None
        return time.monotonic() - began

    def _log(self, lags: list[float], *, complete: bool) -> tuple[str, Said]:
        """How late the log is, told without trusting two clocks to agree, and how much of a long one is kept."""
        if len(lags) < 2:
            raise ProbeError("the log of a running kernel could not be read", stamps=len(lags))
        data: Said = {"stamps": len(lags), "spread_s": round(max(lags) - min(lags), 1)}
        data["lag_s"] = round(statistics.median(lags), 1)
        if complete:
            self._await_end("main", self._limits.over_s)
            flood = sum(line.startswith(FLOOD_LINE) for line in self._stored_lines("main"))
            data["kept_share"] = round(flood / max(1, self._limits.flood_bytes >> 10), 3)
        kept = f"; {data['kept_share']:.0%} of a long output is kept" if complete else ""
        return f"the log of a running kernel lags by up to {data['spread_s']:.0f} s{kept}", data

    # --- the kernels that wait for their end ---

    def _time_limit(self) -> tuple[str, Said]:
        self._push("limit", timeout_s=self._limits.limit_s)
        signals: list[Said] = []
        age = 0.0
        until = time.monotonic() + self._limits.limit_s + self._limits.over_s
        for said in self._words("limit", until):
            age = max(age, float(said.get("age", 0.0)))
            if said.get("kind") == "signal":
                signals.append({"name": str(said["name"]), "age": float(said["age"])})
        state = self._state("limit")
        if state not in TERMINAL:
            raise ProbeError(
                f"a session with a limit of {self._limits.limit_s:.0f} s still ran after {age:.0f} s", obeyed=False
            )
        first = signals[0] if signals else None
        data: Said = {"obeyed": True, "ended_as": state, "ended_after_s": round(age, 1)}
        data["signal"] = first["name"] if first else ""
        data["signal_before_end_s"] = round(age - first["age"], 1) if first else None
        data["files_kept"], data["log_kept"] = self._kept("limit"), self._has_log("limit")
        sign = f"{first['name']} comes {data['signal_before_end_s']:.0f} s before" if first else "without any signal"
        words = f"a session is ended after {age:.0f} s ({sign}); its files {_can(data['files_kept'])} be had afterwards"
        return words, data

    def _cancel(self) -> tuple[str, Said]:
        self._push("cancel", timeout_s=self._limits.limit_s + self._limits.over_s)
        session = self._session_of("cancel")
        try:
            self._connection.cancel(session)
        except KaggleError as refusal:
            raise ProbeError(f"Kaggle refused to cancel a session ({refusal.words})", cancelled=False) from None
        if self._await_end("cancel", self._limits.over_s) not in TERMINAL:
            raise ProbeError("a cancelled session went on", cancelled=False)
        data: Said = {"cancelled": True, "files_kept": self._kept("cancel")}
        return f"a session can be cancelled by its id; its files {_can(data['files_kept'])} be had afterwards", data

    def _session_of(self, role: str) -> int:
        """The id that the kernel tells, once it has also written its file."""
        session = None
        for said in self._words(role, time.monotonic() + self._limits.over_s):
            if said.get("kind") == "began":
                session = said.get("session")
            elif said.get("kind") == "stamp":
                break
        if not isinstance(session, int):
            raise ProbeError("a kernel does not know its session's id (KAGGLE_CONTAINER_NAME)", cancelled=False)
        return session

    # --- what they share ---

    def _push(
        self,
        role: str,
        *,
        gpu: bool = False,
        datasets: tuple[str, ...] = (),
        content: bytes = b"",
        timeout_s: float = 0.0,
    ) -> None:
        limits, main = self._limits, role == "main"
        order = {
            "probes": sorted(self._order.probes),
            "uploads": list(self._order.uploads) if main else [],
            "staged": {"name": STAGED, "sha256": hashlib.sha256(content).hexdigest()},
            "device": "cuda" if gpu else "cpu",
            "hub": {"repo": limits.hub_repo, "file": limits.hub_file},
            "limit_s": limits.limit_s,
            "probe_s": limits.probe_s,
            "hub_s": limits.hub_s,
            "stamp_every_s": limits.stamp_every_s,
            "flood_bytes": limits.flood_bytes if outcome.LOG in self._order.probes else 0,
        }
        carried = {
            "task": "doctor",
            "role": role,
            "check": self._order.id,
            "token": self._order.token,
            "requirements": [*wheel.requirements(), *wheel.requirements("train")] if main else [],
            "order": order,
        }
        push = Push(
            slug=self._slugs[role],
            source=script("a check of this account. Made by a machine, deleted when it is over.", carried),
            machine_shape=GPU_SHAPE if gpu else "",
            internet=main,
            datasets=datasets,
            timeout_s=max(1, round(timeout_s or limits.answer_s)),
        )
        self._connection.push(self._owner, push)

    def _words(self, role: str, until: float) -> Iterator[Said]:
        """What a kernel says under its token, as it arrives, until its run has ended or `until` (monotonic) has come."""
        place = 0
        while time.monotonic() < until and not self._over.is_set():
            over = self._state(role) in TERMINAL
            with contextlib.suppress(ProviderUnavailable):
                for number, line in enumerate(self._stored_lines(role) if over else self._lines(role)):
                    if number < place:
                        continue
                    place = number + 1
                    if (said := self._understood(line)) is not None:
                        yield said | {"live": not over}
                    if time.monotonic() > until or self._over.is_set():
                        return
            if over:
                return
            time.sleep(self._limits.poll_s)

    def _understood(self, line: str) -> Said | None:
        message = signed_message(self._order.token, line)
        said = json.loads(message) if message is not None else None
        return said if isinstance(said, dict) else None

    def _lines(self, role: str) -> Iterator[str]:
        with self._connection.log(self._owner, self._slugs[role], QUIET_S) as answer:
            yield from lines(pieces(answer))

    def _stored_lines(self, role: str) -> Iterator[str]:
        """The log of an ended kernel, as far as it is kept."""
        with contextlib.suppress(ProviderUnavailable):
            _, log = self._connection.outputs(self._owner, self._slugs[role])
            yield from lines(stored([log]))

    def _has_log(self, role: str) -> bool:
        return any(self._understood(line) is not None for line in self._stored_lines(role))

    def _last_words(self, role: str) -> str:
        """The end of what it printed that was not meant for us: its own errors, mostly."""
        last = ""
        with contextlib.suppress(ProviderUnavailable):
            _, log = self._connection.outputs(self._owner, self._slugs[role])
            for piece in stored([log]):
                for line in piece.text.splitlines():
                    last = line if line.strip() and LINE_MARK not in line else last
        state = self._state(role)
        return f"{last or 'it said nothing'} ({state.lower() or 'Kaggle does not tell its state'})"

    def _state(self, role: str) -> str:
        with contextlib.suppress(ProviderUnavailable):
            return self._connection.state(self._owner, self._slugs[role])[0]
        return ""

    def _await_end(self, role: str, patience_s: float) -> str:
        until = time.monotonic() + patience_s
        while (state := self._state(role)) not in TERMINAL and time.monotonic() < until:
            self._over.wait(self._limits.poll_s)
        return state

    def _kept(self, role: str) -> bool:
        """Whether the file that the kernel wrote can be had, which may take a moment after its end."""
        until = time.monotonic() + self._limits.listed_s
        while not (kept := self._has_file(role)) and time.monotonic() < until:
            time.sleep(self._limits.poll_s)
        return kept

    def _has_file(self, role: str) -> bool:
        with contextlib.suppress(ProviderUnavailable), tempfile.TemporaryDirectory(prefix="trainhop-check-") as folder:
            files, _ = self._connection.outputs(self._owner, self._slugs[role])
            for url in [url for name, url in files if name == KEPT_FILE]:
                target = Path(folder, KEPT_FILE)
                self._connection.download(url, target)
                return target.stat().st_size > 0
        return False


def _can(kept: bool) -> str:
    return "can" if kept else "cannot"


def _versions(said: Said) -> dict[str, str]:
    found = said.get("versions")
    versions = {str(k)[:40]: str(v)[:40] for k, v in found.items()} if isinstance(found, dict) else {}
    return dict(list(versions.items())[:40])


def _with_times(found: Outcome, ready_s: float | None, started_s: float | None) -> Outcome:
    """What only the outside knows of the inputs: how long they took to be ready, and the machine to start."""
    if found.name != outcome.INPUTS or found.status == outcome.NOT_ASKED:
        return found
    data: Said = dict(found.data)
    if ready_s is None:
        words = "a private dataset did not become ready at Kaggle in time"
        return replace(found, status=outcome.FAILED, words=words, data=data | {"ready_s": None})
    data["ready_s"] = round(ready_s, 1)
    data["started_s"] = None if started_s is None else round(started_s, 1)
    return replace(found, words=f"{found.words}; READY after {ready_s:.0f} s", data=data)
