"""What happens at the start and at each step's end of a session: restore, report, save, evaluate, stop."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback

from worker.agent.hardware import versions
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.messages import Fidelity, Hardware, Manifest, Phase, Probe, Recipe
from worker.training import evaluation, state
from worker.training.backends.base import Backend, Loaded
from worker.training.data import Rows
from worker.training.determinism import is_deterministic
from worker.training.encoding import Encoder
from worker.training.export import export_adapter
from worker.training.hostcopy import HostCopy
from worker.training.interface import (
    Decision,
    Hooks,
    PermanentError,
    Resume,
    Snapshot,
    Trained,
    TrainingJob,
    UnfitMachineError,
)
from worker.training.sampler import position
from worker.training.trainer import StepTrainer


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
        recipe: Recipe,
        resume: Resume | None,
        encoder: Encoder,
        held_out: Rows,
        chat: bool,
    ) -> None:
        self._job, self._hooks, self._spec = job, hooks, job.spec
        self._backend, self._loaded, self._hardware = backend, loaded, hardware
        self._recipe, self._resume = recipe, resume
        self._encoder, self._held_out, self._chat = encoder, held_out, chat
        self._versions = versions()
        self._copier = HostCopy()
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
        self._refuse_nonsense(step, values)
        wish = self._hooks.step_done(step, values, time.monotonic() - self._step_began)
        decision = self.trainer.group.decided(wish)
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

    def _refuse_nonsense(self, step: int, values: dict[str, float]) -> None:
        """Stop before weights that are lost are saved. With a loss scaler an infinite norm only means a skipped step."""
        scaled = self.trainer.accelerator.scaler is not None
        for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if not math.isfinite(values[name]) and not (scaled and name == "grad_norm"):
                raise PermanentError(
                    f"the {what} became {values[name]} at step {step}; lower learning_rate or check the dataset"
                )

    def finish(self) -> Trained:
        """Export the adapter if the last step is done; says where the session stopped."""
        step = self.trainer.state.global_step
        if self._stopped:
            return Trained(step=step, complete=False)
        if not self._leads:
            return Trained(step=step, complete=True)
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
        manifest, run = self._resume.manifest, self.trainer.run_state()
        planned = state.schedule(run)
        state.restore(run, self._resume.arrays, manifest.state)
        if self._recipe != manifest.recipe:  # a clone that changes what the steps to come are made with
            state.reschedule(run, planned)
        try:
            return evaluation.check_probe(manifest, self._manifest(manifest.step, {}))
        except CheckpointError as error:
            if manifest.precision == "bf16" and self._loaded.precision == "fp16":
                raise UnfitMachineError(
                    f"this run was trained in bf16 and does not hold in the range of fp16, which is what "
                    f"{self._hardware.name} computes in ({error}); use a card of compute capability 8.0 or newer"
                ) from error
            raise

    @property
    def _leads(self) -> bool:
        """Whether this process saves, evaluates and exports; its followers hold the same state."""
        return self.trainer.group.rank == 0

    def _due(self, step: int) -> bool:
        return step > 0 and (step % self._spec.eval_every == 0 or step >= self._spec.total_steps)

    def _look(self, step: int) -> None:
        """Evaluate: held-out loss (not before the first step) and sample answers."""
        spec = self._spec
        if not self._leads:
            return
        if len(self._held_out) and step:
            self._hooks.phase(Phase.EVAL)
            trainer = self.trainer
            loss = evaluation.eval_loss(
                self._loaded.model, trainer.summed_loss, self._held_out, trainer.micro_batch, trainer.pad_id
            )
            if loss is not None:
                self._hooks.measured(step, {"eval_loss": loss})
        if spec.sample_prompts:
            self._hooks.phase(Phase.EVAL)
            model, tokenizer = self._loaded.model, self._loaded.tokenizer
            length = spec.sample_max_tokens
            self._hooks.sampled(
                evaluation.answer(model, tokenizer, self._encoder, spec.sample_prompts, step, length, self._chat)
            )

    def _save(self, step: int) -> None:
        if not self._leads:
            return
        self._hooks.phase(Phase.SAVE)
        arrays, held, ready = state.snapshot(self.trainer.run_state(), self._copier)
        self._hooks.save(Snapshot(tensors=arrays, manifest=self._manifest(step, held), ready=ready))
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
            micro_batch_size=self.trainer.micro_batch,
            world_size=self.trainer.group.world,
            hardware=self._hardware,
            versions=self._versions,
            probe=self._probe(),
            state=held | {"threads": torch.get_num_threads(), "deterministic": is_deterministic()},
        )

    def _probe(self) -> Probe:
        vocabulary = min(len(self._loaded.tokenizer), self._loaded.model.config.get_text_config().vocab_size)
        return evaluation.probe(self._loaded.model, self.trainer.summed_loss, self._spec.seed, vocabulary)
