"""Files are there whole or not at all: through a real SIGKILL, and in the order that survives a power failure."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from worker.shared import files

WRITE_SLOWLY = """
import os, sys
from pathlib import Path
from worker.shared.files import atomic_file, create_once

def wait(*_):
    print("ready", flush=True)
    sys.stdin.read()

def until_killed(path):
    with atomic_file(path) as file:
        file.write(b"new" * 1000)
        file.flush()
        wait()

def create_until_killed(path):
    os.link = wait
    create_once(path, "a secret")

{"replace": until_killed, "create": create_until_killed}[sys.argv[1]](Path(sys.argv[2]))
"""

RECORD = """
import os, sys
from pathlib import Path
from worker.shared import files

calls, fsync, rename, link = [], os.fsync, os.replace, os.link
kinds = {True: "folder", False: "file"}

def seen_fsync(descriptor):
    fsync(descriptor)
    calls.append("flush " + kinds[os.path.isdir(f"/proc/self/fd/{descriptor}")])

def seen_rename(source, target, **more):
    rename(source, target, **more)
    calls.append("rename")

def seen_link(source, target, **more):
    link(source, target, **more)
    calls.append("link")

os.fsync, os.replace, os.link = seen_fsync, seen_rename, seen_link
target = Path(sys.argv[2])
if sys.argv[1] == "write":
    files.write_atomically(target, "text")
elif sys.argv[1] == "create":
    files.create_once(target, "text")
else:
    begun = target.with_name("begun")
    begun.write_text("text")
    files.move_into_place(begun, target)
print(",".join(calls))
"""


def _killed(how: str, path: Path) -> None:
    command = [sys.executable, "-c", WRITE_SLOWLY, how, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    """Guard: with `atomic_file` opening `path` itself the old content was gone and half of the new one there."""
    path = tmp_path / "note.json"
    files.write_atomically(path, "old")
    _killed("replace", path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.glob(files.UNFINISHED)] != []
    files.write_atomically(path, "newer")
    assert path.read_text() == "newer"


def test_a_killed_maker_leaves_no_secret_and_the_next_one_makes_it(tmp_path: Path) -> None:
    """Guard: with `create_once` writing to `path` itself an empty secret was found and kept for good."""
    path = tmp_path / "secret.key"
    _killed("create", path)
    assert not path.exists()
    assert files.create_once(path, "another")
    assert path.read_text() == "another"


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ("write", "flush file,rename,flush folder"),
        ("create", "flush file,link,flush folder"),
        ("move", "flush file,rename,flush folder"),
    ],
)
def test_bytes_are_flushed_before_the_name_and_the_name_after(how: str, calls: str, tmp_path: Path) -> None:
    """Guards: without either `fsync`, or with the rename before it, a power failure left an empty file or none."""
    command = [sys.executable, "-c", RECORD, how, str(tmp_path / "note")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == calls
    assert (tmp_path / "note").read_text() == "text"


def test_an_error_within_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    """Guard: without the `except` in `atomic_file` every full disk left another unfinished file on it."""
    path = tmp_path / "note"
    files.write_atomically(path, "old")
    with pytest.raises(TypeError), files.atomic_file(path) as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """Guard: with the default mode of `open` others on the computer could read it."""
    path = tmp_path / "secret.key"
    assert files.create_once(path, b"first")
    assert not files.create_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_other_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    path = tmp_path / "note"
    before = os.umask(0o027)
    try:
        files.write_atomically(path, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_finished_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    begun, target = tmp_path / "begun", tmp_path / "adapter"
    (begun / "inner").mkdir(parents=True)
    (begun / "inner" / "weights").write_bytes(b"w")
    target.mkdir()
    files.move_into_place(begun, target)
    assert (target / "inner" / "weights").read_bytes() == b"w"
    assert not begun.exists()


def test_files_can_be_written_before_packages_are_installed(tmp_path: Path) -> None:
    """Guard: with any third-party import in `files` this stopped at it."""
    program = (
        "import sys; from pathlib import Path; from worker.shared.files import write_atomically; "
        "write_atomically(Path(sys.argv[1]), 'x')"
    )
    environment = {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "note")]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "note").read_text() == "x"


class _StoppedError(Exception):
    """What a signal handler raises."""


def test_a_stop_while_a_folder_is_made_leaves_none(tmp_path: Path) -> None:
    """Seen failing with `tempfile.TemporaryDirectory`, which knows its folder only after it was made."""

    def stop(_: object, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "mkdir":
            sys.setprofile(None)
            raise _StoppedError

    with pytest.raises(_StoppedError):  # noqa: PT012  the handler interrupts the `with` statement itself
        sys.setprofile(stop)
        with files.temporary_folder(".packages-", tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
