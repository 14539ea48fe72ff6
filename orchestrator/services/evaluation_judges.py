"""The judge model on the machine of an evaluation: pinned at submission, and what it says kept as a judgement."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.jobs import Event, Job
from orchestrator.domain.judge_models import is_same_model, shared_family, verdict_in
from orchestrator.domain.judgements import JudgeAnswer, Judgement, JudgementState
from orchestrator.ports.catalog import BaseModel
from orchestrator.ports.repository import Transaction
from orchestrator.services.capacity import refuse_the_too_large
from orchestrator.services.context import Context, new_id
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.judging import NO_VERDICT
from worker.shared import judge_prompt, memory_estimate
from worker.shared.answers_file import AnswersFile, JudgeHead, Said
from worker.shared.evaluation_spec import MAX_JUDGE_NAME, EvaluationSpec, JudgeSpec
from worker.shared.evaluation_units import TOKENS_AT_ONCE
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need
from worker.shared.model_support import KNOWN

TOO_LONG = "The request was too long for the judge."


def pinned_judge(ctx: Context, member_id: str, spec: JobSpec, asked: EvaluationSpec, pointer: str) -> JudgeSpec | None:
    """The judge model with its commit and its memory pinned. None if there is none.

    `pointer` is the place of its name in the request. Raises `InvalidError` or `UnavailableError`, each with one
    sentence, for a model that cannot judge.
    """
    if asked.judge is None:
        return None
    name, token = asked.judge.model, token_of(ctx, member_id)
    try:
        model = ctx.catalog.model(name, token)
        has_template = ctx.catalog.has_chat_template(model.name, token)
    except InvalidError as error:
        words = f"The judge model cannot be used: {error}"
        raise InvalidError(words, [(pointer, words)]) from error
    if words := next(_faults(model, has_template=has_template), ""):
        raise InvalidError(words, [(pointer, words)])
    tokens = max(TOKENS_AT_ONCE, spec.model_copy(update={"evaluation": asked}).judged_tokens)
    need = memory_estimate.judge_need(model.shape, model.parameters, quantised=spec.adapter == "qlora", tokens=tokens)
    refuse_the_too_large(ctx, member_id, need, "judge model", pointer, "choose a smaller one")
    return JudgeSpec(
        model=model.name,
        prompt_version=judge_prompt.VERSION,
        gpu_bytes=need.gpu_bytes or None,
        host_bytes=need.host_bytes or None,
    )


def _faults(model: BaseModel, *, has_template: bool | None) -> Iterator[str]:
    if model.kind and model.kind not in KNOWN:
        yield (
            f"The judge model {model.name} needs its own code, which is not run for a judge. Choose one that "
            "transformers supports."
        )
    if has_template is False:
        yield (
            f"The judge model {model.name} has no chat template, so it was not taught to follow instructions. Choose "
            "one that was, an instruct or chat model."
        )
    if len(model.name) > MAX_JUDGE_NAME:
        yield f"The name of the judge model is longer than {MAX_JUDGE_NAME} characters. Move its folder."


def need_with_judge(need: Need, asked: EvaluationSpec) -> Need:
    """What an evaluation needs, whose models are in memory one after the other. The settings are pinned."""
    judge = asked.judge
    if judge is None:
        return need
    return Need(
        gpu_bytes=max(need.gpu_bytes, judge.gpu_bytes or 0), host_bytes=max(need.host_bytes, judge.host_bytes or 0)
    )


def notes(spec: JobSpec, asked: EvaluationSpec) -> tuple[str, ...]:
    """What the author should know of the judge model. Both are pinned."""
    if asked.judge is None:
        return ()
    if is_same_model(asked.judge.model, spec.base_model):
        return ("The judge model is the base model itself. Judges prefer their own answers.",)
    family = shared_family(asked.judge.model, spec.base_model)
    return (f"Judge and base model are both of the family {family}. Judges prefer their own family.",) if family else ()


def keep_judgement(tx: Transaction, job: Job, evaluation: Evaluation, found: AnswersFile, now: float) -> None:
    """Write what the judge model of an evaluation says of its answers, in the transaction that keeps these.

    It becomes a judgement like that of an endpoint. There is none if all answers are identical.
    """
    asked, head = EvaluationSpec.model_validate(evaluation.settings).judge, found.head.judge
    if asked is None or head is None or not found.judged:
        return
    judgement = Judgement(
        id=new_id("judgement", now),
        job_id=job.id,
        member_id=job.member_id,
        endpoint_id="",
        url="",
        model=_name(asked, head),
        prompt_version=head.prompt_version,
        prompts=len(found.answered),
        identical=[each.number for each in found.answered if not each.differs],
        max_tokens=0,
        created_at=now,
        state=JudgementState.DONE,
        finished_at=now,
    )
    answers = [
        _answer(judgement.id, pair.pair, said, now, adapter_first=adapter_first)
        for pair in found.judged
        for adapter_first, said in ((True, pair.adapter_first), (False, pair.base_first))
    ]
    judgement.used_tokens = judgement.max_tokens = sum(answer.tokens for answer in answers)
    tx.judgements.add(judgement)
    for answer in answers:
        tx.judgements.add_answer(answer)
    data = {"judgement": judgement.id, "model": judgement.model, "url": ""}
    reason = f"by {judgement.model}"
    job.events.append(Event(job_id=job.id, at=now, kind="evaluation.judged", actor="worker", reason=reason, data=data))


def _name(asked: JudgeSpec, head: JudgeHead) -> str:
    """The model with its commit, or with the hash of its files if it has none."""
    return asked.model if "@" in asked.model else f"{asked.model}@{head.sha256[:12]}"


def _answer(judgement_id: str, number: int, said: Said | None, now: float, *, adapter_first: bool) -> JudgeAnswer:
    verdict = verdict_in(said.text) if said is not None else None
    failure = TOO_LONG if said is None else "" if verdict is not None else NO_VERDICT
    return JudgeAnswer(
        judgement_id=judgement_id,
        number=number,
        adapter_first=adapter_first,
        verdict=verdict,
        failure=failure,
        tokens=said.tokens if said is not None else 0,
        is_estimated=False,
        at=now,
    )
