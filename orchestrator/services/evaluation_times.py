"""How long an evaluation takes, and whether it fits into what is left of a training session.

If no evaluation of this kind has been timed, the time follows from that of a training step. It is a rough one then,
which is enough: an evaluation that takes longer continues on another machine.
"""

from __future__ import annotations

from itertools import accumulate

from orchestrator.domain.jobs import StepTime
from orchestrator.domain.scheduling import Candidate, PendingJob, rest_of_last_session
from orchestrator.ports.repository import Transaction
from orchestrator.services.follow_ups import follow_up
from worker.shared.benchmark_list import BENCHMARKS, Benchmark
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.evaluation_units import FIXED_TOKENS, Measure, Unit
from worker.shared.job_spec import JobSpec
from worker.shared.judge_prompt import MAX_OUTPUT_TOKENS

PASS_S = 0.1
"""Seconds of a forward pass besides its arithmetic, in which a model's many small kernels start.

Each generated token takes one. It is about what a T4 needs for a model of some billion parameters in 4 bits.
"""
PASSES_OF_A_STEP = 3
"""A training step is a forward pass, and a backward pass that costs twice as much."""
SHORT_TOKENS = 150
"""Tokens of a passage, and more than a fixed prompt has."""
CHOICES = 4
"""Choices of an item of a benchmark, each of them read once in a batch with the others."""


def spec_of(spec: JobSpec, asked: EvaluationSpec) -> JobSpec:
    """The job file of the evaluation that follows a job. Both are pinned."""
    return follow_up(spec, "Evaluation", evaluation=asked)


def typical_unit_time(tx: Transaction, spec: JobSpec) -> StepTime:
    """Seconds of a unit in the newest evaluations like this one, as far as they were timed."""
    asked = spec.evaluation
    if asked is None:
        return StepTime()
    return tx.jobs.typical_unit_time(spec.base_model, spec.sequence_len, asked.max_new_tokens)


def seconds(spec: JobSpec, unit_time: StepTime, step_s: float | None, *, gpu: bool) -> float | None:
    """About how long the evaluation `spec` takes once its model is loaded. None if nothing was timed there.

    `step_s` is the time of a training step of its job on such a machine.
    """
    unit_s = unit_time.timed(gpu=gpu)
    if unit_s is not None:
        return len(spec.evaluation_units) * unit_s
    return None if step_s is None else _from_training(spec, step_s)


def _from_training(spec: JobSpec, step_s: float) -> float:
    token_s = step_s / (PASSES_OF_A_STEP * spec.global_batch_size * spec.sequence_len)
    return sum(_unit_s(spec, unit, token_s) for unit in spec.evaluation_units)


def _unit_s(spec: JobSpec, unit: Unit, token_s: float) -> float:
    """`token_s` is the time of one token of a large batch."""
    asked, count = spec.evaluation, unit.end - unit.begin
    assert asked is not None
    match unit.measure:
        case Measure.PASSAGES:
            return count * (PASS_S + SHORT_TOKENS * token_s)
        case Measure.OWN_ANSWERS:
            return count * (PASS_S + spec.sequence_len * token_s)
        case Measure.FIXED:
            return count * SHORT_TOKENS * token_s + FIXED_TOKENS * (PASS_S + count * token_s)
        case Measure.BENCHMARKS:
            written = _benchmark_of(asked, unit).answer_tokens
            read_s = count * CHOICES * SHORT_TOKENS * token_s
            return read_s + (written * (PASS_S + count * token_s) if written else count * PASS_S)
        case Measure.JUDGE:  # as if it had the size of the base model
            return count * spec.judged_tokens * token_s + MAX_OUTPUT_TOKENS * (PASS_S + count * token_s)
        case Measure.PROMPTS | Measure.TASKS:
            return count * spec.sequence_len * token_s + asked.max_new_tokens * (PASS_S + count * token_s)


def _benchmark_of(asked: EvaluationSpec, unit: Unit) -> Benchmark:
    """The benchmark that the items of a unit belong to."""
    ends = accumulate(each.rows or 0 for each in asked.benchmarks)
    return next(BENCHMARKS[each.name] for each, end in zip(asked.benchmarks, ends, strict=True) if unit.begin < end)


def loads(spec: JobSpec) -> int:
    """How many models an evaluation loads, one after the other."""
    return len(spec.models)


def fits_last_session(job: PendingJob, place: Candidate, spec: JobSpec, needed_s: float) -> bool:
    """Whether the evaluation `spec` fits into the rest of a job's last session, if the job runs at `place` alone."""
    return loads(spec) * place.start_up_s + needed_s + place.save_s <= rest_of_last_session(job, place)
