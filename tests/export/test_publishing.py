"""A full disk and a killed process leave nothing that looks like an export."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.helpers.session_desk import files_of_at_most
from worker.export import publishing
from worker.export.errors import ExportError
from worker.export.publishing import published


@pytest.mark.parametrize("form", ["merged", "gguf", "gguf-adapter"])
def test_a_disk_that_fills_half_way(llama, form, tmp_path) -> None:
    """Guard: without the hidden name, half a file lay under `out`."""
    with files_of_at_most(10_000), pytest.raises(ExportError, match="the disk is full; nothing was published"):
        llama.export(tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_seen_at_once(tmp_path) -> None:
    with pytest.raises(ExportError, match="GiB are free"), published(tmp_path / "out", 2**60):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_a_hidden_folder_for_the_next(llama, tmp_path) -> None:
    """The process kills itself while it writes. Guard: without `_remove_leftovers` the folder stayed for ever."""
    script = """
import os, signal, sys
from worker.export import run
def cut(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
run.shutil.copyfile = cut  # after the weights, before the config
from worker.export.__main__ main
""".replace("__main__ main", "__main__ import main\nmain()")
    request = {"adapter": str(llama.adapter), "out": str(tmp_path / "out"), "form": "merged", "base": str(llama.base)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], input=json.dumps(request), text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert not (left / "config.json").exists()
    llama.export(tmp_path / "out", "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_still_runs_is_left_alone(tmp_path) -> None:
    out = tmp_path / "out"
    with published(out, 0) as first:
        (first / "a").write_text("1")
        with contextlib.suppress(KeyError), published(out, 0):
            assert (first / "a").exists()
            raise KeyError
    assert (out / "a").read_text() == "1"


def test_the_slower_of_two_exports_does_not_replace_the_other(tmp_path) -> None:
    out = tmp_path / "out"
    slow = published(out, 0)
    (slow.__enter__() / "a").write_text("slow")
    with published(out, 0) as quick:
        (quick / "a").write_text("quick")
    with pytest.raises(ExportError, match="nothing was published"):
        slow.__exit__(None, None, None)
    assert (out / "a").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_with_special_letters(tmp_path) -> None:
    out = tmp_path / "a[1]*"
    stale = tmp_path / ".a[1]*.0000aaaa.part"
    stale.mkdir()
    with published(out, 0) as folder:
        (folder / "x").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert os.path.basename(publishing._escaped("a[1]*")) == "a[[]1][*]"  # noqa: PTH119
    shutil.rmtree(out)
