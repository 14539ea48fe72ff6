"""One session of an evaluation: load a trained adapter, then do the units that are left.

Base and adapter answer from one loaded model, the base with the adapter switched off. What a unit gives is appended to
the results, which are in every checkpoint of the evaluation beside the adapter. A unit depends on the job alone, so an
evaluation that was interrupted ends in the same file.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from worker.agent.hardware import versions
from worker.agent.limits import Part, when_there_is_room
from worker.shared import answer_lines
from worker.shared.answers_file import Extras, clipped, json_line, written
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.checkpoint_header import ADAPTER, ANSWERS
from worker.shared.evaluation_units import FIXED_TOKENS, Arm, Measure, Unit
from worker.shared.files import write_atomically
from worker.shared.manifest import Fidelity, Manifest
from worker.shared.messages import Phase
from worker.training import generation, module_state, state, unusable
from worker.training.backends.hf import HfBackend
from worker.training.best import answering
from worker.training.data import trained_tokens
from worker.training.determinism import require_deterministic_kernels
from worker.training.end_tokens import special_ids
from worker.training.evaluation import setup_differences
from worker.training.evaluation_inputs import MAX_PASSAGE_TOKENS, Inputs, load_inputs
from worker.training.interface import Decision, Hooks, PermanentError, Snapshot, Trained, TrainingJob
from worker.training.judge import Judge, Pair, release
from worker.training.machine_setup import card_of, machine_setup
from worker.training.train import plain_errors

FILE = "answers.jsonl"


def evaluate(job: TrainingJob, hooks: Hooks, *, passage_tokens: int = MAX_PASSAGE_TOKENS) -> Trained:
    """Do the job's units from its checkpoint (or the evaluated one) until the last one or until `hooks` stops it.

    Of each passage it reads at most `passage_tokens` tokens.

    Raises `PermanentError`, `UnfitMachineError` or `CheckpointError`, each with one sentence. Raises `OSError` if the
    disk fails.
    """
    unusable.hide()
    with plain_errors(job.spec):
        require_deterministic_kernels()
        hooks.phase(Phase.LOAD)
        return _Session(job, hooks, load_inputs(job, hooks, passage_tokens)).run()


class _Session:
    """Does units one after another. `_results` are the lines of all units that are done."""

    def __init__(self, job: TrainingJob, hooks: Hooks, inputs: Inputs) -> None:
        self._job, self._hooks, self._in = job, hooks, inputs
        self._model: Any = inputs.loaded.model
        self._units = job.spec.evaluation_units
        self._ends = (sum(unit.measure is not Measure.JUDGE for unit in self._units), len(self._units))
        self._special = special_ids(inputs.loaded.tokenizer)
        arrays, before = inputs.resume.arrays, inputs.resume.manifest
        is_own = ANSWERS in arrays
        self._results = arrays[ANSWERS].tobytes() if is_own else b""
        self._step = before.step if is_own else 0
        self._kept = {n: a for n, a in answering(arrays).items() if n.startswith((ADAPTER, module_state.PREFIX))}
        self._wall_before = before.wall_seconds if is_own else 0.0
        self._began = time.monotonic()
        self._setup = machine_setup([card_of(inputs.hardware)])
        self._probe = before.probe

    def run(self) -> Trained:
        """Do what is left. Returns where it stopped."""
        self._hooks.phase(Phase.RESTORE)
        self._restore()
        with state.evaluation_mode(self._model):
            self._hooks.restored(self._step, self._fidelity(), HfBackend.name)
            self._hooks.phase(Phase.EVAL)
            is_done = self._do_until(self._ends[0])
        if is_done and self._in.judge is not None:
            self._load(self._in.judge)
            is_done = self._do_until(self._ends[1])
        return self._finish() if is_done else Trained(step=self._step, complete=False)

    def _do_until(self, end: int) -> bool:
        """Whether all units before this one are done."""
        while self._step < end:
            if self._do(self._units[self._step]) is Decision.STOP:
                return False
        return True

    def _load(self, judge: Judge) -> None:
        """Put the judge in the place of the evaluated model, if it has to compare anything."""
        pairs = self._pairs()
        release(self._model)
        if any(unit.begin <= number < unit.end for unit in self._units[self._step :] for number in pairs):
            self._hooks.begins(Part.LOAD_JUDGE)
            self._hooks.phase(Phase.LOAD)
            judge.load(pairs)
            self._hooks.begins(Part.FIRST_STEP)
            self._hooks.phase(Phase.EVAL)

    def _pairs(self) -> dict[int, Pair]:
        found = answer_lines.by_measure(self._results)[Measure.PROMPTS]
        return {
            number: Pair(self._in.prompts[number].as_json(), {arm: found[arm, number]["text"] for arm in Arm})
            for number in answer_lines.different(found)
        }

    def _restore(self) -> None:
        resume = self._in.resume
        state.restore_adapter(self._model, resume.arrays, resume.manifest.state.get("modules") or {})
        probe = resume.manifest.probe
        if probe is not None and probe.values_sha256 not in (None, state.values_sha256(self._model)):
            raise CheckpointError("the restored adapter differs from the one that was saved")
        answers_with = answering(resume.arrays)
        if answers_with.keys() != resume.arrays.keys():
            state.restore_adapter(self._model, answers_with, resume.manifest.state.get("modules") or {})
            values = {"values_sha256": state.values_sha256(self._model)}
            self._probe = probe.model_copy(update=values) if probe is not None else None

    def _fidelity(self) -> Fidelity:
        """Exact, unless an earlier session of this evaluation ran on something that may answer differently."""
        before = self._in.resume.manifest
        differs = self._step > 0 and setup_differences(before, self._manifest())
        return Fidelity.STATE_EXACT if differs else Fidelity.EXACT

    def _do(self, unit: Unit) -> Decision:
        """Do one unit, report it, and save if that is due. Returns STOP if the session is to end."""
        began = time.monotonic()
        if unit.measure is Measure.JUDGE and self._in.judge is not None:
            lines = list(self._in.judge.lines(unit))
        else:
            with self._answering_as(unit.arm):
                lines = list(self._measured(unit))
        self._results += b"".join(map(json_line, lines))
        self._step += 1
        tokens = float(sum(line["tokens"] for line in lines))
        decision = self._hooks.step_done(self._step, {"tokens": tokens}, time.monotonic() - began)
        if decision is Decision.STOP:
            return decision
        is_last = self._step == len(self._units)
        # Also before a judge is loaded, which may take longer than this session has left.
        if self._step in self._ends or decision is not Decision.CONTINUE:
            self._save()
        return Decision.STOP if decision is Decision.SAVE_AND_STOP and not is_last else Decision.CONTINUE

    @contextlib.contextmanager
    def _answering_as(self, arm: Arm) -> Iterator[None]:
        with self._model.disable_adapter() if arm is Arm.BASE else contextlib.nullcontext():
            yield

    def _measured(self, unit: Unit) -> Iterator[dict[str, Any]]:
        if unit.measure is Measure.PROMPTS:
            asked = {number: prompt.ids for number, prompt in enumerate(self._in.prompts)}
            return self._answers(unit, asked, self._in.decoding)
        if unit.measure is Measure.PASSAGES:
            return self._losses(unit)
        if unit.measure is Measure.OWN_ANSWERS:
            return self._own_losses(unit)
        if unit.measure is Measure.BENCHMARKS and self._in.benchmarks is not None:
            return self._in.benchmarks.lines(unit)
        # Tasks are for a program, which is to see the model's best answer and not a drawn one.
        greedy = replace(self._in.decoding, temperature=0.0)
        if unit.measure is Measure.FIXED:
            greedy = replace(greedy, max_new_tokens=min(greedy.max_new_tokens, FIXED_TOKENS))
        lines = self._answers(unit, self._in.questions[unit.measure].ids, greedy)
        return ({"measure": unit.measure, **line} for line in lines)

    def _answers(
        self, unit: Unit, asked: Mapping[int, list[int]], decoding: generation.Decoding
    ) -> Iterator[dict[str, Any]]:
        """A line for each prompt of the unit. There are none where rows or tasks were left out."""
        numbers = [number for number in range(unit.begin, unit.end) if number in asked]
        if not numbers:
            return
        prompts = [asked[number] for number in numbers]
        seeds = [generation.seed_of(self._job.spec.seed, number, unit.arm) for number in numbers]
        for number, found in zip(numbers, generation.answers(self._model, prompts, decoding, seeds), strict=True):
            decoded = str(self._in.loaded.tokenizer.decode(found.ids, skip_special_tokens=True))
            text = clipped(decoded)
            yield {
                "arm": unit.arm,
                "number": number,
                "text": text,
                "tokens": len(found.ids),
                "truncated": found.truncated or len(text) < len(decoded),
                "leaked": not self._special.isdisjoint(found.ids),
            }

    def _losses(self, unit: Unit) -> Iterator[dict[str, Any]]:
        for number in range(unit.begin, unit.end):
            ids = self._in.passages[number]
            loss = generation.mean_loss(self._model, ids)
            if not math.isfinite(loss):
                raise PermanentError(
                    f"the loss of the {unit.arm} on general text is {loss}, so its answers mean nothing; train again "
                    "with a lower learning_rate"
                )
            yield {"arm": unit.arm, "number": number, "loss": loss, "tokens": len(ids) - 1}

    def _own_losses(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """A line for each row of the unit that has an answer to be measured."""
        for number in range(unit.begin, min(unit.end, len(self._in.prompts))):
            row = self._in.prompts[number].example
            if row is not None:
                loss = generation.loss_of_answers(self._model, row)
                yield {
                    "measure": unit.measure,
                    "arm": unit.arm,
                    "number": number,
                    "loss": loss if math.isfinite(loss) else None,
                    "tokens": trained_tokens([row]),
                }

    def _save(self) -> None:
        self._hooks.phase(Phase.SAVE)
        tensors = self._kept | {ANSWERS: np.frombuffer(self._results, dtype=np.uint8)}
        self._hooks.save(Snapshot(tensors=tensors, manifest=self._manifest()))
        self._hooks.phase(Phase.EVAL)

    def _manifest(self) -> Manifest:
        before = self._in.resume.manifest
        return before.model_copy(
            update={
                "job": self._job.job,
                "fence": self._job.fence,
                "step": self._step,
                "parent": None,
                "recipe": self._in.recipe,
                "wall_seconds": self._wall_before + time.monotonic() - self._began,
                "backend": HfBackend.name,
                "precision": self._in.loaded.precision,
                "micro_batch_size": 1,
                "world_size": 1,
                "hardware": self._in.hardware,
                "versions": versions(),
                "probe": self._probe,
                "next_tokens_sha256": None,
                "state": self._state(before.state),
            }
        )

    def _state(self, before: Mapping[str, Any]) -> dict[str, Any]:
        kept = {
            "without_state": sorted(n.removeprefix(ADAPTER) for n in self._kept if n.startswith(ADAPTER)),
            "modules": before.get("modules") or {},
            "threads": torch.get_num_threads(),
            "setup": self._setup,
        }
        return kept if self._in.judge is None else kept | {"judge": self._in.judge.sha256}

    def _finish(self) -> Trained:
        self._hooks.phase(Phase.EXPORT)
        prompts = [prompt.as_json() for prompt in self._in.prompts]
        content = written(prompts, self._in.left_out, self._results, self._extras())
        path = self._job.work_dir / FILE
        when_there_is_room(lambda: write_atomically(path, content))
        return Trained(step=self._step, complete=True, answers=path)

    def _extras(self) -> Extras | None:
        """None for an evaluation that began with an earlier version."""
        asked = self._job.spec.evaluation
        if asked is None or asked.measures is None:
            return None
        fixed, tasks = (self._in.questions[measure] for measure in (Measure.FIXED, Measure.TASKS))
        return Extras(
            own_answers=[prompt.own_answer for prompt in self._in.prompts],
            fixed=fixed.asked,
            tasks=tasks.asked,
            unasked=len(tasks.tasks) - len(tasks.ids),
            benchmarks=self._in.benchmarks.asked if self._in.benchmarks is not None else (),
            judge_sha256=self._in.judge.sha256 if self._in.judge is not None else None,
        )
