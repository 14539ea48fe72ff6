"""Chat on this computer: seconds from a question to the first streamed piece of each answer, loaded and from cold."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.export.models import make_adapter
from benchmarks.report import Figure
from orchestrator.adapters.chat_process import ChatProcess
from worker.shared.chat import Kind, Question
from worker.shared.evaluation_units import Arm

BAR_S = 2.0
QUESTIONS = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "What should I pack for a day of hiking?",
)
TOKENS = 32


@dataclass
class _Measured:
    """Seconds to the first piece of each answer, and which answer each piece belongs to."""

    first_s: dict[Arm, float] = field(default_factory=dict)
    pieces: list[Arm] = field(default_factory=list)
    whole_s: float = 0.0

    @property
    def is_interleaved(self) -> bool:
        """Whether each answer has several pieces, and began before the other one's last piece."""
        places = {arm: [n for n, each in enumerate(self.pieces) if each is arm] for arm in Arm}
        if min(map(len, places.values())) < 2:
            return False
        return all(places[arm][0] < places[other][-1] for arm, other in zip(Arm, reversed(Arm), strict=True))


def chat(folder: Path) -> Iterator[Figure]:
    """SmolLM2-135M-Instruct with an adapter of rank 16, as the demo trains it."""
    from orchestrator.entrypoints.demo.model import obtain

    base = obtain(folder / "cache")
    adapter = make_adapter(folder / "adapter", base, r=16, lora_alpha=32, std=0.01)
    with closing(ChatProcess(adapter, str(base), local_only=True)) as process:
        cold = _ask(process, QUESTIONS[0])
        warm = [_ask(process, question) for question in QUESTIONS]
    for arm in Arm:
        seconds = [each.first_s[arm] for each in warm]
        yield Figure(
            name=f"first token of the {arm}, model loaded, slowest of {len(warm)} questions",
            value=round(max(seconds), 2),
            bar=f"<= {BAR_S} s",
            ok=max(seconds) <= BAR_S,
        )
        yield Figure(
            name=f"first token of the {arm}, model loaded, median",
            value=round(statistics.median(seconds), 2),
            bar="said",
            ok=True,
        )
        yield Figure(
            name=f"first token of the {arm}, from a cold start", value=round(cold.first_s[arm], 2), bar="said", ok=True
        )
    together = sum(each.is_interleaved for each in warm)
    yield Figure(
        name="questions with both answers streamed side by side",
        value=together,
        bar=f"{len(warm)}",
        ok=together == len(warm),
    )
    rate = statistics.median(len(each.pieces) / each.whole_s for each in warm)
    yield Figure(name="pieces a second, both answers together", value=round(rate, 1), bar="said", ok=True)


def _ask(process: ChatProcess, question: str) -> _Measured:
    began, found = time.monotonic(), _Measured()
    for event in process.ask(Question(question=question, max_tokens=TOKENS), threading.Event()):
        if event.kind is Kind.FAILED:
            raise RuntimeError(event.text)
        if event.kind is Kind.TEXT and event.arm is not None:
            found.first_s.setdefault(event.arm, time.monotonic() - began)
            found.pieces.append(event.arm)
    found.whole_s = time.monotonic() - began
    return found
