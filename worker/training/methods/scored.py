"""Methods whose loss compares whole answers: all rows of an update are scored, then each gets its weight.

The loss is a function of log-probabilities, one or two for each answer. So its gradient is a sum over answers: the
derivative by the answer's log-probability, a number, times the gradient of that log-probability. The first pass
computes the log-probabilities without gradients, the second one the weighted sum, micro-batch by micro-batch. That is
the gradient of the joint graph, which would need the memory of all rows at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.training.data import Rows, collate
from worker.training.encoding import IGNORE, Example
from worker.training.methods.interface import Run
from worker.training.methods.reference import measuring, reference
from worker.training.ranks import Group
from worker.training.state import evaluation_mode


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is known of the rows of a global batch, in its order: fp64 tensors of shape (rows, answers), on the CPU.

    `answer` is the log-probability of an answer's trained tokens, of which there are `tokens`, and `reference` that of
    the reference model. `text` is the log-probability of all tokens of the row but the first (`text_tokens`): prompt
    and answer. `drift` of shape (rows,) is policy minus reference for the answer of another row. `desirable` of shape
    (rows,) is true for a good answer. What a method does not ask for is zero.
    """

    answer: torch.Tensor
    tokens: torch.Tensor
    text: torch.Tensor
    text_tokens: torch.Tensor
    reference: torch.Tensor
    drift: torch.Tensor
    desirable: torch.Tensor


@dataclass
class _Found:
    """Log-probabilities of this process's answers, one by one."""

    answer: list[float] = field(default_factory=list[float])
    text: list[float] = field(default_factory=list[float])
    reference: list[float] = field(default_factory=list[float])
    drift: list[float] = field(default_factory=list[float])


class ScoredMethod(ABC):
    """A method with a loss over `Scores`. The flags say which of them it needs."""

    compares_with_reference = False
    reads_prompts = False
    """Whether the loss has the log-probabilities of prompts, too."""

    def __init__(self, settings: Mapping[str, float]) -> None:
        self.settings = settings

    @abstractmethod
    def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a global batch as a differentiable fp64 scalar, and further values of the update by name."""

    def measured(self, examples: Sequence[Example], before: Example, longest: int) -> list[Example]:
        """One example for each of these to measure the `drift` with, of at most `longest` tokens.

        `before` is the one before the first.
        """
        del examples, before, longest
        return []

    def update(self, run: Run, model: Any, examples: list[Example], tokens: float) -> torch.Tensor | None:
        """Score, weigh, and sum up the gradients."""
        del tokens  # the loss is a mean over rows
        answers, found = _answers(examples), _Found()

        def score() -> None:
            with torch.no_grad():
                self._score(run, model, answers, found)
            self._compare(run, model, answers, self.measured(examples, run.row_before(), run.longest), found)

        if not run.attempt(score):
            return None
        scores = _gathered(run.group, examples, found)
        wanted = [scores.answer.requires_grad_(), scores.text.requires_grad_()]
        loss, run.step_metrics = self.loss(scores)
        begin = run.group.rank * len(answers)
        of_answers, of_texts = (
            None if each is None else each.flatten()[begin : begin + len(answers)]
            for each in torch.autograd.grad(loss, wanted, allow_unused=True)
        )
        run.rewind()  # both passes see the same random numbers

        def learn() -> None:
            for first, part in run.parts(answers):
                batch, trained, real = self._batch(run, part)
                losses = run.by_token(model, batch)
                weights = torch.zeros_like(losses)
                for factors, counted in ((of_answers, trained), (of_texts, real)):
                    if factors is not None:
                        weights += factors[first : first + len(part), None].to(losses) * counted[:, 1:].to(losses)
                run.backward(-(weights * losses).sum())

        if not run.attempt(learn):
            return None
        return loss.detach() * (run.group.rank == 0)  # every process has computed all of it

    def held_out_loss(self, run: Run, model: Any, rows: Rows) -> float | None:
        """The loss of the validation rows as one batch. Rows with an answer beyond `sequence_len` do not count."""
        every = (rows[number] for number in range(len(rows)))
        examples = [example for example in every if all(_tokens(side) for side in example.sides)]
        if not examples:
            return None
        answers, found = _answers(examples), _Found()
        with evaluation_mode(model):
            self._score(run, model, answers, found)
            self._compare(run, model, answers, self.measured(examples, examples[-1], run.longest), found)
            return float(self.loss(_gathered(Group(), examples, found))[0])

    def _score(self, run: Run, model: Any, answers: Sequence[Example], found: _Found) -> None:
        for _, part in run.parts(answers):
            of_answers, of_texts = self._log_probabilities(run, model, part)
            found.answer += of_answers
            found.text += of_texts

    def _compare(
        self, run: Run, model: Any, answers: Sequence[Example], measured: Sequence[Example], found: _Found
    ) -> None:
        """The reference model's log-probabilities, and the drift, which should not depend on dropout."""
        if not self.compares_with_reference:
            return

        def all_of(examples: Sequence[Example]) -> list[float]:
            return [value for _, part in run.parts(examples) for value in self._log_probabilities(run, model, part)[0]]

        with measuring(model):
            mine = all_of(measured)
            with reference(model, run.frozen):
                found.reference += all_of(answers)
                theirs = all_of(measured)
        found.drift += [policy - other for policy, other in zip(mine, theirs, strict=True)]

    def _log_probabilities(self, run: Run, model: Any, part: Sequence[Example]) -> tuple[list[float], list[float]]:
        """Of each example's answer, and of all its text."""
        batch, trained, _ = self._batch(run, part)
        losses = run.by_token(model, batch).double()
        return (-(losses * trained[:, 1:].to(losses)).sum(1)).tolist(), (-losses.sum(1)).tolist()

    def _batch(self, run: Run, part: Sequence[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """A batch, and which of its tokens are trained and which are real."""
        batch = collate(part, run.pad_id)
        trained, real = batch["labels"] != IGNORE, batch["attention_mask"].bool()
        if self.reads_prompts:
            batch["labels"] = torch.where(real, batch["input_ids"], IGNORE)
        return batch, trained, real


def _answers(examples: Sequence[Example]) -> list[Example]:
    return [side for example in examples for side in example.sides]


def _tokens(example: Example) -> int:
    return sum(label != IGNORE for label in example.labels[1:])


def _gathered(group: Group, examples: Sequence[Example], found: _Found) -> Scores:
    """The scores of all processes in the order of the global batch. Each computes the same loss from them."""
    answers, width = _answers(examples), len(examples[0].sides)

    def table(values: Sequence[float], columns: int = width) -> torch.Tensor:
        padded = values or [0.0] * (columns * len(examples))
        return torch.tensor(group.values(padded), dtype=torch.float64).view(-1, columns)

    return Scores(
        answer=table(found.answer),
        tokens=table([_tokens(each) for each in answers]),
        text=table(found.text),
        text_tokens=table([len(each.input_ids) - 1 for each in answers]),
        reference=table(found.reference),
        drift=table(found.drift, 1)[:, 0],
        desirable=table([bool(each.desirable) for each in examples], 1)[:, 0] > 0,
    )


def of_rewards(rewards: torch.Tensor) -> dict[str, float]:
    """Mean margin of the chosen answers over the rejected ones, and the share of rows where it is positive."""
    margins = (rewards[:, 0] - rewards[:, 1]).detach()
    return {"reward_margin": float(margins.mean()), "reward_accuracy": float((margins > 0).double().mean())}
