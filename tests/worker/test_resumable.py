"""How long an upload waits before it tries again."""

from __future__ import annotations

from worker.resumable import Patience


def test_pauses_double_up_to_the_longest_and_longer_if_asked() -> None:
    slept: list[float] = []
    patience = Patience(first_s=1.0, longest_s=8.0, sleep=slept.append)
    for failures in range(1, 7):
        patience.pause(failures)
    assert all(most / 2 <= real <= most for real, most in zip(slept, (1, 2, 4, 8, 8, 8), strict=True))
    patience.pause(1, asked_s=20.0)
    patience.pause(1, asked_s=86_400.0)
    assert slept[-2:] == [20.0, 60.0]
