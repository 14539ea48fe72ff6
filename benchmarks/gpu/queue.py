"""Decides when each item runs and on which card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """What an item waits for, and what it needs.

    An item that is not `alone` shares a card with others. It measures bytes, losses and memory, not time.
    """

    after: tuple[str, ...] = ("model",)
    alone: bool = False
    every_card: bool = False
    least_cards: int = 1


_TIMED = Item(alone=True)
ITEMS: dict[str, Item] = {
    "install": Item(after=(), alone=True),
    "model": Item(after=("install",), alone=True),
    "exact-unsloth": Item(),
    "exact-hf": Item(),
    "evaluation-hf": Item(),
    "seam": Item(),
    "peaks-unsloth": Item(),
    "peaks-hf": Item(),
    "exact-fp16-unsloth": Item(after=("exact-unsloth",)),
    "exact-fp16-hf": Item(after=("exact-hf",)),
    "cross": Item(after=("exact-hf",)),
    "cross-fp32": Item(),
    "cross-small": Item(),
    "cross-small-fp32": Item(),
    "by-hand-unsloth": _TIMED,
    "orchestrated-unsloth": _TIMED,
    "by-hand-hf": _TIMED,
    "orchestrated-hf": _TIMED,
    "by-hand-deterministic-unsloth": _TIMED,
    "by-hand-deterministic-hf": _TIMED,
    "goodput": Item(alone=True, every_card=True),
    "two-gpus": Item(after=("orchestrated-hf",), alone=True, every_card=True, least_cards=2),
}
"""In the order in which they are started."""


class Queue:
    """Hands out items in order. The first free card goes to items that run alone, the last one to those that share."""

    def __init__(self, wanted: Sequence[str], *, cards: int) -> None:
        self.waiting = [name for name in ITEMS if name in wanted and ITEMS[name].least_cards <= cards]
        self._cards = cards
        self._running: dict[str, list[int]] = {}

    def startable(self) -> Iterator[tuple[str, list[int]]]:
        """Items to start now, each with its cards. They count as running from then on."""
        for name in list(self.waiting):
            item = ITEMS[name]
            if (cards := self._cards_for(item)) and not self._open(item.after):
                self.waiting.remove(name)
                self._running[name] = cards
                yield name, cards
            elif item.every_card:
                return  # otherwise later one-card items could delay it for ever

    def done(self, name: str) -> None:
        """Record that the item has ended, with or without an error."""
        del self._running[name]

    def _open(self, names: Sequence[str]) -> bool:
        return any(name in self.waiting or name in self._running for name in names)

    def _cards_for(self, item: Item) -> list[int]:
        """Free cards for the item. Empty if it has to wait."""
        every = list(range(self._cards))
        if item.every_card:
            return every if all(self._is_free(card, alone=True) for card in every) else []
        if item.alone:
            return [card for card in every if self._is_free(card, alone=True)][:1]
        return [every[-1]] if self._is_free(every[-1], alone=False) else []

    def _is_free(self, card: int, *, alone: bool) -> bool:
        there = [ITEMS[name] for name, cards in self._running.items() if card in cards]
        return not there or not (alone or any(item.alone for item in there))
