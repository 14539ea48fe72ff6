"""Short passages of general English text. The loss on them shows what an adapter has made the model forget.

All are from works whose authors died more than a century ago, so they are in the public domain everywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

_FILE = "passages.jsonl"


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of 60 to 120 words, and where it is from."""

    title: str
    author: str
    text: str


def passages() -> tuple[Passage, ...]:
    """All passages in their fixed order."""
    lines = resources.files("worker.shared").joinpath(_FILE).read_text(encoding="utf-8").splitlines()
    return tuple(Passage(**json.loads(line)) for line in lines)
