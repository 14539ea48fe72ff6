"""Simple preference optimisation (Meng et al., arXiv 2405.14734)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from worker.training.methods.scored import ScoredMethod, Scores, of_rewards


class Simpo(ScoredMethod):
    """The chosen answer's mean log-probability should exceed the rejected one's by a margin. Has no reference."""

    def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean of -log sigmoid of the margin beyond `simpo_gamma`, and `cpo_alpha` times the chosen cross-entropy."""
        rewards = self.settings["rl_beta"] * scores.answer / scores.tokens
        learnt = -scores.answer[:, 0].sum() / scores.tokens[:, 0].sum()
        margins = rewards[:, 0] - rewards[:, 1] - self.settings["simpo_gamma"]
        return -logsigmoid(margins).mean() + self.settings["cpo_alpha"] * learnt, of_rewards(rewards)


METHOD = Simpo
