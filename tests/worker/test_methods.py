"""Training on preferences: exact over cuts, and the gradient of two passes is that of the joint graph."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.helpers import preference_rows
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.job_spec import JobSpec
from worker.shared.lineage import check_lineage
from worker.shared.manifest import Recipe
from worker.shared.messages import Origin
from worker.shared.methods import METHODS, SFT, MethodKeys
from worker.training.data import collate
from worker.training.encoding import IGNORE, Encoder, Example, load_tokenizer
from worker.training.interface import Decision, PermanentError
from worker.training.loss import add_summed_loss, backbone_states
from worker.training.methods import method_of
from worker.training.methods.interface import Method
from worker.training.methods.reference import reference
from worker.training.methods.scored import ScoredMethod, Scores
from worker.training.ranks import Group
from worker.training.trainer import StepTrainer

SCORED = [name for name in METHODS if name != SFT]
DROPOUT = {"lora_dropout": 0.1, "max_steps": 7, "global_batch_size": 3, "micro_batch_size": 1}
"""An odd global batch, and an epoch that ends inside of a step."""


@pytest.fixture
def started(base: Path, tmp_path: Path) -> Callable[[str], TrainingRuns]:
    return lambda method: preference_rows.runs(method, base, tmp_path)


@pytest.mark.parametrize("method", SCORED)
def test_cuts_change_no_byte(started: Callable[[str], TrainingRuns], method: str) -> None:
    """Guards: without the random numbers put back between the passes the weights belong to other dropout; with the
    reference in training mode it draws numbers of its own."""
    runs = started(method)
    spec = runs.spec(**DROPOUT, rl=method, val_set_size=0.2)
    whole = runs.run(spec)
    for cuts in ([3], [1, 2, 3, 5, 6]):
        cut = runs.run(spec, cuts)
        assert cut.trained.adapter_sha256 == whole.trained.adapter_sha256 is not None
        assert differing(cut.tensors, whole.tensors) == []
        assert cut.steps == whole.steps
        assert cut.measures == whole.measures
        assert [restore for hooks in cut.sessions for restore in hooks.restores] == [
            (at, "exact", "hf") for at in (0, *cuts)
        ]
    assert whole.manifest.recipe.rl == method
    losses = [values["loss"] for _, values in whole.steps]
    assert min(losses[3:]) < losses[0]


class Bench:
    """What a method needs of a trainer, on a tiny model in fp64."""

    def __init__(self, base: Path, method: str, micro_batch: int, dropout: float) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        self.model: Any = get_peft_model(causal, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"))
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        add_summed_loss(causal, backbone_states)
        self.group, self.micro_batch, self.pad_id, self.longest = Group(), micro_batch, 0, 64
        self.step_metrics: dict[str, float] = {}
        self.frozen: dict[str, torch.nn.Parameter] = {}
        rows = [preference_rows.record(number, METHODS[method].formats[0]) for number in range(5)]
        path = preference_rows.write(base.parent / f"{method}.jsonl", rows)
        from worker.shared.dataset_files import read_rows

        encoder = Encoder(load_tokenizer(base, trust_remote_code=False), 64, False, encoding=3)
        self.examples = [encoder.encode(row) for row in read_rows(path)]
        self.before = self.examples[-1]
        self.model.train()

    def parts(self, examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Example]]]:
        for begin in range(0, len(examples), self.micro_batch):
            yield begin, examples[begin : begin + self.micro_batch]

    def attempt(self, work: Callable[[], None]) -> bool:
        work()
        return True

    def rewind(self) -> None:
        torch.manual_seed(1)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def by_token(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], token_labels=batch["labels"])

    def row_before(self) -> Example:
        return self.before

    def update(self, method: Method) -> torch.Tensor:
        self.rewind()
        loss = method.update(self, self.model, self.examples, 1.0)  # pyright: ignore[reportArgumentType]
        assert loss is not None
        return loss

    def gradients(self) -> torch.Tensor:
        found = [parameter.grad for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.zero_grad(set_to_none=True)
        return torch.cat([each.flatten() for each in found if each is not None])

    def log_probabilities(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of answers and of whole texts, from plain logits."""
        answers, texts = [], []
        for _, part in self.parts(examples):
            batch = collate(part, 0)
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            of_tokens = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[:, :, 0]
            answers.append((of_tokens * batch["labels"][:, 1:].ne(IGNORE)).sum(1))
            texts.append((of_tokens * batch["attention_mask"][:, 1:]).sum(1))
        return torch.cat(answers), torch.cat(texts)

    def joint(self, method: ScoredMethod) -> torch.Tensor:
        """The loss with the graph of all rows."""
        sides = [side for example in self.examples for side in example.sides]
        width = len(self.examples[0].sides)
        self.rewind()
        answer, text = self.log_probabilities(sides)
        self.model.eval()
        measured = method.measured(self.examples, self.row_before(), self.longest)
        with torch.no_grad(), reference(self.model, {}):
            theirs = self.log_probabilities(sides)[0]
            drift = -self.log_probabilities(measured)[0] if measured else torch.zeros(len(self.examples))
        with torch.no_grad():
            drift = drift + (self.log_probabilities(measured)[0] if measured else 0)
        self.model.train()

        def shaped(values: Any) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float64).view(-1, width)

        tokens = shaped([sum(label != IGNORE for label in side.labels[1:]) for side in sides])
        return method.loss(
            Scores(
                answer=answer.view(-1, width),
                text=text.view(-1, width),
                tokens=tokens,
                text_tokens=shaped([len(side.input_ids) - 1 for side in sides]),
                reference=theirs.view(-1, width),
                drift=drift,
                desirable=torch.tensor([bool(example.desirable) for example in self.examples]),
            )
        )[0]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("method", SCORED)
def test_two_passes_have_the_joint_gradient(base: Path, method: str, dropout: float) -> None:
    """In fp64, where the two differ by rounding alone. Guards: without `rewind` the second pass has other dropout;
    with the reference in training mode, with a weight of the wrong row, or with prompts left out, the gradient is
    another one."""
    for micro_batch in (3, 10):
        bench = Bench(base, method, micro_batch, dropout)
        objective = method_of(_spec(method))
        assert isinstance(objective, ScoredMethod)
        wanted_loss = bench.joint(objective)
        wanted_loss.backward()
        wanted = bench.gradients()
        loss = bench.update(objective)
        found = bench.gradients()
        assert float(loss) == pytest.approx(float(wanted_loss.detach()), rel=1e-13)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-13


def _spec(method: str, **changes: Any) -> JobSpec:
    plain = {"base_model": "m", "datasets": [{"path": "d"}], "max_steps": 1}
    return JobSpec.model_validate(plain | ({} if method == SFT else {"rl": method}) | changes)


@pytest.mark.parametrize("method", SCORED)
def test_memory_that_runs_out_in_either_pass_changes_nothing(
    started: Callable[[str], TrainingRuns], method: str
) -> None:
    """The same bytes as with the smaller micro-batch from the start. Guard: without the update begun anew, scores of
    the larger micro-batch stayed."""
    runs = started(method)
    how = DROPOUT | {"max_steps": 3, "global_batch_size": 4, "rl": method}
    small = runs.run(runs.spec(**how))
    failed: list[bool] = []

    class Tight(StepTrainer):
        def by_token(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            losses = super().by_token(model, batch)
            if len(losses) > 1 and (torch.is_grad_enabled() or self.micro_batch > 2):
                failed.append(torch.is_grad_enabled())
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses

    tight = runs.run(runs.spec(**how | {"micro_batch_size": 4}), trainer_class=Tight)
    assert failed == [False, True]
    assert tight.steps == small.steps
    assert differing(tight.tensors, small.tensors) == []


SURE = Scores(
    answer=torch.tensor([[-2.0, -9.0], [-6.0, -4.0]], dtype=torch.float64),
    tokens=torch.tensor([[4.0, 3.0], [2.0, 8.0]], dtype=torch.float64),
    text=torch.tensor([[-7.0, -14.0], [-9.0, -7.0]], dtype=torch.float64),
    text_tokens=torch.tensor([[9.0, 8.0], [6.0, 12.0]], dtype=torch.float64),
    reference=torch.tensor([[-3.0, -8.0], [-6.5, -5.0]], dtype=torch.float64),
    drift=torch.tensor([0.75, 0.25], dtype=torch.float64),
    desirable=torch.tensor([True, False]),
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


LOSSES: dict[str, tuple[dict[str, float], float]] = {
    "dpo": ({"rl_beta": 0.5}, -(math.log(sigmoid(0.5 * (1 + 1))) + math.log(sigmoid(0.5 * (0.5 - 1)))) / 2),
    "orpo": (
        {"orpo_alpha": 0.3},
        16 / 15
        - 0.3 / 2 * math.log(sigmoid(log_odds(-0.5) - log_odds(-3)))
        - 0.3 / 2 * math.log(sigmoid(log_odds(-3) - log_odds(-0.5))),
    ),
    "simpo": (
        {"rl_beta": 2.0, "simpo_gamma": 0.4, "cpo_alpha": 0.1},
        -(math.log(sigmoid(2 * 2.5 - 0.4)) + math.log(sigmoid(2 * -2.5 - 0.4))) / 2 + 0.1 * 8 / 6,
    ),
}


@pytest.mark.parametrize("method", LOSSES)
def test_losses_are_those_of_the_papers(method: str) -> None:
    """By hand, from the formulas. `benchmarks/methods` compares gradients with TRL's."""
    settings, wanted = LOSSES[method]
    objective = method_of(_spec(method, **settings))
    assert isinstance(objective, ScoredMethod)
    assert float(objective.loss(SURE)[0]) == pytest.approx(wanted, rel=1e-12)


def test_a_certain_answer_is_no_fault() -> None:
    """Guard: without the bound the odds of an answer of probability 1 made the loss NaN in mid-run."""
    objective = method_of(_spec("orpo"))
    assert isinstance(objective, ScoredMethod)
    sure = dataclasses.replace(SURE, answer=torch.zeros((2, 2), dtype=torch.float64, requires_grad=True))
    loss = objective.loss(sure)[0]
    loss.backward()
    assert torch.isfinite(loss)
    assert sure.answer.grad is None or bool(torch.isfinite(sure.answer.grad).all())


class Member(Group):
    """One of two processes: each gets the values of both."""

    world = 2

    def __init__(self, rank: int, told: list[list[float]], meet: threading.Barrier) -> None:
        self.rank, self._told, self._meet = rank, told, meet

    def values(self, values: Sequence[float]) -> list[float]:
        self._told[self.rank] = list(values)
        self._meet.wait(60)
        both = [*self._told[0], *self._told[1]]
        self._meet.wait(60)
        return both


@pytest.mark.parametrize("method", SCORED)
def test_two_processes_have_the_gradient_of_one(base: Path, method: str) -> None:
    """Guard: without `values`, or with the weights of the other process's rows, the sum is another gradient."""
    told: list[list[float]] = [[], []]
    meet = threading.Barrier(2)
    benches = [Bench(base, method, 3, 0.0) for _ in range(3)]
    for rank, bench in enumerate(benches[:2]):
        bench.before = bench.examples[1 if rank else 3]
        bench.examples = bench.examples[2 * rank : 2 * rank + 2]
        bench.group = Member(rank, told, meet)
    benches[2].examples = benches[2].examples[:4]
    benches[2].before = benches[2].examples[-1]

    def update(bench: Bench) -> float:
        return float(bench.update(method_of(_spec(method))))

    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(update, benches[:2]))
    assert losses == [pytest.approx(update(benches[2]), rel=1e-13), 0.0]
    first, second, wanted = (bench.gradients() for bench in benches)
    assert float((first + second - wanted).norm() / wanted.norm()) < 1e-13


def test_a_checkpoint_of_another_method_or_setting_is_refused(started: Callable[[str], TrainingRuns]) -> None:
    """Guard: without `rl` and `method_settings` in `Recipe` each of them went on. Only a clone may have another
    setting, as another learning rate."""
    runs = started("dpo")
    _, hooks = runs.session(runs.spec(rl="dpo", max_steps=4), decisions={1: Decision.SAVE_AND_STOP})
    half, manifest = runs.folder / "half.safetensors", hooks.snapshots[-1].manifest
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, manifest)
    other = runs.spec(rl="dpo", rl_beta=0.2, max_steps=4)
    with pytest.raises(CheckpointError, match=r"method_settings: {'rl_beta': 0.2} \(job\)"):
        runs.session(other, resume=half)
    check_lineage(Recipe.of(other), manifest, Origin(job="job", fence=1, step=1))
    for origin in (None, Origin(job="job", fence=1, step=1)):
        with pytest.raises(CheckpointError, match=r"rl: 'sft' \(job\) != 'dpo'"):
            check_lineage(Recipe.of(runs.spec(max_steps=4)), manifest, origin)


def test_an_older_checkpoint_is_one_of_supervised_fine_tuning() -> None:
    """Guard: with None as the field's default, another method was no difference to an older checkpoint."""
    new = Recipe.of(_spec(SFT))
    old = Recipe.model_validate(new.model_dump(exclude={"rl", "method_settings"}))
    assert old == new
    assert {name for name, *_ in old.differences(Recipe.of(_spec("dpo")))} == {"rl", "method_settings"}


@pytest.mark.parametrize("method", METHODS)
def test_a_job_file_names_the_keys_that_it_was_given_alone(method: str) -> None:
    """Guard: an older worker refuses keys that it does not know."""
    spec = _spec(method)
    assert spec.model_dump().keys() & MethodKeys.model_fields.keys() == ({"rl"} if method != SFT else set())
    assert spec.method_settings == METHODS[method].settings
    for name in METHODS[method].settings:
        changed = _spec(method, **{name: 0.5})
        assert JobSpec.model_validate_json(changed.model_dump_json()) == changed
        assert changed.method_settings[name] == 0.5
    for name in MethodKeys.model_fields.keys() - METHODS[method].settings.keys() - {"rl"}:
        with pytest.raises(ValidationError, match=rf"{name} has no effect with.*; it is a setting of rl: "):
            _spec(method, **{name: 0.5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl": "grpo"}, "grpo samples answers while it trains, and sampled tokens differ between machines"),
        ({"rl": "ipo"}, "'ipo' is not supported; there are dpo.*, and supervised fine-tuning without the key"),
        ({"rl": "sft"}, "'sft' is not supported"),
        ({"rl": "dpo", "train_on_inputs": True}, "rl: dpo compares answers, so prompts cannot be trained on"),
        ({"rl": "dpo", "rl_beta": 0}, "greater than 0"),
        ({"rl": "dpo", "rl_beta": float("nan")}, "finite"),
        ({"rl": ["dpo"]}, "is not supported"),
    ],
)
def test_methods_that_cannot_be_are_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _spec(SFT, **changes)


def test_rows_with_an_answer_beyond_the_length_are_left_out(started: Callable[[str], TrainingRuns]) -> None:
    """Guard: without the look at both sides, half of a pair was compared with nothing."""
    runs = started("dpo")
    records = [preference_rows.record(number, METHODS["dpo"].formats[0]) for number in range(runs.rows)]
    early = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "and " * 90}]
    records[2]["rejected"] = early[1:] + records[2]["rejected"]
    preference_rows.write(runs.dataset, records)
    _, hooks = runs.session(
        runs.spec(rl="dpo", max_steps=1, global_batch_size=2), decisions={1: Decision.SAVE_AND_STOP}
    )
    assert hooks.snapshots[-1].manifest.recipe.untrained_rows == 1


def test_rows_of_another_method_are_refused_on_a_machine(
    training: TrainingRuns, started: Callable[[str], TrainingRuns]
) -> None:
    runs = started("dpo")
    with pytest.raises(PermanentError, match=r"without rl trains on rows of the format messages, .*set rl to dpo"):
        runs.session(runs.spec())
    with pytest.raises(PermanentError, match="rl: dpo trains on rows of the format preference, and these are messages"):
        training.session(training.spec(rl="dpo"))
