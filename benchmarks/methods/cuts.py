"""Trains with every setting of the job file that changes training, whole and cut, and compares every byte.

Each case trains a tiny model without a cut, with 1 and with 5 cuts, each session from fresh objects and the checkpoint
before. Equal are the adapter's archive, every tensor of the last checkpoint, and the JSON part of its state. Then the
checkpoint is given to a job whose file has another value, which has to be refused.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Figure
from benchmarks.tiny_job import say
from benchmarks.tiny_model import make_tiny_llama, make_tiny_mixture
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.job_spec import ENCODING, NUMERICS, JobSpec
from worker.shared.start_adapter import WEIGHTS
from worker.training.interface import Decision, Snapshot, Trained, TrainingJob

STEPS, ROWS = 8, 23
CUTS: tuple[tuple[int, ...], ...] = ((3,), (1, 2, 4, 5, 7))
_STEEP = {"learning_rate": 2.0, "lr_scheduler": "constant", "val_set_size": 0.2, "eval_steps": 1}
"""A validation loss that falls and rises in turn."""
_EXPERTS = {"lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_dropout": 0.0}


_OF_TOOLS = (
    "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}{{ eos_token }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`changes` to the job file, and `other` changes that a checkpoint of such a job must be refused for.

    With `continues`, the job begins with the adapter of another one, and `other` has to say that it does not.
    `rows` names the rows that the job trains on. `dataset` and `other_dataset` are the same changes to its dataset.
    `model` is the family of the tiny model.
    """

    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    other: Mapping[str, Any] = field(default_factory=dict[str, Any])
    continues: bool = False
    rows: str = "turns"
    dataset: Mapping[str, Any] = field(default_factory=dict[str, Any])
    other_dataset: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str = "Llama"

    @property
    def refused_for(self) -> tuple[str, ...]:
        """The keys that a refusal may name."""
        return (*self.other, *self.other_dataset)


_NEW: dict[str, Any] = {"lora_model_dir": None, "lora_model": None}


def _schedule(name: str, **settings: Any) -> Case:
    changes: dict[str, Any] = {"lr_scheduler": name}
    return Case(changes=changes | ({"lr_scheduler_kwargs": settings} if settings else {}), other={})


CASES: dict[str, Case] = {
    "linear": Case(changes={}, other={"lr_scheduler": "cosine"}),
    "cosine": _schedule("cosine"),
    "constant": _schedule("constant"),
    "constant_with_warmup": _schedule("constant_with_warmup"),
    "cosine_with_min_lr": _schedule("cosine_with_min_lr", min_lr_rate=0.25),
    "inverse_sqrt": _schedule("inverse_sqrt", timescale=2),
    "polynomial": _schedule("polynomial", power=2.0, lr_end=1e-3),
    "warmup_stable_decay": _schedule("warmup_stable_decay", num_decay_steps=4, min_lr_ratio=0.5),
    "warmup_steps": Case(changes={"warmup_steps": 2}, other={"warmup_steps": 3}),
    "adam": Case(changes={"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}, other={"adam_beta2": 0.9}),
    "adamw_8bit": Case(changes={"optimizer": "adamw_8bit"}, other={"optimizer": "adamw_torch"}),
    "paged_adamw_8bit": Case(changes={"optimizer": "paged_adamw_8bit"}, other={"optimizer": "adamw_8bit"}),
    "weight_decay": Case(changes={"weight_decay": 0.1}, other={"weight_decay": 0.0}),
    "max_grad_norm": Case(changes={"max_grad_norm": 0.3}, other={"max_grad_norm": 1.0}),
    "train_on_inputs": Case(changes={"train_on_inputs": True}, other={"train_on_inputs": False}),
    "qlora": Case(changes={"adapter": "qlora"}, other={"adapter": "lora"}),
    "rslora": Case(changes={"peft_use_rslora": True}, other={"peft_use_rslora": False}),
    "layers": Case(changes={"lora_layers_to_transform": [1]}, other={"lora_layers_to_transform": [0]}),
    "pattern": Case(
        changes={"lora_target_modules": r".*\.(q|v)_proj"}, other={"lora_target_modules": r".*\.[qv]_proj"}
    ),
    "loraplus": Case(changes={"loraplus_lr_ratio": 8.0}, other={"loraplus_lr_ratio": 4.0}),
    "loraplus, 8 bits": Case(
        changes={"loraplus_lr_ratio": 8.0, "optimizer": "adamw_8bit"}, other={"loraplus_lr_ratio": 1.0}
    ),
    "loraplus, paged": Case(
        changes={"loraplus_lr_ratio": 8.0, "optimizer": "paged_adamw_8bit"}, other={"loraplus_lr_ratio": 1.0}
    ),
    "dora": Case(changes={"peft_use_dora": True}, other={"peft_use_dora": False}),
    "dora, qlora": Case(changes={"peft_use_dora": True, "adapter": "qlora"}, other={"peft_use_dora": False}),
    "dora, loraplus": Case(changes={"peft_use_dora": True, "loraplus_lr_ratio": 8.0}, other={"loraplus_lr_ratio": 1.0}),
    "neftune": Case(changes={"neftune_noise_alpha": 5.0}, other={"neftune_noise_alpha": 10.0}),
    "tokens": Case(changes={"peft_trainable_token_indices": [1, 2]}, other={"peft_trainable_token_indices": [1, 3]}),
    "new tokens": Case(
        changes={"tokens": ["sure", "square"], "peft_trainable_token_indices": [1]},
        other={"tokens": ["square", "sure"]},
    ),
    "experts": Case(changes=_EXPERTS, other={"lora_target_parameters": ["mlp.experts.down_proj"]}, model="Qwen3Moe"),
    "experts of Mixtral": Case(changes=_EXPERTS, other={"lora_target_parameters": []}, model="Mixtral"),
    "experts, qlora": Case(changes=_EXPERTS | {"adapter": "qlora"}, other={"adapter": "lora"}, model="Qwen3Moe"),
    "experts, new tokens": Case(changes=_EXPERTS | {"tokens": ["sure"]}, other={"tokens": []}, model="Qwen3Moe"),
    "stopped early": Case(changes=_STEEP | {"early_stopping_patience": 2}, other={"early_stopping_patience": 3}),
    "best": Case(changes=_STEEP | {"load_best_model_at_end": True}, other={"load_best_model_at_end": False}),
    "stopped early, best": Case(
        changes=_STEEP | {"early_stopping_patience": 2, "load_best_model_at_end": True},
        other={"load_best_model_at_end": False},
    ),
    "dpo": Case(changes={"rl": "dpo"}, other={"rl_beta": 0.2}, rows="pairs"),
    "orpo": Case(changes={"rl": "orpo"}, other={"rl": "dpo"}, rows="pairs"),
    "simpo": Case(changes={"rl": "simpo", "cpo_alpha": 0.5}, other={"simpo_gamma": 1.0}, rows="pairs"),
    "kto": Case(changes={"rl": "kto"}, other={"kto_desirable_weight": 2.0}, rows="ratings"),
    "continued": Case(continues=True, other=_NEW),
    "continued, qlora, dora": Case(
        continues=True, changes={"adapter": "qlora", "peft_use_dora": True, "peft_use_rslora": True}, other=_NEW
    ),
    "continued, dpo": Case(continues=True, changes={"rl": "dpo"}, other=_NEW, rows="pairs"),
    "continued, kto": Case(continues=True, changes={"rl": "kto"}, other=_NEW, rows="ratings"),
    "dpo, dora, neftune": Case(
        changes={"rl": "dpo", "peft_use_dora": True, "neftune_noise_alpha": 5.0},
        other={"neftune_noise_alpha": 0.0},
        rows="pairs",
    ),
    "kto, stopped early, best": Case(
        changes=_STEEP
        | {"learning_rate": 1.0, "rl": "kto", "early_stopping_patience": 2, "load_best_model_at_end": True},
        other={"load_best_model_at_end": False},
        rows="ratings",
    ),
    "roles_to_train": Case(
        dataset={"roles_to_train": ["user", "assistant"]}, other_dataset={"roles_to_train": ["assistant"]}
    ),
    "mask_history": Case(dataset={"mask_history": True}, other_dataset={"mask_history": False}),
    "train_on_eos": Case(dataset={"train_on_eos": "last"}, other_dataset={"train_on_eos": "all"}),
    "repeats": Case(dataset={"repeats": 1.5}, other_dataset={"repeats": 2}),
    "texts in pieces": Case(
        changes={"excess_length_strategy": "split", "val_set_size": 0.2, "eval_steps": 3},
        other={"excess_length_strategy": "truncate"},
        rows="texts",
        dataset={"repeats": 1.5},
    ),
    "chat_template": Case(changes={"chat_template": "chatml"}, other={"chat_template": "tokenizer_default"}),
    "tools": Case(
        changes={"chat_template": "jinja", "chat_template_jinja": _OF_TOOLS, "sequence_len": 512}, rows="tools"
    ),
}


@dataclass
class _Hooks:
    """Hooks that end a session after the step `until`, and keep what it saves."""

    until: int | None
    saved: list[Snapshot] = field(default_factory=list[Snapshot])
    labels: list[str] = field(default_factory=list[str])

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        return Decision.SAVE_AND_STOP if step == self.until else Decision.CONTINUE

    def restored(self, step: int, fidelity: Any, backend: str) -> None:
        self.labels.append(fidelity.value)

    def save(self, snapshot: Snapshot) -> None:
        snapshot.ready()
        self.saved.append(snapshot)

    def phase(self, phase: Any) -> None:
        pass

    def begins(self, part: Any) -> None:
        pass

    def lost(self, words: str) -> None:
        raise RuntimeError(words)

    def lowered(self, fidelity: Any, why: str) -> None:
        self.labels.append(fidelity.value)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def sampled(self, samples: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class _Run:
    archive: bytes
    tensors: dict[str, bytes]
    state: str
    labels: tuple[str, ...]
    first: Path
    """The checkpoint of the first session."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    folder: Path
    models: Mapping[str, Path]

    def spec(self, case: Case, *, is_other: bool = False) -> JobSpec:
        dataset = {"path": case.rows, "rows": ROWS, "sha256": "0" * 64} | {**case.dataset}
        usual: dict[str, Any] = {
            "base_model": str(self.models[case.model]),
            "datasets": [dataset | {**case.other_dataset} if is_other else dataset],
            "lora_r": 4,
            "lora_dropout": 0.1,
            "max_steps": STEPS,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "sequence_len": 64,
            "learning_rate": 1e-2,
            "encoding": ENCODING,
            "numerics": NUMERICS,
        }
        begun = self.begun(usual | {**case.changes}) if case.continues and not is_other else {}
        return JobSpec.model_validate({**usual, **case.changes, **begun, **(case.other if is_other else {})})

    def begun(self, file: dict[str, Any]) -> dict[str, Any]:
        """The keys that name the adapter of a short job like this one, whose archive is there afterwards."""
        spec = JobSpec.model_validate(file | {"max_steps": 2, "seed": 7})
        archive = self.session(spec, _Hooks(None), None).adapter_zip
        assert archive is not None
        with zipfile.ZipFile(archive.replace(self.folder / "start.zip")) as packed:
            weights = hashlib.sha256(packed.read(WEIGHTS)).hexdigest()
        file_sha256 = checkpoint_file.sha256_file(self.folder / "start.zip")
        found = {"sha256": file_sha256, "weights_sha256": weights}
        return {"lora_model_dir": f"sha256:{file_sha256}", "lora_model": found}

    def session(self, spec: JobSpec, hooks: _Hooks, resume: Path | None) -> Trained:
        from worker.training.train import train

        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        rows = self.folder / f"{spec.datasets[0].path}.jsonl"
        files = (rows,) if spec.lora_model is None else (rows, self.folder / "start.zip")
        job = TrainingJob(job="job", fence=1, spec=spec, datasets=files, resume=resume, work_dir=work)
        return train(job, hooks)

    def run(self, spec: JobSpec, cuts: tuple[int, ...], name: str) -> _Run:
        resume: Path | None = None
        labels: list[str] = []
        files: list[Path] = []
        trained: Trained | None = None
        for number, until in enumerate((*cuts, None)):
            if trained is not None and trained.complete:
                break  # it has stopped early
            hooks = _Hooks(until)
            trained = self.session(spec, hooks, resume)
            labels += hooks.labels
            if hooks.saved:
                resume = self.folder / f"{name}-{number}.safetensors"
                checkpoint_file.write(resume, hooks.saved[-1].tensors, hooks.saved[-1].manifest)
                files.append(resume)
        assert resume is not None
        assert trained is not None
        assert trained.adapter_zip is not None
        arrays, manifest = checkpoint_file.load(resume)
        return _Run(
            archive=trained.adapter_zip.read_bytes(),
            tensors={key: value.tobytes() for key, value in arrays.items()},
            state=json.dumps(manifest.state, sort_keys=True),
            labels=tuple(labels),
            first=files[0],
        )


def _write_rows(folder: Path) -> None:
    """Files of each kind of rows."""
    kinds = {"turns": _turns, "pairs": _pair, "ratings": _rating, "tools": _with_tools, "texts": _text}
    for name, row in kinds.items():
        lines = [json.dumps(row(number)) + "\n" for number in range(ROWS)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _answer(number: int) -> str:
    return f"it is {number * number}. " * (1 + number % 3)


def _turns(number: int) -> dict[str, Any]:
    turns = [_said("user", f"{number} squared?"), _said("assistant", _answer(number))]
    return {"messages": [*turns, _said("user", "sure?"), _said("assistant", "yes")] if number % 2 else turns}


def _pair(number: int) -> dict[str, Any]:
    asked, wrong = [_said("user", f"{number} squared?")], "ask somebody else " * (1 + number % 2)
    return {"prompt": asked, "chosen": [_said("assistant", _answer(number))], "rejected": [_said("assistant", wrong)]}


def _rating(number: int) -> dict[str, Any]:
    return {"prompt": f"{number} squared? ", "completion": _answer(number), "label": number % 3 > 0}


def _text(number: int) -> dict[str, Any]:
    return {"text": f"{number} squared is {number * number}. " * (1 + 5 * (number % 3))}


def _with_tools(number: int) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "square", "arguments": {"of": number}}}
    turns = [
        _said("user", f"{number} squared?"),
        _said("assistant", "", reasoning_content="a tool knows", tool_calls=[call]),
        _said("tool", str(number * number)),
        _said("assistant", "so it is", weight=number % 2),
    ]
    schema = {"type": "function", "function": {"name": "square", "parameters": {"type": "object", "properties": {}}}}
    return {"messages": turns, "tools": [schema]}


def _is_equal(place: _Place, name: str, case: Case, whole: _Run, cuts: tuple[int, ...]) -> bool:
    cut = place.run(place.spec(case), cuts, f"{name}-{len(cuts)}")
    exact = set(cut.labels) == {"exact"}
    equal = (cut.archive, cut.tensors, cut.state) == (whole.archive, whole.tensors, whole.state)
    if not (exact and equal):
        found, expected = cut.tensors, whole.tensors
        tensors = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        say(f"  {name} with {len(cuts)} cuts: {cut.labels}, {tensors[:4]}, archive {cut.archive == whole.archive}")
    return exact and equal


def _is_refused(place: _Place, name: str, case: Case, checkpoint: Path) -> bool:
    try:
        place.session(place.spec(case, is_other=True), _Hooks(None), checkpoint)
    except CheckpointError as error:
        return any(key in str(error) for key in case.refused_for)
    say(f"  {name}: {case.refused_for} was not refused")
    return False


def figures(folder: Path, cases: Mapping[str, Case] = CASES) -> Iterator[Figure]:
    """Two figures: cases that are equal, of all, and changed files that are refused, of all."""
    mixtures = {case.model for case in cases.values()} - {"Llama"}
    models = {family: make_tiny_mixture(folder / family, family) for family in mixtures}
    place = _Place(folder=folder, models=models | {"Llama": make_tiny_llama(folder / "model")})
    _write_rows(folder)
    equal, refused = [], []
    for name, case in cases.items():
        say(f"  {name}")
        plain = name.replace(", ", "-").replace(" ", "-")
        whole = place.run(place.spec(case), (), plain)
        equal += [_is_equal(place, plain, case, whole, cuts) for cuts in CUTS]
        if case.refused_for:
            refused.append(_is_refused(place, plain, case, whole.first))
    yield Figure(
        name="settings of training whose runs with 1 and 5 cuts end in the same bytes, of " + str(len(equal)),
        value=sum(equal),
        bar="all",
        ok=all(equal),
    )
    yield Figure(
        name="checkpoints that are refused by a job with another value, of " + str(len(refused)),
        value=sum(refused),
        bar="all",
        ok=all(refused),
    )
