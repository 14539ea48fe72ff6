"""Odds ratio preference optimisation (Hong et al., arXiv 2403.07691)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from worker.training.methods.scored import ScoredMethod, Scores, of_rewards

_SURE = -1e-9
"""A mean log-probability closer to 0 has odds without a bound."""


class Orpo(ScoredMethod):
    """Learns the chosen answers and their prompts, and makes the odds of rejected ones smaller. Has no reference."""

    reads_prompts = True

    def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of chosen rows, a mean over their tokens, and the share of the log odds ratio, one over rows.

        As in TRL, the cross-entropy has the tokens of prompts, and the odds are those of the mean log-probability.
        """
        alpha, mean = self.settings["orpo_alpha"], (scores.answer / scores.tokens).clamp(max=_SURE)
        learnt = -scores.text[:, 0].sum() / scores.text_tokens[:, 0].sum()
        odds = mean - torch.log(-torch.expm1(mean))
        return learnt - alpha * logsigmoid(odds[:, 0] - odds[:, 1]).mean(), of_rewards(alpha * mean)


METHOD = Orpo
