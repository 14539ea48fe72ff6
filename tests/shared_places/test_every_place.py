"""What every place has to do, with the real client of each."""

from __future__ import annotations

import pytest

from tests.shared_places.conftest import JOB, World
from worker.shared.shared_places import DamagedError, LostError, OtherJobError
from worker.shared.shared_places.head import HEAD
from worker.shared.shared_places.single_writer import SingleWriter

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the Hub client's own way to upload


def test_a_run_moves_from_one_session_to_the_next(world: World) -> None:
    first = world.holder("a", world.tried())
    assert not isinstance(first.place, SingleWriter)
    for step in (3, 5, 8):
        first.advance(step, world.checkpoint(step))
    first.release()
    second = world.chain("b")
    assert second.open(JOB).step == 8
    head = second.acquire()
    assert head is not None
    assert head.checkpoint is not None
    assert head.parent is not None
    assert (head.epoch, head.step, head.parent.step, head.writer, second.job()) == (2, 8, 5, "b", JOB)
    target = world.folder / "fetched"
    second.fetch(head.checkpoint, target)
    assert target.read_bytes() == world.checkpoint(8).read_bytes()
    second.advance(9, world.checkpoint(9))
    assert second.prune() > 0
    assert sorted(blob.name[12:20] for blob in second.place.blobs() if blob.name[0] == "c") == ["00000008", "00000009"]
    second.finish()
    done = world.chain("c").acquire()
    assert done is not None
    assert (done.state, done.epoch) == ("finished", 2)


def test_a_silent_holder_is_replaced_and_cannot_write_again(world: World) -> None:
    """Guards: without the comparison with `expected`, the late writer overwrote the chain. With the old epoch it took
    itself for the holder."""
    late = world.holder("late")
    late.advance(1, world.checkpoint(1))
    told: list[str] = []
    thief = world.chain("thief")
    began = world.clock.now
    head = thief.acquire(lambda holder: told.append(str(holder)))
    assert head is not None
    assert (head.epoch, head.step) == (2, 1)
    assert world.clock.now - began >= thief.place.patience_s
    assert told[0].startswith("machine of late holds this run since 20")
    with pytest.raises(LostError, match="machine of thief has taken over"):
        late.advance(2, world.checkpoint(2))
    with pytest.raises(LostError):
        late.prune()
    assert thief.advance(3, world.checkpoint(3)).step == 3


def test_a_holder_that_shows_life_is_not_replaced(world: World) -> None:
    holder, waiting = world.holder("a"), world.chain("b")
    looks: list[float] = []
    world.clock.meanwhile = holder.beat
    end = world.clock.now + 3 * holder.place.patience_s
    assert waiting.acquire(lambda seen: looks.append(seen.silent_s), lambda: world.clock.now > end) is None
    assert len(looks) > 10
    assert holder.beat().epoch == 1


def test_a_place_with_another_job_is_refused(world: World) -> None:
    world.chain("a").open(JOB)
    with pytest.raises(OtherJobError, match="contains the run of another job"):
        world.chain("b").open(b"another job")


def test_of_two_first_sessions_one_wins(world: World) -> None:
    one, two = world.place(), world.place()
    one.swap_doc(HEAD, None, b"one")
    with pytest.raises(LostError):
        two.swap_doc(HEAD, None, b"two")
    assert two.read_doc(HEAD) == b"one"


def test_a_file_is_created_once_and_read_in_parts(world: World) -> None:
    place = world.place()
    place.put("checkpoints/x.safetensors", world.checkpoint(1))
    place.put("checkpoints/x.safetensors", world.checkpoint(2))
    content = world.checkpoint(1).read_bytes()
    assert b"".join(place.read("checkpoints/x.safetensors")) == content
    assert b"".join(place.read("checkpoints/x.safetensors", 5, 17)) == content[5:17]
    assert b"".join(place.read("checkpoints/x.safetensors", len(content) - 3)) == content[-3:]
    place.delete(["checkpoints/x.safetensors", "checkpoints/missing"])
    assert place.blobs() == []


def test_damage_is_found_before_head_names_the_file(world: World) -> None:
    """Guard: without the comparison of the digests, HEAD named the damaged file."""
    chain = world.holder("a")
    put, damaged = chain.place.put, world.checkpoint(7)
    chain.place.put = lambda name, source: put(name, damaged)
    with pytest.raises(DamagedError):
        chain.advance(1, world.checkpoint(1))
    head = world.place().read_doc(HEAD)
    assert head is not None
    assert b"checkpoints/" not in head
