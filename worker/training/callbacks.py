"""The trainer callback of a session: restores at the start, then reports, saves, evaluates or stops after each step."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from transformers import TrainerCallback

from worker.agent.hardware import versions
from worker.agent.limits import when_there_is_room
from worker.shared.counted_words import many
from worker.shared.early_stopping import chosen, ended_early
from worker.shared.manifest import Fidelity, Hardware, Manifest, Probe, Recipe
from worker.shared.messages import Phase
from worker.training import evaluation, state
from worker.training.backends.base import Backend, Loaded
from worker.training.best import Best
from worker.training.data import Rows, next_tokens_sha256
from worker.training.determinism import is_deterministic
from worker.training.encoding import Encoder
from worker.training.end_tokens import answer_ends
from worker.training.export import export_adapter
from worker.training.hostcopy import HostCopy
from worker.training.interface import Decision, Hooks, PermanentError, Resume, Snapshot, Trained, TrainingJob
from worker.training.machine_setup import card_of, machine_setup
from worker.training.module_state import Fresh
from worker.training.sampler import position
from worker.training.trainer import StepTrainer

_log = logging.getLogger(__name__)


class SessionCallback(TrainerCallback):
    """Connects the trainer's loop to the hooks: restores at the start, reports and saves at the end of each step."""

    trainer: StepTrainer
    _fresh: Fresh
    _setup: dict[str, str]
    _fidelity: Fidelity

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
        self._stopped = self._ended_early = False
        self._best = Best.of(job.spec, resume)

    @property
    def start_step(self) -> int:
        """Updates done before this session."""
        return self._resume.manifest.step if self._resume else 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the state. The optimiser and schedule exist now, and no batch has been drawn."""
        state.global_step = self.start_step
        self.trainer.lower = self._lower
        self._fresh = evaluation.first_pass(self._loaded.model, self.trainer.summed, *self._probe_of())
        self._setup = machine_setup(self.trainer.group.texts(card_of(self._hardware)))
        self._fidelity = self._restore() if self._resume else self._start_fresh()
        self._hooks.restored(self.start_step, self._fidelity, self._backend.name)
        # A session that stops at an evaluation step leaves the evaluation to the next one.
        if self.start_step == 0 or self._due(self.start_step):
            self._evaluate(self.start_step)
            self.trainer.is_over = self._ends_early(self.start_step)
        self._hooks.phase(Phase.TRAIN)
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update: report it, then save, evaluate or stop as decided."""
        step, values = state.global_step, self.trainer.take_step()
        self._check_finite(step, values)
        own_decision = self._hooks.step_done(step, values, time.monotonic() - self._step_began)
        decision = self.trainer.group.decided(own_decision)
        last = step >= self._spec.total_steps
        is_chosen = last and self._best is not None and decision is not Decision.STOP
        if is_chosen:  # the last checkpoint says which adapter the job ends with
            self._evaluate(step)
        if decision is Decision.STOP:
            self._stopped = True
        elif last or decision is not Decision.CONTINUE:
            self._save(step)
            self._stopped = decision is Decision.SAVE_AND_STOP and not last
        if self._stopped:
            control.should_training_stop = True
        elif self._due(step) and not is_chosen:
            before = self._best
            self._evaluate(step)
            if self._ends_early(step):
                control.should_training_stop = True
                if decision is Decision.CONTINUE:
                    # As a session saves that is cut here, and whose successor evaluates. This one was not better.
                    self._best = before
                    self._save(step)
            self._hooks.phase(Phase.TRAIN)
        self._step_began = time.monotonic()

    def _ends_early(self, step: int) -> bool:
        """Whether the job ends here, after an evaluation. The first process decides, as only it has evaluated."""
        if self._best is None or step >= self._spec.total_steps:
            return False
        own = Decision.STOP if self._best.ends else Decision.CONTINUE
        self._ended_early = self.trainer.group.decided(own) is Decision.STOP
        return self._ended_early

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        """Stop before corrupt weights are saved. With a loss scaler an infinite norm only means a skipped step."""
        scaled = self.trainer.accelerator.scaler is not None
        for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if not math.isfinite(values[name]) and not (scaled and name == "grad_norm"):
                raise PermanentError(
                    f"the {what} became {values[name]} at step {step}; lower learning_rate or check the dataset"
                )

    def finish(self) -> Trained:
        """Export the adapter if the last step is done. Returns where the session stopped."""
        step = self.trainer.state.global_step
        if self._stopped:
            return Trained(step=step, complete=False)
        if self._best is not None:
            self._best.put_back(self._loaded.model)
        # The only step of an old job has a learning rate of 0, as it had when the job began.
        if not state.has_learnt(self._loaded.model) and (self._spec.numerics is not None or step > 1):
            raise PermanentError(
                f"the adapter is still zero after {many(step, 'step')}, so nothing was learnt; set a higher "
                "learning_rate or more steps"
            )
        if not self._is_first_rank:
            return Trained(step=step, complete=True)
        self._hooks.phase(Phase.EXPORT)
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        ends = answer_ends(model, tokenizer, self._encoder.own_text_of if self._chat else None)
        ending = self._ending(step)
        archive, digest = when_there_is_room(
            lambda: export_adapter(model, tokenizer, self._spec, self._recipe, self._job.work_dir, ends, ending)
        )
        return Trained(step=step, complete=True, adapter_zip=archive, adapter_sha256=digest)

    def _ending(self, step: int) -> str:
        """What the model card says of the job's end besides its number of steps."""
        early = ended_early(self._spec.early_stopping_patience or 0, step) if self._ended_early else ""
        best = chosen(self._best.step) if self._best is not None and self._best.tensors else ""
        return "; ".join(filter(None, (early, best)))

    def _start_fresh(self) -> Fidelity:
        state.seed_all(self._spec.seed)
        return Fidelity.EXACT

    def _restore(self) -> Fidelity:
        assert self._resume is not None
        self._hooks.phase(Phase.RESTORE)
        manifest, run = self._resume.manifest, self.trainer.run_state()
        # A clone may have another schedule for the following steps.
        planned = state.schedule(run) if self._recipe != manifest.recipe else None
        state.restore(run, self._resume.arrays, manifest.state, planned)
        why = evaluation.check_probe(manifest, self._manifest(manifest.step, {}))
        if why:
            _log.warning("this session is %s: %s", Fidelity.STATE_EXACT, "; ".join(why)[:2_000])
        # Each process has a device of its own, and all of them take part in every update.
        return Fidelity.EXACT if self.trainer.group.all(not why) else Fidelity.STATE_EXACT

    def _lower(self, why: str) -> None:
        """The run stops being exact in the middle of the session, for example because memory ran out."""
        if self._fidelity is Fidelity.EXACT:
            self._fidelity = Fidelity.STATE_EXACT
            self._hooks.lowered(self._fidelity, why)

    @property
    def _is_first_rank(self) -> bool:
        """Whether this process saves, evaluates and exports. The other processes have the same state."""
        return self.trainer.group.rank == 0

    def _due(self, step: int) -> bool:
        return step > 0 and (step % self._spec.eval_every == 0 or step >= self._spec.total_steps)

    def _evaluate(self, step: int) -> None:
        """Evaluate: validation loss (not before the first step) and sample answers."""
        spec = self._spec
        if not self._is_first_rank:
            return
        if len(self._held_out) and step:
            self._hooks.phase(Phase.EVAL)
            loss = self.trainer.held_out_loss(self._held_out)
            if self._best is not None:
                self._best = self._best.after(step, loss, self._loaded.model)
            if loss is not None:
                self._hooks.measured(step, {"eval_loss": loss})
        if spec.sample_prompts:
            self._hooks.phase(Phase.EVAL)
            model, tokenizer = self._loaded.model, self._loaded.tokenizer
            length = spec.sample_max_tokens
            self._hooks.sampled(
                evaluation.sample_answers(
                    model, tokenizer, self._encoder, spec.sample_prompts, step, length, self._chat
                )
            )

    def _save(self, step: int) -> None:
        changed = self._fresh.changes(self._loaded.model)
        group = self.trainer.group
        if group.world > 1 and len(set(group.gather([changed.crc]))) > 1:
            changed.lost.append("(different in the processes of this session)")
        if not self._is_first_rank:
            return
        self._hooks.phase(Phase.SAVE)
        arrays, state_json, ready = state.snapshot(self.trainer.run_state(), self._copier, changed)
        if self._best is not None:
            arrays, state_json = arrays | self._best.arrays, state_json | {"best": self._best.state}
        self._hooks.save(Snapshot(tensors=arrays, manifest=self._manifest(step, state_json), ready=ready))
        self._hooks.phase(Phase.TRAIN)

    def _manifest(self, step: int, state_json: dict[str, Any]) -> Manifest:
        """The manifest of the run after `step` updates."""
        epoch, index = position(step, self._spec.global_batch_size, self._recipe.epoch_rows)
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
            next_tokens_sha256=self._next_tokens(step),
            state=state_json
            | {"threads": torch.get_num_threads(), "deterministic": is_deterministic(), "setup": self._setup},
        )

    def _next_tokens(self, step: int) -> str | None:
        """Not for rows that differ from day to day."""
        return next_tokens_sha256(self.trainer.rows, step, self._spec) if self._recipe.rows_sha256 else None

    def _probe(self) -> Probe:
        return evaluation.probe(
            self._loaded.model, self.trainer.summed, *self._probe_of(), is_strict=is_deterministic()
        )

    def _probe_of(self) -> tuple[int, int, int]:
        """The probe's seed, vocabulary and padding."""
        vocabulary = min(len(self._loaded.tokenizer), self._loaded.model.config.get_text_config().vocab_size)
        return self._spec.seed, vocabulary, self.trainer.pad_id
