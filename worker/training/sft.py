"""Supervised fine-tuning of one session: load, restore, train, save, evaluate, export."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from worker import checkpoint
from worker.checkpoint import CheckpointError
from worker.hardware import probe as probe_hardware
from worker.hardware import versions
from worker.protocol import Fidelity, Hardware, JobSpec, Manifest, Phase, Probe, Recipe
from worker.training import state, telemetry
from worker.training.backends import Backend, Loaded, select
from worker.training.data import Encoder, Rows, load_rows
from worker.training.export import export_adapter
from worker.training.job import Decision, Hooks, PermanentError, Snapshot, Trained, TrainingJob, UnfitMachineError
from worker.training.sampler import MicroBatches, position, split
from worker.training.trainer import StepTrainer, build_trainer

_CPU_TOKENS, _SMALL_GPU_TOKENS, _LARGE_GPU_TOKENS = 2_048, 4_096, 16_384
"""Tokens of one micro-batch where the job does not ask for a size."""
_LARGE_GPU_BYTES = 30 * 2**30


def train(job: TrainingJob, hooks: Hooks) -> Trained:
    """Run the job's steps from its checkpoint (or the start) until the last one or until `hooks` says stop.

    Raises `PermanentError`, `UnfitMachineError` or `CheckpointError`, each with one sentence; `OSError` if the disk fails.
    """
    with _plain_errors(job.spec):
        _quiet_and_deterministic()
        hooks.phase(Phase.LOAD)
        session = _prepare(job, hooks)
        session.trainer.train()
        return session.finish()


def micro_batch_size(spec: JobSpec, hardware: Hardware) -> int:
    """Rows per forward pass: the job's wish, else the largest divisor of the global batch that suits the machine."""
    if spec.micro_batch_size:
        return spec.micro_batch_size
    tokens = _CPU_TOKENS
    if hardware.device == "cuda":
        tokens = _LARGE_GPU_TOKENS if hardware.memory_bytes >= _LARGE_GPU_BYTES else _SMALL_GPU_TOKENS
    sizes = range(1, spec.global_batch_size + 1)
    return max(n for n in sizes if n == 1 or (spec.global_batch_size % n == 0 and n * spec.sequence_len <= tokens))


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A verified checkpoint of this very run."""

    arrays: dict[str, Any]
    manifest: Manifest


class Session(TrainerCallback):
    """Stands between the trainer's loop and the hooks: restores at its start, reports and saves at each step's end."""

    trainer: StepTrainer

    def __init__(
        self,
        job: TrainingJob,
        hooks: Hooks,
        *,
        backend: Backend,
        loaded: Loaded,
        hardware: Hardware,
        micro_batch: int,
        recipe: Recipe,
        resume: Resume | None,
        encoder: Encoder,
        held_out: Rows,
        chat: bool,
    ) -> None:
        self._job, self._hooks, self._spec = job, hooks, job.spec
        self._backend, self._loaded, self._hardware = backend, loaded, hardware
        self._micro_batch, self._recipe, self._resume = micro_batch, recipe, resume
        self._encoder, self._held_out, self._chat = encoder, held_out, chat
        self._versions = versions()
        self._wall_before = resume.manifest.wall_seconds if resume else 0.0
        self._began = self._step_began = time.monotonic()
        self._stopped = False

    @property
    def start_step(self) -> int:
        """Updates done before this session."""
        return self._resume.manifest.step if self._resume else 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Optimiser and schedule exist now and no batch has been drawn: the place to put everything back."""
        state.global_step = self.start_step
        fidelity = self._restore() if self._resume else self._start_fresh()
        self._hooks.restored(self.start_step, fidelity, self._backend.name)
        # A session that stopped right at an evaluation step has left it to this one.
        if self.start_step == 0 or self._due(self.start_step):
            self._look(self.start_step)
        self._hooks.phase(Phase.TRAIN)
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An update is done: report it, then save, evaluate or stop as told."""
        step, values = state.global_step, self.trainer.take_step()
        if not math.isfinite(values["loss"]):
            raise PermanentError(
                f"the loss became {values['loss']} at step {step}; lower learning_rate or check the dataset"
            )
        decision = self._hooks.step_done(step, values, time.monotonic() - self._step_began)
        last = step >= self._spec.total_steps
        if decision is Decision.STOP:
            self._stopped = True
        elif last or decision is not Decision.CONTINUE:
            self._save(step)
            self._stopped = decision is Decision.SAVE_AND_STOP and not last
        if self._stopped:
            control.should_training_stop = True
        elif self._due(step):
            self._look(step)
            self._hooks.phase(Phase.TRAIN)
        self._step_began = time.monotonic()

    def finish(self) -> Trained:
        """Export the adapter if the last step is done; says where the session stopped."""
        step = self.trainer.state.global_step
        if self._stopped:
            return Trained(step=step, complete=False)
        self._hooks.phase(Phase.EXPORT)
        archive, digest = export_adapter(
            self._loaded.model, self._loaded.tokenizer, self._spec, self._recipe, self._job.work_dir
        )
        return Trained(step=step, complete=True, adapter_zip=archive, adapter_sha256=digest)

    def _start_fresh(self) -> Fidelity:
        state.seed_all(self._spec.seed)
        return Fidelity.EXACT

    def _restore(self) -> Fidelity:
        assert self._resume is not None
        self._hooks.phase(Phase.RESTORE)
        manifest = self._resume.manifest
        state.restore(self.trainer.run_state(), self._resume.arrays, manifest.state)
        return telemetry.check_probe(manifest, self._manifest(manifest.step, {}))

    def _due(self, step: int) -> bool:
        return step > 0 and (step % self._spec.eval_every == 0 or step >= self._spec.total_steps)

    def _look(self, step: int) -> None:
        """Evaluate: held-out loss (not before the first step) and sample answers."""
        spec = self._spec
        if len(self._held_out) and step:
            self._hooks.phase(Phase.EVAL)
            trainer, pad_id = self.trainer, telemetry.pad_id_of(self._loaded.tokenizer)
            loss = telemetry.eval_loss(
                self._loaded.model, trainer.summed_loss, self._held_out, self._micro_batch, pad_id
            )
            if loss is not None:
                self._hooks.measured(step, {"eval_loss": loss})
        if spec.sample_prompts:
            self._hooks.phase(Phase.EVAL)
            model, tokenizer = self._loaded.model, self._loaded.tokenizer
            length = spec.sample_max_tokens
            self._hooks.sampled(
                telemetry.answer(model, tokenizer, self._encoder, spec.sample_prompts, step, length, self._chat)
            )

    def _save(self, step: int) -> None:
        self._hooks.phase(Phase.SAVE)
        arrays, held = state.snapshot(self.trainer.run_state())
        self._hooks.save(Snapshot(tensors=arrays, manifest=self._manifest(step, held)))
        self._hooks.phase(Phase.TRAIN)

    def _manifest(self, step: int, held: dict[str, Any]) -> Manifest:
        """What is to be said of the run as it stands after `step` updates."""
        epoch, index = position(step, self._spec.global_batch_size, self._spec.train_rows)
        return Manifest(
            job=self._job.job,
            fence=self._job.fence,
            step=step,
            recipe=self._recipe,
            epoch=epoch,
            index=index,
            samples_seen=step * self._spec.global_batch_size,
            wall_seconds=self._wall_before + time.monotonic() - self._began,
            backend=self._backend.name,
            precision=self._loaded.precision,
            micro_batch_size=self._micro_batch,
            hardware=self._hardware,
            versions=self._versions,
            probe=self._probe(),
            state=held | {"threads": torch.get_num_threads()},
        )

    def _probe(self) -> Probe:
        vocabulary = min(len(self._loaded.tokenizer), self._loaded.model.config.vocab_size)
        return telemetry.probe(self._loaded.model, self.trainer.summed_loss, self._spec.seed, vocabulary)


def _prepare(job: TrainingJob, hooks: Hooks) -> Session:
    spec, hardware = job.spec, probe_hardware()
    rows = load_rows(job.datasets, spec)
    # The checkpoint comes before the model: a wrong one is found in a moment instead of after a long load.
    resume = _read_checkpoint(job) if job.resume else None
    backend = select(spec.backend)
    loaded = backend.load(spec, hardware, job.trust_remote_code)
    recipe = _full_recipe(spec, loaded)
    if resume:
        checkpoint.check_recipe(recipe, resume.manifest.recipe)
    encoder = Encoder(loaded.tokenizer, spec.sequence_len, spec.train_on_inputs)
    train_rows, eval_rows = split(len(rows), spec.eval_rows, spec.seed)
    micro_batch = micro_batch_size(spec, hardware)
    session = Session(
        job,
        hooks,
        backend=backend,
        loaded=loaded,
        hardware=hardware,
        micro_batch=micro_batch,
        recipe=recipe,
        resume=resume,
        encoder=encoder,
        held_out=Rows(rows, eval_rows.tolist(), encoder),
        chat=bool(rows[0].messages),
    )
    batches = MicroBatches(
        rows=len(train_rows),
        seed=spec.seed,
        start_step=session.start_step,
        max_steps=spec.total_steps,
        global_batch=spec.global_batch_size,
        micro_batch=micro_batch,
    )
    trained = Rows(rows, train_rows.tolist(), encoder)
    session.trainer = build_trainer(loaded, spec, trained, batches, hardware, job.work_dir)
    session.trainer.add_callback(session)
    return session


def _read_checkpoint(job: TrainingJob) -> Resume:
    assert job.resume is not None
    arrays, manifest = checkpoint.load(job.resume)
    if manifest.job != job.job:
        raise CheckpointError(f"the checkpoint belongs to job {manifest.job}, not to {job.job}")
    checkpoint.check_recipe(Recipe.of(job.spec), manifest.recipe)
    expected = position(manifest.step, job.spec.global_batch_size, job.spec.train_rows)
    if (manifest.epoch, manifest.index) != expected:
        raise CheckpointError(
            f"the checkpoint's data position {(manifest.epoch, manifest.index)} is not that of its step, {expected}"
        )
    return Resume(arrays=arrays, manifest=manifest)


def _full_recipe(spec: JobSpec, loaded: Loaded) -> Recipe:
    known_once_loaded = {
        "base_sha256": loaded.base_sha256,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "parameters_sha256": state.parameters_sha256(loaded.model),
        "trainable_dtype": "float32",
    }
    return Recipe.of(spec).model_copy(update=known_once_loaded)


def _quiet_and_deterministic() -> None:
    # cuBLAS reads this once, when the first CUDA context is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*Paged optimizers are not supported on CPU.*")


@contextlib.contextmanager
def _plain_errors(spec: JobSpec) -> Iterator[None]:
    """Turn what a machine cannot do into `UnfitMachineError`."""
    too_large = (
        f"this machine ran out of memory training {spec.base_model} at sequence_len {spec.sequence_len}; "
        "set a smaller micro_batch_size or use a larger machine"
    )
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UnfitMachineError(too_large) from error
    except RuntimeError as error:
        text = str(error)
        if "not enough memory" in text or "can't allocate memory" in text:
            raise UnfitMachineError(too_large) from error
        if "CUDA error" in text or "no kernel image" in text:
            raise UnfitMachineError(f"the GPU of this machine failed: {text.splitlines()[0]}") from error
        raise
