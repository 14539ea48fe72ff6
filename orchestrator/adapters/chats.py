"""Chats of a server: in a process of its own computer, or at an address that a person names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from orchestrator.adapters.chat_endpoint import EndpointChat
from orchestrator.adapters.chat_process import ChatProcess, without_secrets
from orchestrator.ports.chats import ChatAddress, LoadedChat
from worker.shared.chat import ChatEvent, Question


class ServerChats:
    """Implements `ports.chats.Chats`."""

    def __init__(self, endpoint: EndpointChat | None = None) -> None:
        self._endpoint = endpoint or EndpointChat()

    def load(self, adapter: Path, base: str) -> LoadedChat:
        return ChatProcess(adapter, base, local_only=True, environment=without_secrets())

    def check(self, url: str, *, anywhere: bool) -> str:
        return self._endpoint.check(url, anywhere=anywhere)

    def ask_endpoint(self, where: ChatAddress, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        return self._endpoint.ask(where, question, cancelled)
