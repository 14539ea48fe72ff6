"""A look at the machine never ends the thread that takes it."""

from __future__ import annotations

import sys
import types

import pytest

from worker import hardware


def test_a_look_while_torch_is_still_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the first report of a slow machine came while torch was half imported, and was the last one of its session."""
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert hardware.reading().gpu_memory_bytes is None
