"""A dataset with planted faults, the list of them, and its clean twin."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.trust.english import English, Row
from benchmarks.trust.private_texts import key, person

ROWS, HELD_OUT = 2_676, 402
EACH_KIND = 60
PLANTED = 40
LEAKED = 30
WRONG_SHARE = 0.27
CONTROL = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "<|endoftext|>", "<end_of_turn>", "<<SYS>>")


def _edited(english: English, row: Row, share: float) -> Row:
    changed = copy.deepcopy(row)
    lists = [turn["content"].split(" ") for turn in changed["messages"]]
    places = [(turn, at) for turn, words in enumerate(lists) for at in range(len(words))]
    for turn, at in english.dice.sample(places, round(share * len(places))):
        lists[turn][at] = english.word()
    for turn, words in zip(changed["messages"], lists, strict=True):
        turn["content"] = " ".join(words)
    return changed


def _reordered(english: English, row: Row, _: float) -> Row:
    changed = copy.deepcopy(row)
    for turn in changed["messages"]:
        sentences = turn["content"].split(". ")
        english.dice.shuffle(sentences)
        turn["content"] = ". ".join(sentence.rstrip(".") for sentence in sentences) + "."
    return changed


def _chatty(english: English, row: Row, _: float) -> Row:
    changed = copy.deepcopy(row)
    last = changed["messages"][-1]
    opening = english.dice.choice(("Sure!", "Of course, happy to help!", "Great question.", "Certainly."))
    closing = english.dice.choice(("I hope this helps!", "Let me know how it goes.", "Good luck with it!"))
    last["content"] = f"{opening} {last['content']} {closing}"
    return changed


def _half(_english: English, row: Row, _: float) -> Row:
    changed = copy.deepcopy(row)
    words = [(place, word) for place, turn in enumerate(row["messages"]) for word in turn["content"].split(" ")]
    kept = words[: max(len(words) // 2, 1 + sum(place == 0 for place, _ in words))]
    turns = sorted({place for place, _ in kept})
    turns = turns if turns[-1] % 2 else turns[:-1]
    changed["messages"] = [
        {"role": row["messages"][at]["role"], "content": " ".join(word for place, word in kept if place == at)}
        for at in turns
    ]
    return changed


_Maker = Callable[[English, Row, float], Row]
KINDS: dict[str, tuple[_Maker, float]] = {
    "exact": (lambda _, row, __: copy.deepcopy(row), 0.0),
    "2 % edited": (_edited, 0.02),
    "5 % edited": (_edited, 0.05),
    "10 % edited": (_edited, 0.10),
    "20 % edited": (_edited, 0.20),
    "30 % edited": (_edited, 0.30),
    "sentences reordered": (_reordered, 0.0),
    "opening and closing added": (_chatty, 0.0),
    "first half": (_half, 0.0),
}
BARRED = tuple(kind for kind in KINDS if kind not in ("20 % edited", "30 % edited"))
"""Kinds that have to be found. More edited rows are other rows to a comparison of words."""


@dataclass
class Planted:
    """The files, and what is planted in them: by line of the training file, or of the validation file for leaks."""

    train: Path
    validation: Path
    copies: dict[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    """Line of a copy: its kind, and the line of its original."""
    exact_leaks: set[int] = field(default_factory=set[int])
    near_leaks: set[int] = field(default_factory=set[int])
    keys: set[int] = field(default_factory=set[int])
    persons: set[int] = field(default_factory=set[int])
    tokens: set[int] = field(default_factory=set[int])
    wrong: int = 0


def plant(folder: Path, seed: int = 1) -> Planted:
    """Write the set with its faults."""
    english = English(seed)
    dice, copies = english.dice, EACH_KIND * len(KINDS)
    base = ROWS - HELD_OUT - copies
    wrong = set(dice.sample(range(base), round(WRONG_SHARE * base)))
    rows = [english.row(is_wrong=place in wrong) for place in range(base)]
    order = dice.sample(range(base), base)
    take = iter(order)
    made: list[tuple[str, int, Row]] = []
    for kind, (maker, share) in KINDS.items():
        made += [(kind, at, maker(english, rows[at], share)) for at in (next(take) for _ in range(EACH_KIND))]
    with_key = [next(take) for _ in range(PLANTED)]
    with_person = [next(take) for _ in range(PLANTED)]
    with_token = [next(take) for _ in range(PLANTED)]
    for number, at in enumerate(with_key):
        _insert(english, rows[at], f"I used {key(dice, number)} for it.")
    for number, at in enumerate(with_person):
        _insert(english, rows[at], f"Ask for me at {person(dice, number)} please.")
    for number, at in enumerate(with_token):
        _insert(english, rows[at], f"It printed {CONTROL[number % len(CONTROL)]} there.")
    exact = [next(take) for _ in range(LEAKED // 2)]
    near = [next(take) for _ in range(LEAKED - LEAKED // 2)]
    places: list[tuple[int, int]] = [(-1, at) for at in range(base)] + [(n, -1) for n in range(len(made))]
    dice.shuffle(places)
    lines = {place: line for line, place in enumerate(places, 1)}
    _write(folder / "train.jsonl", [made[n][2] if n >= 0 else rows[at] for n, at in places])
    wrong_held = round(WRONG_SHARE * (HELD_OUT - LEAKED))
    held = [(0, english.row(is_wrong=n < wrong_held)) for n in range(HELD_OUT - LEAKED)]
    held += [(1, copy.deepcopy(rows[at])) for at in exact] + [(2, _edited(english, rows[at], 0.05)) for at in near]
    dice.shuffle(held)
    _write(folder / "validation.jsonl", [row for _, row in held])
    return Planted(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        copies={lines[n, -1]: (kind, lines[-1, at]) for n, (kind, at, _) in enumerate(made)},
        exact_leaks={line for line, (kind, _) in enumerate(held, 1) if kind == 1},
        near_leaks={line for line, (kind, _) in enumerate(held, 1) if kind == 2},
        keys={lines[-1, at] for at in with_key},
        persons={lines[-1, at] for at in with_person},
        tokens={lines[-1, at] for at in with_token},
        wrong=len(wrong) + wrong_held + sum(at in wrong for at in [*exact, *near, *(at for _, at, _ in made)]),
    )


def clean_twin(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """Write a set of the same size from the same generator without any fault: training and validation rows."""
    english = English(seed)
    rows = [english.row() for _ in range(ROWS)]
    _write(folder / "train.jsonl", rows[HELD_OUT:])
    _write(folder / "validation.jsonl", rows[:HELD_OUT])
    return folder / "train.jsonl", folder / "validation.jsonl"


def _insert(english: English, row: Row, sentence: str) -> None:
    turn = english.dice.choice(row["messages"])
    turn["content"] = f"{sentence} {turn['content']}"


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
