"""The scores of both models in the benchmarks of an evaluation, with their intervals. They promote nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.domain.trust.intervals import Interval, wilson
from orchestrator.domain.trust.paired_shares import compare_shares
from orchestrator.services.task_scores import SIGNIFICANT, points
from worker.shared.answers_file import AnswersFile, BenchmarkHead, ItemAnswers
from worker.shared.benchmark_list import BENCHMARKS, Benchmark
from worker.shared.counted_words import many

Json = dict[str, Any]


def benchmark_scores(found: AnswersFile) -> list[Json]:
    """The scores as plain data, in the order in which the benchmarks were asked."""
    scores: list[Json] = []
    first = 0
    for head in found.head.benchmarks:
        scores.append(_scores(head, found.items[first : first + head.items]))
        first += head.items
    return scores


def _scores(head: BenchmarkHead, items: tuple[ItemAnswers, ...]) -> Json:
    """Without scores if every item is too long."""
    known = BENCHMARKS.get(head.name)
    said: Json = {
        "name": head.name,
        "title": known.title if known is not None else head.name,
        "metric": known.metric if known is not None else "",
        "items": head.items,
        "unasked": head.unasked,
        "harness": head.harness,
        "chat": head.chat,
        "scores": None,
    }
    if not items:
        return said
    base, adapter = [each.base.correct for each in items], [each.adapter.correct for each in items]
    compared = compare_shares(base, adapter)
    return said | {
        "scores": {
            "base": _interval(wilson(sum(base), len(items))),
            "adapter": _interval(wilson(sum(adapter), len(items))),
            "only_base": compared.only_base,
            "only_adapter": compared.only_adapter,
            "difference": _interval(compared.difference),
            "p": compared.p,
        }
    }


def _interval(found: Interval) -> Json:
    return {"value": found.value, "low": found.low, "high": found.high}


def benchmark_warnings(scores: list[Json]) -> Iterator[str]:
    """What a person should look at."""
    for each in scores:
        found = each["scores"]
        if each["unasked"]:
            yield f"Left out, because they are too long: {many(each['unasked'], 'item')} of {each['title']}."
        if found is not None and found["p"] < SIGNIFICANT and found["difference"]["value"] < 0:
            yield f"The adapter is worse than the base model in {each['title']}: {points(found)}."


def in_words(found: Json) -> str:
    """A benchmark on the card."""
    scores = found["scores"]
    if scores is None:
        return "every item is too long"
    arms = ", ".join(f"{arm} {_share(scores[arm])}" for arm in ("base", "adapter"))
    return f"{found['metric']} of {many(found['items'], 'item')}: {arms}; {points(scores)}, p {scores['p']:.3f}"


def _share(found: Json) -> str:
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f}–{high:.1f} %)"


def model_index(name: str, scores: list[Json], pins: Json) -> list[Json]:
    """The results as the hub's `model-index`. `pins` are the settings of each benchmark by its name.

    Empty if there is no result. A benchmark that this version does not know is left out.
    """
    results = [
        _result(BENCHMARKS[each["name"]], each, pins[each["name"]])
        for each in scores
        if each["scores"] is not None and each["name"] in BENCHMARKS and each["name"] in pins
    ]
    return [{"name": "".join(sign for sign in name if sign.isprintable()), "results": results}] if results else []


def _result(benchmark: Benchmark, found: Json, pin: Json) -> Json:
    adapter, base = found["scores"]["adapter"], found["scores"]["base"]
    template = "with" if found["chat"] else "without"
    words = f"95 % interval {adapter['low']:.3f} to {adapter['high']:.3f}, base model {base['value']:.3f}"
    return {
        "task": {"type": benchmark.kind},
        "dataset": {
            "name": f"{benchmark.title}, {many(found['items'], 'item')}",
            "type": benchmark.repo,
            "config": benchmark.config,
            "split": benchmark.split,
            "revision": pin["revision"],
            "args": {"items": found["items"], "items_sha256": pin["sha256"], "task_sha256": pin["task_sha256"]},
        },
        "metrics": [
            {
                "type": found["metric"],
                "name": f"{found['metric']} ({words}; {found['harness']}, {template} chat template)",
                "value": round(adapter["value"], 4),
            }
        ],
    }
