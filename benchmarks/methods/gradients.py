"""Compares gradients and losses of 20 steps with those of TRL's own trainers, on a tiny model in fp32.

Our side is a whole session. Before every step the adapter's values are noted, and TRL's trainer gets the same values
and the same tokens. A second run of TRL's loss begins with the first values alone and takes its own steps. TRL's
trainers take log-probabilities with a kernel that needs Triton. Without it they get those of plain logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.sessions import Watcher, resolved
from benchmarks.report import Figure
from benchmarks.tiny_model import make_tiny_llama
from worker.shared.methods import METHODS, SFT
from worker.training.encoding import IGNORE, Example
from worker.training.interface import TrainingJob
from worker.training.state import trainable
from worker.training.train import train
from worker.training.trainer import StepTrainer

STEPS, ROWS, LENGTH, RATE = 20, 4, 128, 1e-3
GRADIENT_BAR, LOSS_BAR = 1e-5, 1e-4
EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {"unpaired_preference": "trail-guide-ratings.jsonl", "preference": "trail-guide-pairs.jsonl"}
Values = dict[str, torch.Tensor]


@dataclass
class Step:
    """One update of ours: the values before it, its rows, its loss and its gradients."""

    values: Values
    rows: list[Example]
    loss: float
    gradients: Values


@dataclass
class Recorded:
    steps: list[Step] = field(default_factory=list[Step])


def figures(folder: Path) -> Iterator[Figure]:
    """Two figures of each method of preference training."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    base = make_tiny_llama(folder / "tiny")
    for method in METHODS:
        if method != SFT:
            yield from compared(method, base, folder / method)


def compared(method: str, base: Path, folder: Path) -> tuple[Figure, Figure]:
    """The largest relative difference of a gradient, and of a loss over two runs."""
    steps = ours(method, base, folder)
    theirs = Theirs(method, base, folder)
    gradients = [relative(step.gradients, theirs.gradients(step.values, step.rows)[1]) for step in steps]
    losses = theirs.losses(steps)
    loss = max(abs(mine.loss - other) / abs(other) for mine, other in zip(steps, losses, strict=True))
    worst = max(gradients)
    return (
        Figure(
            name=f"{method}: gradients of {STEPS} steps against TRL's, largest relative difference",
            value=float(f"{worst:.2e}"),
            bar=f"<= {GRADIENT_BAR:g}",
            ok=worst <= GRADIENT_BAR,
        ),
        Figure(
            name=f"{method}: losses of {STEPS} steps against TRL's, largest relative difference",
            value=float(f"{loss:.2e}"),
            bar=f"<= {LOSS_BAR:g}",
            ok=loss <= LOSS_BAR,
        ),
    )


def ours(method: str, base: Path, folder: Path) -> list[Step]:
    """A session of ours."""
    data = EXAMPLES / FILES[METHODS[method].formats[0]]
    file = {
        "base_model": str(base),
        "rl": method,
        "lora_r": 4,
        "sequence_len": LENGTH,
        "global_batch_size": ROWS,
        "micro_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "max_grad_norm": 0.0,
        "encoding": 3,
        "numerics": 2,
    }
    recorded = Recorded()

    class Recording(StepTrainer):
        def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            values = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
            loss = super().training_step(model, inputs, num_items_in_batch)
            found = {name: _gradient(parameter) for name, parameter in trainable(model).items()}
            recorded.steps.append(Step(values, list(inputs), self.step_loss, found))
            return loss

    spec = resolved(file, data)
    folder.mkdir(parents=True, exist_ok=True)
    train(
        TrainingJob(job="bench", fence=1, spec=spec, datasets=(data,), resume=None, work_dir=folder),
        Watcher(),
        trainer_class=Recording,
    )
    return recorded.steps


class Theirs:
    """TRL's trainer of a method with an adapter whose values can be set."""

    def __init__(self, method: str, base: Path, folder: Path) -> None:
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl.trainer import utils

        if utils._ChunkedLogProbFunction is None:  # noqa: SLF001 - a computer without Triton
            utils._ChunkedLogProbFunction = PlainLogits  # noqa: SLF001
        self._method = method
        kind, settings, rows, more = _trainer_of(method)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base)
        plain = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "bf16": False}
        plain |= {"per_device_train_batch_size": ROWS, "gradient_checkpointing": False}
        self.trainer: Any = kind(
            model=model,
            args=settings(**plain, **more),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        self.trainer.model.train()

    def gradients(self, values: Values, rows: list[Example]) -> tuple[float, Values]:
        """Loss and gradients with these values."""
        model = self.trainer.model
        parameters = _trained(model)
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
        model.zero_grad(set_to_none=True)
        loss = self._loss(rows)
        loss.backward()
        return float(loss.detach()), {name: _gradient(each) for name, each in parameters.items()}

    def losses(self, steps: list[Step]) -> list[float]:
        """The losses of a run of its own, with the first values and all rows."""
        values = {name: value.clone().requires_grad_() for name, value in steps[0].values.items()}
        optimizer = torch.optim.AdamW(values.values(), lr=RATE, weight_decay=0.0)
        found: list[float] = []
        for step in steps:
            loss, gradients = self.gradients({name: value.detach() for name, value in values.items()}, step.rows)
            for name, value in values.items():
                value.grad = gradients[name]
            optimizer.step()
            found.append(loss)
        return found

    def _loss(self, rows: list[Example]) -> torch.Tensor:
        batch = _COLLATED[self._method](self.trainer, rows)
        return self.trainer.compute_loss(self.trainer.model, batch)


def relative(mine: Values, theirs: Values) -> float:
    """Norm of the difference by the norm of the other."""
    difference = sum(float((mine[name] - theirs[name]).double().square().sum()) for name in mine)
    return (difference / sum(float(each.double().square().sum()) for each in theirs.values())) ** 0.5


class PlainLogits:
    """Stands in for TRL's kernel on a computer without Triton: what it gives, in the same order."""

    @staticmethod
    def apply(hidden: Any, weight: Any, bias: Any, targets: torch.Tensor, temperature: float, *_: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, weight, bias).float() / temperature
        spread = logits.log_softmax(-1)
        entropy = -(spread.exp() * spread).sum(-1)
        is_top1 = logits.argmax(-1) == targets
        return spread.gather(1, targets[:, None])[:, 0], entropy, (2 * spread).logsumexp(-1), logits.mean(-1), is_top1


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trainer_of(method: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """TRL's trainer, its settings, rows that it is content with, and our defaults."""
    from datasets import Dataset

    pairs = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * ROWS)
    if method == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig, pairs, {"beta": 0.1, "max_length": LENGTH}
    if method == "kto":
        from trl import KTOConfig, KTOTrainer

        rated = Dataset.from_list([{"prompt": "a", "completion": "b", "label": n > 1} for n in range(ROWS)])
        return KTOTrainer, KTOConfig, rated, {"beta": 0.1, "max_length": LENGTH}
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, pairs, {"beta": 0.1, "max_length": LENGTH}
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    more = {"beta": 0.1, "loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0, "max_length": LENGTH}
    return CPOTrainer, CPOConfig, pairs, more


def _cut(example: Example) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer."""
    begin = next(place for place, label in enumerate(example.labels) if label != IGNORE)
    return example.input_ids[:begin], example.input_ids[begin:]


def _pairs(trainer: Any, rows: list[Example]) -> dict[str, Any]:
    given: list[dict[str, list[int]]] = []
    for chosen, rejected in (row.sides for row in rows):
        (prompt, good), (_, bad) = _cut(chosen), _cut(rejected)
        given.append({"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad})
    return trainer.data_collator(given)


def _rated(trainer: Any, rows: list[Example]) -> dict[str, Any]:
    cut = [_cut(row) for row in rows]
    before = [answer for _, answer in (cut[-1], *cut[:-1])]
    return trainer.data_collator(
        [
            {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": row.desirable}
            for (prompt, answer), other, row in zip(cut, before, rows, strict=True)
        ]
    )


def _padded(_: Any, rows: list[Example]) -> dict[str, Any]:
    """What the older trainers collate: ids, labels and masks of each answer."""
    batch: dict[str, Any] = {}
    for place, name in enumerate(("chosen", "rejected")):
        sides = [row.sides[place] for row in rows]
        longest = max(len(side.input_ids) for side in sides)

        def filled(lists: list[list[int]], fill: int, longest: int = longest) -> torch.Tensor:
            return torch.tensor([each + [fill] * (longest - len(each)) for each in lists])

        batch[f"{name}_input_ids"] = filled([side.input_ids for side in sides], 0)
        batch[f"{name}_attention_mask"] = filled([[1] * len(side.input_ids) for side in sides], 0)
        batch[f"{name}_labels"] = filled([side.labels for side in sides], IGNORE)
    return batch


_COLLATED: dict[str, Callable[[Any, list[Example]], dict[str, Any]]] = {
    "dpo": _pairs,
    "kto": _rated,
    "orpo": _padded,
    "simpo": _padded,
}
