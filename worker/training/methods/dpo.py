"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from worker.training.methods.scored import ScoredMethod, Scores, of_rewards


class Dpo(ScoredMethod):
    """The chosen answer should become more likely than the rejected one, compared with the reference model."""

    compares_with_reference = True

    def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean of -log sigmoid of the difference of the rewards, which are beta times the log-ratios."""
        rewards = self.settings["rl_beta"] * (scores.answer - scores.reference)
        return -logsigmoid(rewards[:, 0] - rewards[:, 1]).mean(), of_rewards(rewards)


METHOD = Dpo
