"""The time that a chat template sees, so that a row is the same text on every day and in every zone and locale."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def strftime_at(seconds: float) -> Callable[[str], str]:
    """What templates call as `strftime_now`: formats this time, in epoch seconds, as UTC and in English.

    `%z` and `%Z` are empty, as they are for the time without a zone that transformers formats.
    """
    now = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    day, month, half = _DAYS[now.weekday()], _MONTHS[now.month - 1], "AM" if now.hour < 12 else "PM"
    # These depend on the locale, or on the zone, of the machine.
    fixed = {
        "a": day[:3],
        "A": day,
        "b": month[:3],
        "h": month[:3],
        "B": month,
        "p": half,
        "P": half.lower(),
        "x": f"{now:%m/%d/%y}",
        "X": f"{now:%H:%M:%S}",
        "r": f"{now:%I:%M:%S} {half}",
        "s": str(int(seconds)),
        "c": f"{day[:3]} {month[:3]} {now.day:2d} {now:%H:%M:%S} {now.year}",
    }

    def strftime_now(pattern: str) -> str:
        return now.strftime(re.sub(r"%(.)", lambda found: fixed.get(found[1], found[0]), pattern))

    return strftime_now
