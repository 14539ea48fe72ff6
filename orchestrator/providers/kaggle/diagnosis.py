"""A check of an account: three kernels run ten probes, and the server makes the probes that need an outside view.

`main` runs the probes of a machine. `limit` waits for its time limit. `cancel` waits to be cancelled. The names of the
kernels and of the small dataset contain the check's id, by which they are deleted afterwards.
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

from orchestrator.ports.providers import CheckOrder, Examined, ProviderUnavailable
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
"""A log without data for so long is opened again. Every kernel of a check prints once a second."""
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds and bytes of a check.

    `limit_s` is the time limit of the kernel `limit`. `answer_s` is the maximum wait for the kernel `main`. `over_s` is
    the maximum wait for the other two after their time. `ready_s` is the maximum wait for the dataset, and `listed_s`
    the one for the files of an ended kernel.
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


EMULATED_LIMITS = Limits(limit_s=8.0, over_s=30.0, probe_s=400.0, poll_s=0.2, flood_bytes=256 << 10)
"""An emulator's machines end within seconds, and may train slowly."""


def names(check_id: str) -> dict[str, str]:
    """The slugs of a check by role, and its dataset's slug under `data`."""
    return {role: f"trainhop-{plain(check_id)}-{role}"[:50] for role in (*ROLES, "data")}


def clear(connection: Connection, owner: str, check_id: str) -> None:
    """Delete everything of a check. Tries all, then raises the first refusal."""
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
    """A running check. `tell` is called with every probe that has ended."""

    def __init__(
        self, connection: Connection, owner: str, order: CheckOrder, limits: Limits, tell: Callable[[Outcome], None]
    ) -> None:
        self._connection, self._owner, self._order = connection, owner, order
        self._limits, self._tell, self._slugs = limits, tell, names(order.id)
        self._versions: dict[str, str] = {}
        self._image = ""
        self._over = threading.Event()

    def run(self) -> Examined:
        """Run the whole check.

        Raises `KaggleError` or `ProviderUnavailable` if the kernel `main` could not be started.
        """
        with ThreadPoolExecutor(len(ROLES)) as pool:
            main = pool.submit(self._main)
            aside = [
                pool.submit(self._aside, outcome.TIME_LIMIT, self._time_limit),
                pool.submit(self._aside, outcome.CANCEL, self._cancel),
            ]
            by_name = {each.name: each for each in (*self._result(main), *(a.result() for a in aside))}
        outcomes = tuple(by_name[name] for name in outcome.PROBES)
        return Examined(image=self._image, versions=self._versions, outcomes=outcomes)

    def _result(self, main: Future[list[Outcome]]) -> list[Outcome]:
        try:
            return main.result()
        except BaseException:
            self._over.set()  # do not wait for the other kernels

            raise

    def _aside(self, name: str, probe: Callable[[], tuple[str, Json]]) -> Outcome:
        is_requested = name in self._order.probes
        result = attempt(name, probe) if is_requested else not_asked(name, LEFT_OUT)
        self._tell(result)
        return result

    # --- the kernel `main` ---

    def _main(self) -> list[Outcome]:
        content, probes = secrets.token_bytes(STAGED_BYTES), self._order.probes
        ready_s = self._stage(content) if outcome.INPUTS in probes else None
        datasets = (f"{self._owner}/{self._slugs['data']}",) if ready_s is not None else ()
        pushed = time.monotonic()
        self._push("main", gpu=self._order.gpu, datasets=datasets, content=content)
        heard, lags, started_s, answer = {}, [], None, None
        for message in self._words("main", pushed + self._limits.answer_s):
            kind = message.get("kind")
            if kind == "began" and started_s is None:
                started_s, self._versions = time.monotonic() - pushed, _versions(message)
            elif kind == "stamp" and message["live"]:
                lags.append(time.time() - float(message["at"]))
            elif kind == "outcome" and (result := Outcome.read(message)) is not None:
                heard[result.name] = _with_times(result, ready_s, started_s)
                self._tell(heard[result.name])
            elif kind == "answer":
                answer, self._image = message, str(message.get("image", ""))[:64]
                break
        repeated = [o for each in (answer or {}).get("probes", ()) if (o := Outcome.read(each)) is not None]
        heard |= {result.name: _with_times(result, ready_s, started_s) for result in repeated}
        self._fill(heard, self._last_words("main") if answer is None else "")
        heard[outcome.LOG] = self._aside(outcome.LOG, lambda: self._log(lags, complete=answer is not None))
        return list(heard.values())

    def _fill(self, heard: dict[str, Outcome], why: str) -> None:
        """Mark the probes that the kernel did not reach as failed, with the kernel's last output."""
        words = outcome.one_line(f"the kernel ended before this probe did: {why}")
        for name in outcome.PROBES:
            if name in heard or name in (outcome.LOG, outcome.TIME_LIMIT, outcome.CANCEL):
                continue
            is_requested = name in self._order.probes and name != outcome.DRIVE_SIGN_IN
            is_requested &= name != outcome.DRIVE_UPLOAD or bool(self._order.uploads)
            heard[name] = not_asked(name, LEFT_OUT)
            if is_requested:
                heard[name] = Outcome(name=name, status=outcome.FAILED, words=words)

    def _stage(self, content: bytes) -> float | None:
        """Upload a small file as a private dataset. Returns the seconds until it was READY, or None on a time-out."""
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

    def _log(self, lags: list[float], *, complete: bool) -> tuple[str, Json]:
        """The log's delay, measured without comparing two clocks, and how much of a long log is kept."""
        if len(lags) < 2:
            raise ProbeError("the log of a running kernel could not be read", stamps=len(lags))
        data: Json = {"stamps": len(lags), "spread_s": round(max(lags) - min(lags), 1)}
        data["lag_s"] = round(statistics.median(lags), 1)
        if complete:
            self._await_end("main", self._limits.over_s)
            flood = sum(line.startswith(FLOOD_LINE) for line in self._stored_lines("main"))
            data["kept_share"] = round(flood / max(1, self._limits.flood_bytes >> 10), 3)
        kept = f", {data['kept_share']:.0%} of a long output is kept" if complete else ""
        return f"the log of a running kernel lags by up to {data['spread_s']:.0f} s{kept}", data

    # --- the kernels `limit` and `cancel` ---

    def _time_limit(self) -> tuple[str, Json]:
        self._push("limit", timeout_s=self._limits.limit_s)
        signals: list[Json] = []
        age = 0.0
        until = time.monotonic() + self._limits.limit_s + self._limits.over_s
        for message in self._words("limit", until):
            age = max(age, float(message.get("age", 0.0)))
            if message.get("kind") == "signal":
                signals.append({"name": str(message["name"]), "age": float(message["age"])})
        state = self._state("limit")
        if state not in TERMINAL:
            raise ProbeError(
                f"a session with a limit of {self._limits.limit_s:.0f} s was still running after {age:.0f} s",
                obeyed=False,
            )
        first = signals[0] if signals else None
        data: Json = {"obeyed": True, "ended_as": state, "ended_after_s": round(age, 1)}
        data["signal"] = first["name"] if first else ""
        data["signal_before_end_s"] = round(age - first["age"], 1) if first else None
        data["files_kept"], data["log_kept"] = self._kept("limit"), self._has_log("limit")
        sign = f"{first['name']} comes {data['signal_before_end_s']:.0f} s before" if first else "without any signal"
        words = (
            f"a session ends after {age:.0f} s ({sign}), its files {_can(data['files_kept'])} be downloaded afterwards"
        )
        return words, data

    def _cancel(self) -> tuple[str, Json]:
        self._push("cancel", timeout_s=self._limits.limit_s + self._limits.over_s)
        session = self._session_of("cancel")
        try:
            self._connection.cancel(session)
        except KaggleError as refusal:
            raise ProbeError(f"Kaggle refused to cancel a session ({refusal.words})", cancelled=False) from None
        if self._await_end("cancel", self._limits.over_s) not in TERMINAL:
            raise ProbeError("a cancelled session kept running", cancelled=False)
        data: Json = {"cancelled": True, "files_kept": self._kept("cancel")}
        return (
            f"a session can be cancelled by its id, its files {_can(data['files_kept'])} be downloaded afterwards",
            data,
        )

    def _session_of(self, role: str) -> int:
        """The session's id as the kernel prints it, after the kernel has also written its file."""
        session = None
        for message in self._words(role, time.monotonic() + self._limits.over_s):
            if message.get("kind") == "began":
                session = message.get("session")
            elif message.get("kind") == "stamp":
                break
        if not isinstance(session, int):
            raise ProbeError("a kernel has no session id (KAGGLE_CONTAINER_NAME)", cancelled=False)
        return session

    # --- helpers ---

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
            source=script("a check of this account. Created automatically, deleted after the check.", carried),
            machine_shape=GPU_SHAPE if gpu else "",
            internet=main,
            datasets=datasets,
            timeout_s=max(1, round(timeout_s or limits.answer_s)),
        )
        self._connection.push(self._owner, push)

    def _words(self, role: str, until: float) -> Iterator[Json]:
        """The signed messages of a kernel as they arrive, until its run has ended or until `until` (monotonic)."""
        place = 0
        while time.monotonic() < until and not self._over.is_set():
            over = self._state(role) in TERMINAL
            with contextlib.suppress(ProviderUnavailable):
                for number, line in enumerate(self._stored_lines(role) if over else self._lines(role)):
                    if number < place:
                        continue
                    place = number + 1
                    if (message := self._understood(line)) is not None:
                        yield message | {"live": not over}
                    if time.monotonic() > until or self._over.is_set():
                        return
            if over:
                return
            time.sleep(self._limits.poll_s)

    def _understood(self, line: str) -> Json | None:
        message = signed_message(self._order.token, line)
        content = json.loads(message) if message is not None else None
        return content if isinstance(content, dict) else None

    def _lines(self, role: str) -> Iterator[str]:
        with self._connection.log(self._owner, self._slugs[role], QUIET_S) as answer:
            yield from lines(pieces(answer))

    def _stored_lines(self, role: str) -> Iterator[str]:
        """The stored log of an ended kernel, as far as Kaggle keeps it."""
        with contextlib.suppress(ProviderUnavailable):
            _, log = self._connection.outputs(self._owner, self._slugs[role])
            yield from lines(stored([log]))

    def _has_log(self, role: str) -> bool:
        return any(self._understood(line) is not None for line in self._stored_lines(role))

    def _last_words(self, role: str) -> str:
        """The last output lines that are not messages. They are mostly errors of the kernel."""
        last = ""
        with contextlib.suppress(ProviderUnavailable):
            _, log = self._connection.outputs(self._owner, self._slugs[role])
            for piece in stored([log]):
                for line in piece.text.splitlines():
                    last = line if line.strip() and LINE_MARK not in line else last
        state = self._state(role)
        return f"{last or 'no message'} ({state.lower() or 'unknown state'})"

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
        """Whether the kernel's file can be downloaded. That can take a moment after its end."""
        until = time.monotonic() + self._limits.listed_s
        while not (kept := self._has_file(role)) and time.monotonic() < until:
            time.sleep(self._limits.poll_s)
        return kept

    def _has_file(self, role: str) -> bool:
        with contextlib.suppress(ProviderUnavailable), tempfile.TemporaryDirectory(prefix="trainhop-check-") as folder:
            files, _ = self._connection.outputs(self._owner, self._slugs[role])
            for url in [url for name, url in files if name == KEPT_FILE]:
                target = Path(folder, KEPT_FILE)
                self._connection.download(url, target, 1)
                return target.stat().st_size > 0
        return False


def _can(kept: bool) -> str:
    return "can" if kept else "cannot"


def _versions(message: Json) -> dict[str, str]:
    installed = message.get("versions")
    versions = {str(k)[:40]: str(v)[:40] for k, v in installed.items()} if isinstance(installed, dict) else {}
    return dict(list(versions.items())[:40])


def _with_times(result: Outcome, ready_s: float | None, started_s: float | None) -> Outcome:
    """Add the times that only the server can measure: until the inputs were ready and until the machine started."""
    if result.name != outcome.INPUTS or result.status == outcome.NOT_ASKED:
        return result
    data: Json = dict(result.data)
    if ready_s is None:
        words = "a private dataset did not become ready at Kaggle in time"
        return replace(result, status=outcome.FAILED, words=words, data=data | {"ready_s": None})
    data["ready_s"] = round(ready_s, 1)
    data["started_s"] = None if started_s is None else round(started_s, 1)
    return replace(result, words=f"{result.words}; READY after {ready_s:.0f} s", data=data)
