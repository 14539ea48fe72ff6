"""The cell of a run without a server: it starts the process that trains, shows it, and returns how it ended."""

from __future__ import annotations

import html
import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worker.notebook.connection import Next
from worker.notebook.errors import NotebookError
from worker.notebook.packages import needed, worker_folder
from worker.notebook.panel import Panel, Progress
from worker.notebook.session import LOG, Tail, environment, exit_reason, last_output_line, watch
from worker.shared.messages import Finish, Message, Offer, Release, Sample
from worker.shared.places import here

Outcome = Literal["finished", "saved", "failed", "lost", "refused", "interrupted"]
MAX_SAMPLES = 16
_DEAD: dict[str, str] = {}
"""The writer of the last process for each address, which has ended. The next one may take its job at once."""


@dataclass(kw_only=True, repr=False)
class PlaceProgress(Progress):
    """A `Progress` that counts a step as saved once the place has it. `place` is its address for people."""

    place: str = ""
    waiting: str = ""
    samples: list[Sample] = field(default_factory=list[Sample])
    finished: bool = False
    lost: str = ""
    refused: str = ""

    def take(self, message: Message) -> None:
        """Apply a message of the process."""
        if not isinstance(message, Offer):
            self.waiting = ""
            super().take(message)
            self.samples = [*self.samples, *getattr(message, "samples", ())][-MAX_SAMPLES:]

    def hear(self, event: Mapping[str, Any]) -> None:
        """Apply an event of the process."""
        if event.get("say"):
            print(event["say"], flush=True)
        if wait := event.get("wait"):
            if not self.waiting:
                print(wait, flush=True)
            self.waiting = self.doing = wait
        if "total" in event:
            self.first = self.step = event["step"]
            self.saved = event["step"] or None
        for name in ("job", "name", "total", "place", "lost", "refused", "finished", "saved"):
            if name in event:
                setattr(self, name, event[name])
        self.losses += event.get("losses", ())
        self.samples += [Sample.model_validate(sample) for sample in event.get("samples", ())]

    def _repr_html_(self) -> str:
        shown = [s for s in self.samples if s.step == max(each.step for each in self.samples)]
        rows = "".join(f"<tr><td><b>{html.escape(s.prompt)}</b></td><td>{html.escape(s.text)}</td></tr>" for s in shown)
        table = f"<table><caption>answers at step {shown[0].step}</caption>{rows}</table>" if shown else ""
        return super()._repr_html_() + table


@dataclass(frozen=True, kw_only=True)
class PlaceRun:
    """How a cell ended. `outcome` is one word for programs, `words` a sentence for people.

    `step` of `total` steps are saved in the `place`. `adapter` says where the adapter is, once the job is finished.
    """

    outcome: Outcome
    words: str
    place: str
    job: str
    step: int
    total: int
    adapter: str | None = None
    progress: PlaceProgress

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return f"{self.progress._repr_html_()}"


class _Events:
    """Reads the events of the process as they appear."""

    def __init__(self, path: Path, progress: PlaceProgress) -> None:
        self._path, self._progress, self._offset = path, progress, 0

    def poll(self, log: Path) -> Next:
        """Called about every second."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._progress.hear(json.loads(line))
        return Next.GO_ON


def run(order: dict[str, Any], variables: Mapping[str, str], module: str) -> PlaceRun:
    """Do an `Order` in a process of `module`, with these `variables` in its environment, and show it.

    `order` has no `writer` yet. An interrupt of the cell saves and ends it, a second one ends it at once. Raises
    `NotebookError`.
    """
    if importlib.util.find_spec("torch") is None:
        raise NotebookError("This kernel has no torch. Choose another kernel, or install it with `pip install torch`.")
    address = order["address"]
    progress = PlaceProgress(name=order["name"], job="", total=1, first=0, step=0, machine=here(), place=address)
    panel = Panel(progress)
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    writer = _DEAD.pop(address, "") or secrets.token_hex(8)
    try:
        if names := needed():
            progress.doing = f"installing {', '.join(names)}"
            panel.show()
        packages = worker_folder()
        path = home / "order.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({**order, "writer": writer}))
        with (home / LOG).open("wb") as log:
            # In its own session, so that an interrupt of the cell reaches only the kernel, which stops the process.
            child = subprocess.Popen(
                [sys.executable, "-m", module, str(path)],
                env={**environment(packages), **variables},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        outbox, events = Tail(home / "outbox.jsonl"), _Events(home / "events.jsonl", progress)
        interrupted, _ = watch(child, outbox, home / LOG, events, progress, panel)
        if child.stdin is not None:
            child.stdin.close()
        _DEAD[address] = writer
        events.poll(home / LOG)
        outcome, words = _ending(child.returncode, outbox.last, last_output_line(home / LOG), progress, interrupted)
        progress.last_word = words
    finally:
        panel.show(last=True)
        shutil.rmtree(home, ignore_errors=True)
    if outcome == "refused":
        raise NotebookError(words)
    return PlaceRun(
        outcome=outcome,
        words=words,
        place=progress.place,
        job=progress.job,
        step=progress.saved or 0,
        total=progress.total,
        adapter=_adapter(progress.place) if outcome == "finished" else None,
        progress=progress,
    )


def _ending(
    code: int, last: Message | None, log: str, progress: PlaceProgress, interrupted: bool
) -> tuple[Outcome, str]:
    """How the process ended, and what to do next."""
    again = "Run the same cell again, here or on another machine, to continue from there."
    saved = (
        f"step {progress.saved} of {progress.total} is saved in {progress.place}"
        if progress.saved
        else "no step is saved"
    )
    if progress.refused:
        return "refused", progress.refused
    if progress.lost:
        return "lost", f"Stopped: {progress.lost}. Nothing of it was overwritten. This cell has stopped saving."
    if progress.finished or (isinstance(last, Finish) and last.failure is None and code == 0):
        progress.saved = progress.step
        return (
            "finished",
            f"Finished at step {progress.step}. The adapter is in {_adapter(progress.place)}. {_use(progress)}",
        )
    return _unfinished(code, last, log, interrupted, saved, again)


def _unfinished(
    code: int, last: Message | None, log: str, interrupted: bool, saved: str, again: str
) -> tuple[Outcome, str]:
    if isinstance(last, Finish) and last.failure is not None:
        return "failed", f"Training failed: {last.failure.message.removesuffix('.')}. Last: {saved}. {again}"
    if isinstance(last, Release) and code == 0:
        why = "The time of this session is over" if last.reason == "deadline" else "Stopped"
        why = f"This machine cannot run the job ({last.detail})" if last.reason == "unfit" else why
        return "saved", f"{why}: {saved}. {again}"
    if interrupted or code == 0:
        return "interrupted", f"Stopped at once: {saved}. {again}"
    return "failed", f"The process ended early: {exit_reason(code, log)}. Last: {saved}. {again}"


def _adapter(place: str) -> str:
    return f"{place}/adapter" if "://" in place else f"{place}/files/adapter"


def _use(progress: PlaceProgress) -> str:
    place = progress.place
    if place.startswith("hf://"):
        name = place.removeprefix("hf://")
        return f'Load it with `AutoPeftModelForCausalLM.from_pretrained("{name}", subfolder="adapter")`.'
    if place.startswith("drive://"):
        return "Download that folder from Google Drive to use it."
    return f'Load it with `AutoPeftModelForCausalLM.from_pretrained("{_adapter(place)}")`.'
