"""Readings are taken on a thread of their own, whatever the other threads are at."""

from __future__ import annotations

import sys
import types

from worker import hardware


def test_a_look_at_the_machine_while_torch_is_being_imported(monkeypatch) -> None:
    """Guard: without the except clause the outbox's thread died of an AttributeError and the session fell silent for good."""
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert hardware.reading().gpu_memory_bytes is None
