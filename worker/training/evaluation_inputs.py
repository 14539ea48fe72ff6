"""What one session of an evaluation needs: the loaded model with the evaluated adapter, and all that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.agent.hardware import probe as probe_hardware
from worker.agent.limits import Part
from worker.shared import checkpoint_file
from worker.shared.answers_file import LeftOut
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.checkpoint_header import ANSWERS
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.evaluation_units import FIXED_TOKENS, Measure
from worker.shared.lineage import FROM_HERE_ON, check_lineage, check_owner
from worker.shared.manifest import Hardware, Recipe
from worker.shared.passages import passages
from worker.training import base_model, generation, harness, state
from worker.training.backends import base
from worker.training.backends.base import Loaded
from worker.training.backends.hf import HfBackend
from worker.training.encoding import Encoder
from worker.training.interface import Hooks, PermanentError, Resume, TrainingJob
from worker.training.judge import MAX_POSITIONS, Judge
from worker.training.library_warnings import hide_expected_warnings
from worker.training.loss import add_summed_loss
from worker.training.model_limits import ModelLimits
from worker.training.prompts import Prompt, asks_as_chat, candidates, choose
from worker.training.questions import Questions, questions, tasks_of
from worker.training.train import keep_to_the_limit

if TYPE_CHECKING:
    from worker.training.benchmark_run import Benchmarks

MAX_PASSAGE_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The loaded model with the evaluated adapter, and what it is asked."""

    loaded: Loaded
    hardware: Hardware
    resume: Resume
    recipe: Recipe
    prompts: list[Prompt]
    left_out: LeftOut
    passages: list[list[int]]
    decoding: generation.Decoding
    questions: Mapping[Measure, Questions]
    benchmarks: Benchmarks | None
    judge: Judge | None


def load_inputs(job: TrainingJob, hooks: Hooks, passage_tokens: int = MAX_PASSAGE_TOKENS) -> Inputs:
    """Load everything. Raises the errors of `worker.training.evaluate.evaluate`."""
    spec, hardware = job.spec, probe_hardware()
    assert spec.evaluation is not None
    if spec.evaluation.benchmarks:
        hooks.begins(Part.INSTALL)
        harness.install()
    hooks.begins(Part.IMPORTS)
    keep_to_the_limit(hardware)
    paths, items = _without_last(job.datasets, len(spec.evaluation.benchmarks))
    paths, own_tasks = _without_last(paths, 1 if spec.evaluation.tasks else 0)
    rows, tasks = candidates(paths, spec), tasks_of(spec, *own_tasks)
    resume = _read_checkpoint(job)
    base.check_card(hardware)
    # One backend on every machine: others change the model for training, and their base may not answer alike.
    backend = HfBackend()
    hide_expected_warnings()
    hooks.begins(Part.LOAD)
    judge = _judge(job, hardware, resume)
    folder = job.base_folder or base_model.resolve(spec.base_model)
    loaded = base.load(backend, spec, folder, hardware, job.trust_remote_code, resumed=True)
    hooks.begins(Part.ROWS)
    recipe = _recipe(job, loaded, resume)
    encoder = Encoder(
        loaded.tokenizer, spec.sequence_len, spec.train_on_inputs, encoding=spec.encoding, rendered_at=spec.rendered_at
    )
    asked = spec.evaluation
    causal: Any = loaded.model.get_base_model()
    limits = ModelLimits.of(causal)
    config = causal.config.get_text_config()
    # Beyond these positions a model without a table goes on, but was not trained.
    longest = limits.positions or getattr(config, "max_position_embeddings", None) or MAX_POSITIONS
    room = min(spec.sequence_len, longest - asked.max_new_tokens)
    if room < 1:
        raise PermanentError(
            f"max_new_tokens {asked.max_new_tokens} leaves no room for a prompt: {spec.base_model} supports "
            f"{longest} positions; set a smaller one"
        )
    prompts, left_out = choose(rows, spec, encoder, room, limits)
    add_summed_loss(causal, loaded.hidden)
    chat = asks_as_chat(rows, spec)
    rooms = {Measure.FIXED: longest - min(asked.max_new_tokens, FIXED_TOKENS), Measure.TASKS: room}
    texts = [encoder.prompt_ids(each.text, chat=False) for each in passages()]
    for number, prompt in enumerate(prompts, 1):
        limits.check(prompt.ids, f"prompt {number}")
    decoding = generation.decoding_for(loaded.model, loaded.tokenizer, encoder, asked.max_new_tokens, asked.temperature)
    return Inputs(
        loaded=loaded,
        hardware=hardware,
        resume=resume,
        recipe=recipe,
        prompts=prompts,
        left_out=left_out,
        passages=[ids[: min(longest, passage_tokens)] for ids in texts],
        decoding=decoding,
        questions={
            measure: questions(each, encoder, limits, chat=chat, room=rooms[measure]) for measure, each in tasks.items()
        },
        benchmarks=_benchmarks(asked, items, loaded, encoder, decoding, chat=chat, room=longest),
        judge=judge,
    )


def _judge(job: TrainingJob, hardware: Hardware, resume: Resume) -> Judge | None:
    """It is made before anything is answered, because it may be one that cannot judge."""
    assert job.spec.evaluation is not None
    asked = job.spec.evaluation.judge
    if asked is None:
        return None
    with base_model.called_judge_model():
        folder = job.judge_folder or base_model.resolve(asked.model)
    judge = Judge(job.spec, folder, hardware)
    if resume.manifest.state.get("judge", judge.sha256) != judge.sha256:
        raise PermanentError(f"judge model {asked.model} has changed since this evaluation began; evaluate again")
    return judge


def _without_last(paths: tuple[Path, ...], count: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The paths before the last ones, and those."""
    return paths[: len(paths) - count], paths[len(paths) - count :]


def _benchmarks(
    asked: EvaluationSpec,
    items: tuple[Path, ...],
    loaded: Loaded,
    encoder: Encoder,
    decoding: generation.Decoding,
    *,
    chat: bool,
    room: int,
) -> Benchmarks | None:
    if not asked.benchmarks:
        return None
    from worker.training.benchmark_run import Benchmarks

    model, tokenizer = loaded.model, loaded.tokenizer
    return Benchmarks(asked.benchmarks, items, model, tokenizer, encoder, decoding, chat=chat, room=room)


def _read_checkpoint(job: TrainingJob) -> Resume:
    if job.resume is None:
        raise PermanentError("an evaluation needs the checkpoint of a trained job, and this one has none")
    arrays, manifest = checkpoint_file.load(job.resume)
    check_owner(manifest, job.job, job.origin)
    check_lineage(Recipe.of(job.spec), manifest, job.origin)
    if (job.origin is None) != (ANSWERS in arrays):
        raise CheckpointError("the checkpoint is not one of this evaluation, or it is one of another evaluation")
    return Resume(arrays=arrays, manifest=manifest)


def _recipe(job: TrainingJob, loaded: Loaded, resume: Resume) -> Recipe:
    """The recipe of the evaluated run, after it was compared with the model that was loaded."""
    known = {
        "base_sha256": loaded.base_sha256,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "parameters_sha256": state.parameters_sha256(loaded.model),
        "trainable_dtype": "float32",
    }
    mine, theirs = Recipe.of(job.spec).model_copy(update=known), resume.manifest.recipe
    check_lineage(mine.model_copy(update={"untrained_rows": theirs.untrained_rows}), resume.manifest, job.origin)
    return theirs.model_copy(update={name: getattr(mine, name) for name in (*FROM_HERE_ON, *known)})
