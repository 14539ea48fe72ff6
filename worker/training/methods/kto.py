"""Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worker.training.encoding import IGNORE, Example
from worker.training.methods.scored import ScoredMethod, Scores


class Kto(ScoredMethod):
    """Good answers should gain and bad ones lose, compared with how far the model has moved from the reference."""

    compares_with_reference = True

    def measured(self, examples: Sequence[Example], before: Example, longest: int) -> list[Example]:
        """Each prompt with the answer of the row before it. The global batch is a ring."""
        return [_mixed(mine, other, longest) for other, mine in zip([before, *examples], examples, strict=False)]

    def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean of the weighted values of all rows. The drift is their mean over the global batch, at least 0."""
        drift = scores.drift.mean().clamp(min=0)
        ratio = (scores.answer - scores.reference)[:, 0]
        good = scores.desirable
        gain = torch.where(good, ratio - drift, drift - ratio)
        weight = torch.where(good, self.settings["kto_desirable_weight"], self.settings["kto_undesirable_weight"])
        loss = (weight * (1 - torch.sigmoid(self.settings["rl_beta"] * gain))).mean()
        rewards, values = self.settings["rl_beta"] * ratio.detach(), {"kl": float(drift)}
        if bool(good.any()) and not bool(good.all()):
            values["reward_margin"] = float(rewards[good].mean() - rewards[~good].mean())
        return loss, values


def _mixed(mine: Example, other: Example, longest: int) -> Example:
    """The prompt of one row and the answer of another."""
    prompt, answer = mine.input_ids[: _begin(mine)], other.input_ids[_begin(other) :]
    labels = [IGNORE] * len(prompt) + other.labels[_begin(other) :]
    return Example((prompt + answer)[:longest], labels[:longest])


def _begin(example: Example) -> int:
    """Where the answer begins."""
    return next((place for place, label in enumerate(example.labels) if label != IGNORE), len(example.labels))


METHOD = Kto
