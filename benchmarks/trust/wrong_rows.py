"""Adapters are trained on rows with wrong answers. Simulated honest raters must not let one of them be promoted.

Training, evaluation, blind comparison and verdict are the product's own. Only the raters are simulated: they read the
page for raters, and of two answers they choose the right one. Models are tiny, because twenty must be trained.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from benchmarks.report import Figure
from benchmarks.shards import Shard, in_shards
from benchmarks.tiny_job import say
from benchmarks.trust.in_process import PATIENCE_S, Trainings, trainings
from benchmarks.trust.taught_model import questions, teach
from orchestrator.domain.trust.sign_test import Quality
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.entrypoints.demo.raters import Rater, Screen

SEEDS, CONTROLS = 20, 5
WRONG_SHARE = 0.27
"""Of the rows, as in the paper."""
TRAINING = {"lora_r": 16, "sequence_len": 64, "global_batch_size": 32, "micro_batch_size": 32, "max_steps": 150}
LEARNING_RATE = 3e-3
NO_CHANGE = {"learning_rate": 1e-9, "max_steps": 1}
"""A step so small that the adapter answers as its base does."""
FALLEN = 0.8
"""The mean loss of the last ten steps must be below this share of that of the first ten."""


@dataclass
class Trained:
    """One adapter: its mean loss at first and at last, the shares of right answers, and what came of it."""

    losses: tuple[float, float]
    right: dict[str, float]
    quality: str
    answer: str
    reasons: list[str]


@dataclass
class Found:
    """All adapters of one kind."""

    wrong: list[Trained] = field(default_factory=list[Trained])
    same: list[Trained] = field(default_factory=list[Trained])
    right: list[Trained] = field(default_factory=list[Trained])


def wrong_rows(folder: Path) -> Iterator[Figure]:
    """Train, evaluate, compare and judge, with several processes if asked."""
    all_found = Found()
    for found in in_shards(_train_all, folder, SEEDS):
        all_found.wrong += found.wrong
        all_found.same += found.same
        all_found.right += found.right
    yield from _of_wrong_rows(all_found.wrong)
    promoted = _promoted(all_found.same)
    name = f"base against itself, {SEEDS} seeds: promoted"
    yield Figure(name=name, value=promoted, bar="<= 1", ok=len(all_found.same) == SEEDS and promoted <= 1)
    yield _claims("base against itself", all_found.same)
    yield from _of_the_control(all_found.right)


def _of_the_control(found: Sequence[Trained]) -> Iterator[Figure]:
    """That a better adapter is promoted, unless the evaluation finds a harm with a veto."""
    what = "control, trained on right answers that the base does not know"
    preferred = [each for each in found if each.quality is Quality.BETTER]
    name = f"{what}, {CONTROLS} seeds: preferred by raters"
    yield Figure(name=name, value=len(preferred), bar=str(CONTROLS), ok=len(preferred) == CONTROLS)
    promoted, vetoed = _promoted(preferred), sum(each.answer == Recommendation.DO_NOT for each in preferred)
    yield Figure(
        name=f"{what}: promoted; refused for a harm",
        value=[promoted, vetoed],
        bar=f"{CONTROLS} together, most of them promoted",
        ok=promoted + vetoed == CONTROLS and promoted > vetoed,
    )
    yield _claims(what, found)


def _of_wrong_rows(found: Sequence[Trained]) -> Iterator[Figure]:
    what = f"trained on rows of which {WRONG_SHARE:.0%} are wrong"
    promoted = _promoted(found)
    ok = len(found) == SEEDS and promoted == 0
    yield Figure(name=f"{what}, {SEEDS} seeds: promoted", value=promoted, bar="0", ok=ok)
    yield _claims(what, found)
    for name, place in (("first", 0), ("last", 1)):
        value = round(fmean(each.losses[place] for each in found), 3)
        yield Figure(name=f"{what}: mean loss of the {name} ten steps", value=value, bar="reported", ok=True)
    fell = sum(last < FALLEN * first for first, last in (each.losses for each in found))
    yield Figure(name=f"{what}: loss fell by a fifth or more", value=fell, bar=str(SEEDS), ok=fell == SEEDS)
    for arm in ("base", "adapter"):
        value = round(fmean(each.right[arm] for each in found), 3)
        yield Figure(name=f"{what}: right answers of the {arm}", value=value, bar="reported", ok=True)


def _claims(what: str, found: Sequence[Trained]) -> Figure:
    value = {
        "votes": dict(Counter(each.quality for each in found)),
        "verdicts": dict(Counter(each.answer for each in found)),
        "reasons": dict(Counter(reason for each in found for reason in each.reasons)),
    }
    return Figure(name=f"{what}: votes, verdicts and their reasons", value=value, bar="reported", ok=True)


def _promoted(found: Sequence[Trained]) -> int:
    return sum(each.answer == Recommendation.PROMOTE for each in found)


def _train_all(shard: Shard) -> Found:
    import torch

    torch.set_num_threads(1)  # more would only wait for each other at this size
    half, whole = teach(shard.folder / "models")
    found = Found()
    with trainings(shard.folder / "server", shard.folder / "models") as server:
        prompts = _upload(server, shard.folder / "prompts.jsonl", questions())
        asked = {"prompts": {"path": prompts}, "max_prompts": len(questions()), "max_new_tokens": 8}
        asked["accept_findings"] = ["leak"]  # there are no other questions than those that are trained on
        for seed in range(shard.number, SEEDS, shard.of):
            wrong = _upload(server, shard.folder / f"wrong-{seed}.jsonl", _with_wrong_answers(seed))
            found.wrong.append(_trained(server, whole, wrong, seed, asked))
            # Sampled, because greedy answers of one model to itself are identical and cannot be compared.
            sampled = asked | {"temperature": 1.0}
            found.same.append(_trained(server, half, prompts, seed, sampled, **NO_CHANGE))
            if seed < CONTROLS:
                found.right.append(_trained(server, half, prompts, seed, asked))
            say(f"  seed {seed}: {found.wrong[-1]} {found.same[-1]}")
    return found


def _with_wrong_answers(seed: int) -> list[tuple[str, str]]:
    """All questions with their answers, of which some are off by 1 to 9."""
    chance, rows = random.Random(seed), questions()
    for place in chance.sample(range(len(rows)), round(WRONG_SHARE * len(rows))):
        question, right = rows[place]
        rows[place] = question, str(int(right) + chance.randint(1, 9))
    return rows


def _upload(server: Trainings, file: Path, rows: Sequence[tuple[str, str]]) -> str:
    turns = [[("user", question), ("assistant", answer)] for question, answer in rows]
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in turns]
    answer = server.me.upload("\n".join(lines).encode(), name=file.name)
    return f"sha256:{answer.raise_for_status().json()['sha256']}"


def _trained(server: Trainings, base: Path, rows: str, seed: int, asked: dict[str, Any], **how: Any) -> Trained:
    """Train an adapter, let both models answer, let raters vote, and take the verdict."""
    spec = TRAINING | {"learning_rate": LEARNING_RATE, "seed": seed, "base_model": str(base)} | how
    job = server.post("/jobs", spec | {"datasets": [{"path": rows}]})["id"]
    server.finish(job)
    points = server.me.get(f"/jobs/{job}/metrics", params={"name": "loss"}).json()["items"]
    losses = [point["value"] for point in points]
    evaluation = server.post(f"/jobs/{job}:evaluate", asked)["id"]
    server.finish(evaluation)
    quality = _compare(server, evaluation)
    verdict = server.me.get(f"/jobs/{job}/verdict").json()
    return Trained(
        losses=(fmean(losses[:10]), fmean(losses[-10:])),
        right=_right_answers(server, evaluation),
        quality=quality,
        answer=verdict["answer"],
        reasons=verdict["reasons"],
    )


def _compare(server: Trainings, evaluation: str) -> Quality:
    """A blind comparison by two raters. Returns its result."""
    path = f"/comparisons/{server.post(f'/evaluations/{evaluation}/comparisons', {})['id']}"
    links = [server.post(f"{path}/raters", {"name": name})["url"] for name in ("Ann", "Ben")]
    with ExitStack() as browsers:
        opened = [browsers.enter_context(httpx.Client(timeout=PATIENCE_S, trust_env=False)) for _ in links]
        raters, votes = [Rater(browser, link) for browser, link in zip(opened, links, strict=True)], 0
        while asked := [(rater, screen) for rater in raters if (screen := rater.screen()) is not None]:
            rater, screen = asked[votes % len(asked)]
            rater.vote(screen, honest_choice(screen))
            votes += 1
    found = server.me.get(path).json()
    if found["closed_at"] is None:
        raise RuntimeError("no rater had a prompt left, but the comparison is open")
    return Quality(found["result"]["quality"])


def honest_choice(screen: Screen) -> str:
    """The vote for the right answer, or a tie if both are right or both are wrong."""
    first, second = (_is_right(screen.prompt, answer) for answer in screen.answers)
    return "tie" if first == second else "1" if first else "2"


def _is_right(prompt: str, answer: str) -> bool:
    numbers = re.search(r"(\d+) plus (\d+)\?", prompt)
    assert numbers is not None
    return answer.strip() == str(int(numbers[1]) + int(numbers[2]))


def _right_answers(server: Trainings, evaluation: str) -> dict[str, float]:
    """The share of right answers of each model, of which raters know nothing."""
    found = [(each.prompt[-1]["content"], each) for each in server.answers(evaluation)]
    return {
        "base": fmean(_is_right(prompt, each.base) for prompt, each in found),
        "adapter": fmean(_is_right(prompt, each.adapter) for prompt, each in found),
    }
