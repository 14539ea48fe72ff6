"""`python -m worker.chat`: a loaded model that answers questions. JSON lines on standard input and output.

It is a process of its own, so that neither the server nor the command line loads torch, and it ends when its standard
input does. The first line is `{"adapter": FOLDER, "base": NAME or null, "local_only": BOOLEAN}`. Further lines are
`{"id": NUMBER, "ask": QUESTION}` and `{"cancel": NUMBER}`. What it writes are events (`worker.shared.chat`), those of
an answer with the `id` of its question.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from worker.shared.chat import ChatEvent, Kind, Question, failed
from worker.shared.chat_limits import MAX_LINE_BYTES


class _Wire:
    """Lines in and out. A cancelled question is known at once, also while an answer is generated."""

    def __init__(self) -> None:
        # What libraries print goes to standard error, because it is not JSON.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = -1
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._lines.get()

    def is_cancelled(self, number: int) -> bool:
        return self._cancelled >= number

    def write(self, event: ChatEvent, number: int | None = None) -> None:
        line = json.dumps(event.to_json() | ({} if number is None else {"id": number}))
        with self._lock:
            self._out.write(line + "\n")
            self._out.flush()

    def _read(self) -> None:
        with os.fdopen(os.dup(0), "rb") as lines:
            while (line := lines.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                found = json.loads(line)
                if "cancel" in found:
                    self._cancelled = int(found["cancel"])
                else:
                    self._lines.put(found)
        os._exit(1)  # the caller ended, or does not keep to the protocol


def _serve(wire: _Wire) -> int:
    opening = wire.next()
    try:
        from worker.chat.model import ChatError, ChatModel
        from worker.chat.side_by_side import answer
    except ModuleNotFoundError as error:
        wire.write(failed(f"a chat on this computer needs {error.name}: pip install torch 'trainhop[train]'"))
        return 1
    try:
        model = ChatModel(
            Path(opening["adapter"]),
            opening.get("base"),
            lambda words: wire.write(ChatEvent(kind=Kind.LOADING, text=words)),
            local_only=bool(opening["local_only"]),
        )
    except ChatError as error:
        wire.write(failed(str(error)))
        return 1
    wire.write(ChatEvent(kind=Kind.READY, text=f"{model.base_name} on {model.device}"))
    while True:
        asked = wire.next()
        number = int(asked["id"])
        answer(
            model,
            Question.model_validate(asked["ask"]),
            lambda event, number=number: wire.write(event, number),
            lambda number=number: wire.is_cancelled(number),
        )


def main() -> int:
    """Load the model and answer until standard input ends. Returns the exit code."""
    # Threads that wait for each other in a loop take ten times as long while other programs use the processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return _serve(_Wire())


if __name__ == "__main__":
    sys.exit(main())
