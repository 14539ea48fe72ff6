"""A worker without training: real messages, real checkpoints, steps that only sleep. `python light_worker.py TICKET`.

Each step and each accepted checkpoint is a line of `ledger.txt` beside the machine's sessions, with the time.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np

from worker.agent.uplink import HttpUplink, ServerAway, Stale
from worker.shared import checkpoint_file
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Hardware, Manifest, Recipe
from worker.shared.messages import (
    Assignment,
    ExportedAdapter,
    Finish,
    Grant,
    GrantKind,
    Offer,
    Phase,
    Report,
    StartRequest,
    Ticket,
)
from worker.shared.process import note_process
from worker.shared.wire import PROTOCOL_VERSION

STEP_S, SAVE_EVERY = 1.0, 5
PAUSE_S = 0.3
T = TypeVar("T")


class LightSession:
    """One lease. While the server is away it trains on, and delivers its newest checkpoint later."""

    def __init__(self, ticket: Ticket, home: Path) -> None:
        self.uplink, self.home, self.seq = HttpUplink(ticket), home, 0
        self.ledger = home.parent.parent / "ledger.txt"
        request = StartRequest(protocol=PROTOCOL_VERSION, nonce="n" * 16, hardware=Hardware(device="cpu"))
        self.given: Assignment = self._until_answered(lambda: self.uplink.start(request))
        self.head = self.given.resume.sha256 if self.given.resume is not None else None
        self.grants = list(self.given.uploads)
        self.pending: tuple[Grant, Path, Offer] | None = None

    def _until_answered(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except ServerAway:
                time.sleep(PAUSE_S)

    def note(self, kind: str, step: int) -> None:
        with self.ledger.open("a") as file:
            file.write(f"{kind} {self.given.job} {self.given.fence} {step} {time.time():.3f}\n")

    def _head_of(self, step: int) -> dict:
        self.seq += 1
        return {"lease": self.given.lease, "fence": self.given.fence, "seq": self.seq, "step": step}

    def run(self) -> None:
        step, saved, last = self.given.resume_step, self.given.resume_step, self.given.spec.max_steps or 0
        self.note("begin", step)
        while step < last:
            time.sleep(STEP_S)
            step += 1
            self.note("step", step)
            with suppress(ServerAway):
                self.uplink.report(Report(**self._head_of(step), phase=Phase.TRAIN))
                if self.pending is None and step - saved >= SAVE_EVERY:
                    saved, self.pending = step, self.write(step)
                self.deliver()
        self._until_answered(self.deliver)
        if step > saved:
            self.pending = self._until_answered(lambda: self.write(step))
            self._until_answered(self.deliver)
        self._until_answered(lambda: self.finish(step))

    def _grant(self, kind: GrantKind) -> Grant:
        found = next((grant for grant in self.grants if grant.kind is kind), None)
        if found is None:
            (found,) = self.uplink.grants(self.given.fence, kind, 1)
            self.grants.append(found)
        return found

    def _put(self, grant: Grant, data: bytes) -> None:
        try:
            answer = httpx.put(grant.url or "", content=data, headers=grant.headers, trust_env=False, timeout=30)
        except httpx.HTTPError as error:
            raise ServerAway(str(error)) from error
        if answer.is_error:
            raise Stale(answer.text)

    def write(self, step: int) -> tuple[Grant, Path, Offer]:
        """A checkpoint on this machine's disk. It is sent with the same grant and the same bytes until it arrives."""
        grant = self._grant(GrantKind.CHECKPOINT)
        self.grants.remove(grant)
        manifest = Manifest(
            job=self.given.job,
            fence=self.given.fence,
            step=step,
            parent=self.head,
            recipe=Recipe.of(JobSpec.model_validate(self.given.spec.model_dump())),
            epoch=0,
            index=step,
            samples_seen=step,
            wall_seconds=1.0,
            backend="hf",
            precision="fp32",
            micro_batch_size=1,
            hardware=Hardware(),
            versions={},
            state={},
        )
        path = self.home / f"{step}.safetensors"
        sha256, size = checkpoint_file.write(path, {"a": np.full(4, step, dtype=np.float32)}, manifest)
        return grant, path, Offer(**self._head_of(step), key=grant.key, sha256=sha256, size=size, manifest=manifest)

    def deliver(self) -> None:
        """Send the checkpoint that has not arrived yet, if there is one."""
        if self.pending is None:
            return
        grant, path, offer = self.pending
        self._put(grant, path.read_bytes())
        reply = self.uplink.offer(offer)
        if not reply.committed:
            raise Stale(reply.refusal)
        self.head, self.pending = offer.sha256, None
        self.note("saved", offer.manifest.step)

    def finish(self, step: int) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("adapter_config.json", "{}")
        data, grant = packed.getvalue(), self._grant(GrantKind.ADAPTER)
        self._put(grant, data)
        digest = hashlib.sha256(data).hexdigest()
        adapter = ExportedAdapter(key=grant.key, sha256=digest, size=len(data), adapter_sha256=digest)
        self.uplink.finish(Finish(**self._head_of(step), adapter=adapter))
        self.note("end", step)


def main() -> int:
    path = Path(sys.argv[1])
    note_process(path.parent)
    try:
        LightSession(Ticket.model_validate_json(path.read_text()), path.parent).run()
    except Stale as error:
        print(f"stopped: {error}", flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
