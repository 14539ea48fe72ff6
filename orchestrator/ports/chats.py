"""The interface of chats with base and adapter: in a process of this computer, or at an endpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from worker.shared.chat import ChatEvent, Question
from worker.shared.evaluation_units import Arm


@dataclass(frozen=True, kw_only=True)
class ChatAddress:
    """An OpenAI-compatible endpoint, and what base and adapter are called there.

    With `lora`, the number of an adapter that llama-server has loaded, it is switched off for the base model in the
    request. An address may be inside the server's own network only with `anywhere`.
    """

    url: str
    models: Mapping[Arm, str]
    lora: int | None = None
    key: str = field(default="", repr=False)
    anywhere: bool = False


class LoadedChat(Protocol):
    """A base model with an adapter in a process. It may still be loading."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        ...

    def ask(self, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        """The events of the answers, the last one DONE or FAILED. Ends soon after `cancelled` is set."""
        ...

    def close(self) -> None:
        """End the process and forget the model."""
        ...


class Chats(Protocol):
    """Starts chats. Nothing of a conversation is kept."""

    def obstacle(self) -> str:
        """Why no model can be loaded on this computer, in words. Empty if it may be possible."""
        ...

    def load(self, adapter: Path, base: str) -> LoadedChat:
        """Load the adapter of a PEFT folder with a base model that is on this computer."""
        ...

    def check(self, url: str, *, anywhere: bool) -> str:
        """The address of an endpoint in its normal form. Raises `InvalidError` for one that cannot be used."""
        ...

    def ask_endpoint(self, where: ChatAddress, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        """The same as `LoadedChat.ask` of an endpoint."""
        ...
