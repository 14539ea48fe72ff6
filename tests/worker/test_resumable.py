"""How long an upload waits before it tries again, and how it understands how far it got."""

from __future__ import annotations

import httpx
import pytest

from worker.shared.resumable_upload import Patience, _received


def test_pauses_double_up_to_the_longest_and_longer_if_asked() -> None:
    slept: list[float] = []
    patience = Patience(first_s=1.0, longest_s=8.0, sleep=slept.append)
    for failures in range(1, 7):
        patience.pause(failures)
    assert all(most / 2 <= real <= most for real, most in zip(slept, (1, 2, 4, 8, 8, 8), strict=True))
    patience.pause(1, asked_s=20.0)
    patience.pause(1, asked_s=86_400.0)
    assert slept[-2:] == [20.0, 60.0]


@pytest.mark.parametrize(("said", "count"), [("bytes=0-262143", 262_144), ("0-262143", 262_144), ("", 0), ("1-5", 0)])
def test_what_was_received_is_understood_with_and_without_its_unit(said: str, count: int) -> None:
    """Both are in use. Guard: with the unit required, nothing counted as received and the upload stood still."""
    assert _received(httpx.Response(308, headers={"range": said} if said else {})) == count
