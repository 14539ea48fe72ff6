"""Teaches a tiny model the sums of two small numbers, so that its answers are right or wrong and training changes them.

It also learns some English, so that forgetting can be measured on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tiny_model import make_tiny_llama
from benchmarks.trust.english import English

NUMBERS = range(2, 15)
"""Both parts of a sum: 169 questions."""
BATCH, TEXTS, TEXT_TOKENS = 64, 4, 192
"""Rows with a question and rows of English in a step, and the length of the latter."""
HALF, WHOLE = 220, 600
"""Steps after which some and nearly all greedy answers are right."""
LEARNING_RATE = 3e-3


def questions() -> list[tuple[str, str]]:
    """All questions with their right answers."""
    return [(f"{a} plus {b}?", str(a + b)) for a in NUMBERS for b in NUMBERS]


def teach(folder: Path) -> tuple[Path, Path]:
    """Train a tiny model on the right answers. Returns its folder after `HALF` and after `WHOLE` steps."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    untaught = make_tiny_llama(folder / "untaught")
    model: Any = AutoModelForCausalLM.from_pretrained(untaught)
    tokenizer: Any = AutoTokenizer.from_pretrained(untaught)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=WHOLE, pct_start=0.1)
    saved: list[Path] = []
    for step, rows in zip(range(1, WHOLE + 1), _batches(tokenizer), strict=False):
        # In two parts, because the rows differ much in length.
        for part in (rows[:BATCH], rows[BATCH:]):
            model(**_padded(part)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step in (HALF, WHOLE):
            saved.append(folder / f"after-{step}-steps")
            model.save_pretrained(saved[-1])
            tokenizer.save_pretrained(saved[-1])
    half, whole = saved
    return half, whole


Row = tuple[list[int], list[int]]
"""Token ids of what is given and of what is to be learnt."""


def _batches(tokenizer: Any) -> Iterator[Sequence[Row]]:
    chance, english = random.Random(0), English(0)
    asked = [_row(tokenizer, question, answer) for question, answer in questions()]
    while True:
        texts = [" ".join(english.sentence() for _ in range(6)) for _ in range(TEXTS)]
        yield [*chance.sample(asked, BATCH), *(([], tokenizer(text)["input_ids"][:TEXT_TOKENS]) for text in texts)]


def _row(tokenizer: Any, question: str, answer: str) -> Row:
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return tokenizer(prompt)["input_ids"], tokenizer(f"{answer}<|im_end|>\n")["input_ids"]


def _padded(rows: Sequence[Row]) -> dict[str, Any]:
    import torch

    longest = max(len(given) + len(learnt) for given, learnt in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for place, (given, learnt) in enumerate(rows):
        end = len(given) + len(learnt)
        ids[place, :end] = torch.tensor(given + learnt)
        labels[place, len(given) : end] = torch.tensor(learnt)
    return {"input_ids": ids, "labels": labels}
