"""A look at the machine never ends the thread that takes it."""

from __future__ import annotations

import re
import sys
import types

import pytest

from worker.agent import hardware
from worker.shared.manifest import Hardware
from worker.shared.messages import StartRequest


def test_a_look_while_torch_is_still_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the first report of a slow machine came while torch was half imported, and was the last one of its
    session."""
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert hardware.reading().gpu_memory_bytes is None


def test_an_image_is_named_by_whoever_made_it(tmp_path, monkeypatch):
    """Guard: a name longer than the wire takes would be refused with the whole message."""
    commit = tmp_path / "git_commit"
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert re.fullmatch(r"python 3\.\d+ torch \S+", hardware.image(commit))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    assert hardware.image(commit) == "release-colab_20260819"
    commit.write_text("78aaa43f" * 20 + "\n")
    assert hardware.image(commit) == ("78aaa43f" * 20)[:64]
    assert StartRequest(protocol=1, nonce="n", hardware=Hardware(), image=hardware.image(commit)).image
