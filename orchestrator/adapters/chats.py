"""Chats of a server: in a process of its own computer, or at an address that a person names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from orchestrator.adapters.chat_endpoint import EndpointChat
from orchestrator.adapters.chat_process import ChatProcess, without_secrets
from orchestrator.ports.chats import ChatAddress, LoadedChat
from worker.shared.chat import ChatEvent, Question


class ServerChats:
    """Implements `ports.chats.Chats`. `find` finds a package without importing it."""

    def __init__(self, find: Callable[[str], object | None] = find_spec) -> None:
        self._endpoint, self._find = EndpointChat(), find

    def obstacle(self) -> str:
        missing = [name for name in ("torch", "transformers", "peft") if self._find(name) is None]
        if not missing:
            return ""
        return (
            f"This server has no {' and no '.join(missing)}, so it cannot load a model. Install torch and "
            "'trainhop[train]' beside it, use `trainhop chat` on a computer of your own, or name an address."
        )

    def load(self, adapter: Path, base: str) -> LoadedChat:
        return ChatProcess(adapter, base, local_only=True, environment=without_secrets())

    def check(self, url: str, *, anywhere: bool) -> str:
        return self._endpoint.check(url, anywhere=anywhere)

    def ask_endpoint(self, where: ChatAddress, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        return self._endpoint.ask(where, question, cancelled)
