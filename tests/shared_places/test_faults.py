"""Answers that leave it open whether a write happened, old reads, and processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.drive import Rule
from tests.shared_places.conftest import JOB, Clock, World
from worker.shared.process import tied
from worker.shared.shared_places import (
    Credentials,
    DamagedError,
    ForkError,
    LostError,
    RefusedError,
    Retries,
    UnknownError,
)
from worker.shared.shared_places.google_drive import DriveFolder
from worker.shared.shared_places.head import HEAD, read_head
from worker.shared.shared_places.local_folder import LocalFolder
from worker.shared.shared_places.probe import has_compare_and_swap
from worker.shared.shared_places.single_writer import SingleWriter

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the Hub client's own way to upload
COMMIT = "POST /api/models/ann/my-run/commit"
DELETED = "POST /api/models/ann/my-run/lfs-files/batch"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "done": True},
        {"status": 500},
        {"cut": True, "done": True},
        {"cut": True},
        {"status": 409},
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"status": 503},
    ],
)
def test_the_hub_fails_at_the_commit_of_a_checkpoint_or_of_head(hub_world: World, fault: dict[str, object]) -> None:
    """Guards: without the look for the own nonce, a HEAD that was written was taken for somebody else's. When 409 was
    taken for 412, the holder gave up."""
    hub = hub_world.hub
    assert hub is not None
    chain = hub_world.holder("a")
    for skip, step in ((0, 1), (1, 2)):
        began = hub_world.clock.now
        hub.rules.add(COMMIT, skip=skip, **fault)
        head = chain.advance(step, hub_world.checkpoint(step))
        assert (head.step, head.epoch) == (step, 1)
        assert hub_world.clock.now - began >= (7 if "headers" in fault else 0)
    assert [read_head(text).step for text in _heads(hub_world)] == [0, 0, 1, 2]


def _heads(world: World) -> list[bytes]:
    """All contents that HEAD had on the Hub."""
    assert world.hub is not None
    commits = [files.get(f"documents/{HEAD}") for files in world.hub.repos["model", "ann/my-run"].snapshots.values()]
    return list(dict.fromkeys(text for text in commits if text is not None))


def test_a_commit_that_the_client_skipped_is_not_taken_for_a_win(hub_world: World) -> None:
    """Guard: without `_check`, the thief's commit became the parent of the late writer's next one, which overwrote
    the thief's HEAD."""
    hub = hub_world.hub
    assert hub is not None
    late = hub_world.place()
    late.swap_doc(HEAD, None, b"first")
    repo = hub.repos["model", "ann/my-run"]
    hub.at = lambda instant: _steal(hub_world, instant)
    with pytest.raises(UnknownError, match="answered with another commit"):
        late.swap_doc(HEAD, b"first", b"mine")
    with pytest.raises(LostError):
        late.swap_doc(HEAD, b"mine", b"more")
    assert repo.files[f"documents/{HEAD}"] == b"thief"


def _steal(world: World, instant: str) -> None:
    """When the client has learnt that its content is there already, another session moves HEAD."""
    hub = world.hub
    assert hub is not None
    if instant == "begin POST /api/models/ann/my-run/preupload/main":
        hub.writes.push("ann/my-run", "an earlier attempt lands", {f"documents/{HEAD}": b"mine"})
    if instant == "sent POST /api/models/ann/my-run/preupload/main":
        hub.writes.push("ann/my-run", "thief", {f"documents/{HEAD}": b"thief"})
        hub.at = lambda _: None


def test_old_reads_of_the_hub_cost_time_and_nothing_else(hub_world: World) -> None:
    hub = hub_world.hub
    assert hub is not None
    chain = hub_world.holder("a")
    chain.advance(1, hub_world.checkpoint(1))
    chain.release()
    other = hub_world.chain("b")
    hub.repos["model", "ann/my-run"].lag = 6
    other.open(JOB)
    head = other.acquire()
    assert head is not None
    assert (head.step, head.epoch) == (1, 2)


def test_pruning_frees_the_hubs_space_and_keeps_the_history(hub_world: World) -> None:
    """Guard: with the deletion of the file alone, its bytes went on to count."""
    hub = hub_world.hub
    assert hub is not None
    chain = hub_world.holder("a")
    for step in range(1, 6):
        chain.advance(step, hub_world.checkpoint(step))
    before, oids = hub.writes.used("ann/my-run"), [commit.oid for commit in hub.repos["model", "ann/my-run"].history]
    freed = chain.prune()
    assert hub.writes.used("ann/my-run") == before - freed
    assert 0 < before - freed < before / 2
    after = [commit.oid for commit in hub.repos["model", "ann/my-run"].history]
    assert after[: len(oids)] == oids
    chain.advance(6, hub_world.checkpoint(6))


@pytest.mark.parametrize(
    "rule",
    [
        Rule("PUT /upload/drive/v2/files/.*media", status=500, done=True),
        Rule("PUT /upload/drive/v2/files/.*media", status=500),
        Rule("PUT /upload/drive/v2/files/.*media", status=429, retry_after=7),
        Rule("PUT /upload/drive/v2/files/.*media", status=403, reason="userRateLimitExceeded"),
        Rule("PUT /upload/drive/v2/files.*upload_id", status=503, done=True),
        Rule("PUT /upload/drive/v2/files.*upload_id", truncate=5),
        Rule("PUT /upload/drive/v2/files.*upload_id", flip=5),
        Rule("POST /upload/drive/v2/files", status=500, done=True),
    ],
    ids=lambda rule: f"{rule.pattern[-12:]}-{rule.status}-{rule.done}-{rule.truncate}-{rule.flip}",
)
def test_google_drive_fails_at_a_checkpoint_or_at_head(drive_world: World, rule: Rule) -> None:
    drive = drive_world.drive
    assert drive is not None
    chain = drive_world.holder("a")
    drive.rules.add(rule)
    head = chain.advance(1, drive_world.checkpoint(1))
    assert rule.hits == 1
    assert head.checkpoint is not None
    assert chain.place.sha256(head.checkpoint.name) == head.checkpoint.sha256
    chain.fetch(head.checkpoint, drive_world.folder / "fetched")
    assert len([file for file in drive.files() if file.title == f"documents/{HEAD}"]) == 1


class LateDrive(DriveFolder):
    """Its lists are empty for a while, as old copies of them are."""

    late = 0

    def _listed(self, query: str) -> list[dict[str, Any]]:
        found = super()._listed(query)
        if found and self.late:
            self.late -= 1
            return []
        return found


@pytest.mark.parametrize("late", range(1, 5))
@pytest.mark.parametrize("has_folder", [True, False])
def test_google_drive_lists_what_is_new_late(drive_world: World, late: int, has_folder: bool) -> None:
    """Guards: without `_not_listed` a new run ended with an error of Python, or because its HEAD was missing."""
    drive = drive_world.drive
    assert drive is not None
    token = drive_world.credentials.drive_token
    assert token is not None
    place = LateDrive("my-run", token, endpoint=drive.url, sleep=drive_world.clock.sleep)
    if has_folder:
        assert place.read_doc(HEAD) is None
    place.late = late
    chain = drive_world.holder("a", drive_world.keep(place))
    for step in (1, 2):
        place.late = late
        assert chain.advance(step, drive_world.checkpoint(step)).step == step
    assert drive_world.chain("b").open(JOB).step == 2
    assert len([file for file in drive.files() if file.title == f"documents/{HEAD}"]) == 1


def test_of_two_folders_created_at_once_both_sessions_take_the_oldest(drive_world: World) -> None:
    """Guard: without the wait before the second listing, each session had a folder and a HEAD of its own."""
    drive = drive_world.drive
    assert drive is not None
    one, two = drive_world.place(), drive_world.place()
    made: list[bool] = []

    def meanwhile() -> None:
        if not made:
            made.append(True)
            two.swap_doc(HEAD, None, b"two")

    drive.rules.add(Rule("POST /drive/v2/files", meanwhile=meanwhile))
    with pytest.raises(LostError):
        one.swap_doc(HEAD, None, b"one")
    assert one.read_doc(HEAD) == two.read_doc(HEAD) == b"two"


# --- a folder ---

KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from worker.shared.shared_places import Chain
from worker.shared.shared_places.local_folder import LocalFolder

class Place(LocalFolder):
    def swap_doc(self, name, expected, new):
        if b"checkpoints" in new and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().swap_doc(name, expected, new)
        if b"checkpoints" in new:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(self, name, source):
        super().put(name, source)
        if "checkpoints" in name and sys.argv[3] == "stored":
            os.kill(os.getpid(), signal.SIGKILL)

chain = Chain(Place(Path(sys.argv[1])), writer="killed")
chain.open(b'{"name": "a job"}')
chain.acquire()
chain.advance(4, Path(sys.argv[2]))
"""


def test_a_process_killed_between_file_and_head(tmp_path: Path) -> None:
    """The next session continues from the last HEAD, and pruning removes what was left."""
    worlds = {when: World(str(tmp_path / when), Credentials(), tmp_path) for when in ("stored", "before", "after")}
    started = [
        subprocess.Popen(tied([sys.executable, "-c", KILLED, world.address, str(world.checkpoint(4)), when]))
        for when, world in worlds.items()
    ]
    assert [process.wait() for process in started] == [-signal.SIGKILL] * 3
    for when, step in (("stored", 0), ("before", 0), ("after", 4)):
        chain = worlds[when].holder("next")
        assert chain.head is not None
        assert (chain.head.step, chain.head.epoch) == (step, 2)
        chain.advance(5, worlds[when].checkpoint(5))
        chain.prune()
        kept = [blob for blob in chain.place.blobs() if blob.name.startswith("checkpoints/")]
        assert len(kept) == (2 if step else 1)


def test_a_number_that_was_deleted_is_not_won_again(tmp_path: Path) -> None:
    """Guard: without the comparison with the newest version, a writer that slept for long won with an old number."""

    class Folder(LocalFolder):
        kept_versions = 3
        meanwhile: Callable[[], object] = staticmethod(lambda: None)

        def _content(self, name: str, number: int) -> bytes | None:
            found = super()._content(name, number)
            act, self.meanwhile = self.meanwhile, lambda: None
            act()
            return found

    late, other = Folder(tmp_path), Folder(tmp_path)
    late.swap_doc(HEAD, None, b"0")

    def move() -> None:
        for number in range(6):
            other.swap_doc(HEAD, str(number).encode(), str(number + 1).encode())

    late.meanwhile = move
    with pytest.raises(LostError):
        late.swap_doc(HEAD, b"0", b"late")
    assert other.read_doc(HEAD) == b"6"
    assert len(list((tmp_path / "documents" / HEAD).iterdir())) <= 6


class Careless(LocalFolder):
    """A file system on which every writer wins."""

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        super().swap_doc(name, self.read_doc(name), new)


def test_a_place_without_compare_and_swap_is_recognised(tmp_path: Path) -> None:
    """Guard: without the second write of the probe, the place looked like one that has it."""
    clock = Clock()
    assert not has_compare_and_swap(Careless(tmp_path / "a"), Retries(), clock=clock, sleep=clock.sleep)
    assert has_compare_and_swap(LocalFolder(tmp_path / "b"), Retries(), clock=clock, sleep=clock.sleep)


def test_a_single_writer_continues_and_a_fork_is_reported(folder_world: World, tmp_path: Path) -> None:
    """Guard: with the first of two versions, one of two runs was dropped without a word."""
    chain = folder_world.holder("a", SingleWriter(Careless(tmp_path / "x")))
    for step in range(1, 4):
        chain.advance(step, folder_world.checkpoint(step))
    chain.prune()
    chain.release()
    other = folder_world.holder("b", SingleWriter(Careless(tmp_path / "x")))
    assert other.head is not None
    assert (other.head.step, other.head.epoch) == (3, 2)
    inner = Careless(tmp_path / "x")
    newest = max(blob.name for blob in inner.blobs() if blob.name.startswith("versions/"))
    second = newest[:-16] + "0" * 16
    inner.put(second, folder_world.checkpoint(9))
    with pytest.raises(ForkError, match=r"Two sessions wrote to .* at the same time: versions/HEAD.json/0"):
        other.beat()


def test_pruning_does_not_believe_an_old_read_of_head(folder_world: World) -> None:
    """Guard: with a read of HEAD in place of a write, the head's checkpoint was deleted."""
    place = LocalFolder(Path(folder_world.address))
    chain = folder_world.holder("a", place)
    chain.advance(1, folder_world.checkpoint(1))
    old = place.read_doc(HEAD)
    for step in (2, 3):
        chain.advance(step, folder_world.checkpoint(step))
    place.read_doc = lambda name: old
    chain.prune()
    assert sorted(blob.name[12:20] for blob in place.blobs() if blob.name[0] == "c") == ["00000002", "00000003"]


def test_a_holder_that_sleeps_before_it_deletes_harms_no_other(folder_world: World) -> None:
    """Guard: with the listing after the write of HEAD, the next session's checkpoints were deleted."""

    class Sleepy(LocalFolder):
        meanwhile: Callable[[], object] = staticmethod(lambda: None)

        def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
            super().swap_doc(name, expected, new)
            act, self.meanwhile = self.meanwhile, lambda: None
            act()

    place = Sleepy(Path(folder_world.address))
    late = folder_world.holder("late", place)
    late.advance(1, folder_world.checkpoint(1))

    def take_over() -> None:
        thief = folder_world.holder("thief")
        for step in (2, 3):
            thief.advance(step, folder_world.checkpoint(step))

    place.meanwhile = take_over
    late.prune()
    assert len([blob for blob in place.blobs() if blob.name.startswith("checkpoints/")]) == 3


def test_a_checkpoint_that_was_damaged_later_is_not_fetched(folder_world: World) -> None:
    """Guard: without the comparison of the digest, a session continued from damaged bytes."""
    chain = folder_world.holder("a")
    chain.advance(1, folder_world.checkpoint(1))
    stored = chain.advance(2, folder_world.checkpoint(2)).checkpoint
    assert stored is not None
    (Path(folder_world.address) / "files" / stored.name).write_bytes(folder_world.checkpoint(7).read_bytes())
    with pytest.raises(DamagedError, match="is damaged"):
        chain.fetch(stored, folder_world.folder / "fetched")
    assert not (folder_world.folder / "fetched").exists()
    assert chain.roll_back().step == 1


def test_two_folders_with_files_are_refused_and_short_answers_noticed(drive_world: World) -> None:
    """Guards: with the oldest folder alone, a run in the other one was dropped without a word. Without the comparison
    of lengths, a cut download was the end of a file."""
    drive = drive_world.drive
    assert drive is not None
    drive_world.holder("a")
    place = drive_world.place()
    name = next(blob.name for blob in place.blobs())
    drive.rules.add(Rule("GET .*alt=media", truncate=3))
    with pytest.raises(UnknownError, match="returned 14 of 17 bytes"):
        b"".join(place.read(name))
    second = {"title": "my-run", "mimeType": "application/vnd.google-apps.folder"}
    other = drive.contents.insert(second)
    drive_world.place().blobs()
    drive.contents.insert({"title": "documents/HEAD.json", "parents": [{"id": other.id}]}, b"{}")
    with pytest.raises(RefusedError, match="two folders called my-run with files"):
        drive_world.place().blobs()
