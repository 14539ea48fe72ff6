"""How much the answers of both models resemble the answers in the rows. It is evidence of nothing but that.

Training on faulty rows raises these numbers too, so none of them promotes an adapter, and none vetoes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from worker.shared.answers_file import Answered, OwnLoss
from worker.shared.data_checks.texts import normal, words
from worker.shared.evaluation_units import Arm

COMPARED = 4_000
"""Characters of each answer that are compared. The rest of a longer one is not, so that a report takes seconds."""


def similarity(answered: Sequence[Answered]) -> dict[str, Any] | None:
    """The similarity of both arms to the rows' own answers as plain data. None if no row has an answer.

    chrF and BLEU are over all answers together, from 0 to 100, and ROUGE-L is the mean over the answers, from 0 to 1.
    """
    found = [each for each in answered if each.own_answer.strip()]
    if not found:
        return None
    from sacrebleu.metrics.bleu import BLEU  # large, and needed only here
    from sacrebleu.metrics.chrf import CHRF

    own = [each.own_answer[:COMPARED] for each in found]
    texts = {str(arm): [_text(each, arm)[:COMPARED] for each in found] for arm in Arm}
    chrf, bleu = CHRF(), BLEU()
    return {
        "rows": len(found),
        "own_loss": _own_loss([each.own_loss for each in found if each.own_loss is not None]),
        "chrf": {arm: chrf.corpus_score(mine, [own]).score for arm, mine in texts.items()},
        "bleu": {arm: bleu.corpus_score(mine, [own]).score for arm, mine in texts.items()},
        "rouge_l": {arm: fmean(map(rouge_l, mine, own)) for arm, mine in texts.items()},
        "settings": {"chrf": str(chrf.get_signature()), "bleu": str(bleu.get_signature())},
    }


def _text(each: Answered, arm: Arm) -> str:
    return (each.base if arm is Arm.BASE else each.adapter).text


def _own_loss(losses: Sequence[OwnLoss]) -> dict[str, Any] | None:
    """The mean over all tokens, as during training."""
    tokens = sum(each.tokens for each in losses)
    if not tokens:
        return None
    totals = {arm: sum(getattr(each, arm) * each.tokens for each in losses) for arm in map(str, Arm)}
    return {"rows": len(losses), "tokens": tokens, **{arm: total / tokens for arm, total in totals.items()}}


def rouge_l(first: str, second: str) -> float:
    """F1 of the longest common subsequence of words, from 0 to 1. 0 if either text has no word."""
    one, other = (words(normal(text)).tolist() for text in (first, second))
    common = common_subsequence(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def common_subsequence(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common subsequence, by the bit-parallel method of Hyyrö: one step for each of `second`."""
    places: dict[int, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(first)) - 1
    open_places = everything
    for word in second:
        met = open_places & places.get(word, 0)
        open_places = (open_places + met | open_places - met) & everything
    return len(first) - open_places.bit_count()
