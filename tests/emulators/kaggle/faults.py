"""Faults by rule: which requests, how often, and what goes wrong with them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Rule:
    """Requests whose `METHOD path` contains a match of `match` are answered by this instead of the service.

    `times` 0 means always; the first `skip` requests pass. `status` None leaves the answer as the service gave it.
    `body` may be text (sent as HTML) or JSON-able data. With `done` the request is carried out first, so that it failed
    only for its caller. `cut` breaks the connection instead of an answer; `cut_after` breaks a stream after so many
    events or an upload after so many bytes. While `hold` is set and not fired, requests wait. `seen` counts the
    requests that it struck.
    """

    match: str
    account: str | None = None
    times: int = 1
    skip: int = 0
    status: int | None = None
    body: Any = None
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    done: bool = False
    cut: bool = False
    cut_after: int | None = None
    hold: threading.Event | None = None
    seen: int = 0

    @property
    def answer(self) -> Any:
        """What is sent: the body, or an error object in the service's own shape."""
        return self.body if self.body is not None else {"code": self.status, "message": self.reason}


class Rules:
    """The rules in force, oldest first; the first that fits a request is spent on it."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, match: str, **fields: Any) -> Rule:
        """Put a rule in force and return it."""
        rule = Rule(match=match, **fields)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Lift every rule; whoever is held goes on."""
        with self._lock:
            for rule in self._rules:
                if rule.hold is not None:
                    rule.hold.set()
            self._rules.clear()

    def strike(self, request: str, account: str | None) -> Rule | None:
        """The rule for this request, already counted."""
        with self._lock:
            for rule in self._rules:
                if not re.search(rule.match, request) or rule.account not in (None, account):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                rule.seen += 1
                if rule.times and rule.seen >= rule.times:
                    self._rules.remove(rule)
                return rule
        return None
