"""Finished evaluations, as their jobs leave them behind."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.evaluations import Answers, Evaluation
from orchestrator.ports.repository import Transaction, UnitOfWork

REPORT: dict[str, Any] = {
    "prompts": 100,
    "truncated": {"base": 0.01, "adapter": 0.02},
    "tokens": {"base": 50.0, "adapter": 60.0},
    "identical": 3,
    "forgetting": {"passages": 100, "rise": {"value": 0.01, "low": -0.01, "high": 0.03}, "harm": "none"},
    "refusals": {"base": 0.0, "adapter": 0.0},
    "repetition": {"base": 0.0, "adapter": 0.01},
    "template_leaks": {"base": 0.0, "adapter": 0.0},
    "vetoes": [],
    "warnings": [],
}


def tasks(only_base: int = 2, only_adapter: int = 13, cut: float = 0.0) -> dict[str, Any]:
    """What a report says of 100 tasks, of which both models solve 59."""
    base, adapter = 59 + only_base, 59 + only_adapter
    scores = {
        "prompts": 100,
        "base": base,
        "adapter": adapter,
        "only_base": list(range(only_base)),
        "only_adapter": list(range(50, 50 + only_adapter)),
        "difference": {"value": (adapter - base) / 100, "low": 0.0, "high": 0.2},
        "p": 0.5,
    }
    return {"scores": scores, "unasked": 0, "truncated": {"base": cut, "adapter": 0.0}, "problem": ""}


def answers_of(job_id: str, number: int, **changes: object) -> Answers:
    """Two answers to one prompt. They do not say which model wrote them."""
    made = {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "base": f"One text about {number}.",
        "adapter": f"Another text about {number}.",
        "base_truncated": False,
        "adapter_truncated": False,
        "base_tokens": 5,
        "adapter_tokens": 5,
    }
    return Answers(job_id=job_id, number=number, **made | changes)  # pyright: ignore[reportArgumentType]


def stored_answers(tx: Transaction, job_id: str) -> list[Answers]:
    """All answers of an evaluation in their order."""
    found = (tx.evaluations.answer(job_id, number) for number in sorted(tx.evaluations.lengths(job_id)))
    return [answers for answers in found if answers is not None]


def add_evaluation(
    uow: UnitOfWork,
    job_id: str,
    answers: int = 0,
    *,
    owner: str = "alice",
    trained_job: str = "",
    at: float = 1.0,
    same: int = 0,
    tasks: dict[str, Any] | None = None,
    **changes: object,
) -> Evaluation:
    """Store an evaluation with this number of answers, `same` of them identical. Without answers, it is unfinished.

    `tasks` is what its report says of them.
    """
    evaluation = Evaluation(
        job_id=job_id,
        trained_job=trained_job or job_id,
        owner=owner,
        checkpoint_sha256="c" * 64,
        adapter_sha256="a" * 64,
        settings={"prompts": "held out"},
        created_at=at,
    )
    with uow() as tx:
        tx.evaluations.add(evaluation)
        if answers:
            report = REPORT | {"prompts": answers, "identical": same} | ({"tasks": tasks} if tasks else {})
            evaluation.answers_sha256, evaluation.report, evaluation.finished_at = "b" * 64, report, at
            equal = {"base": "The same text.", "adapter": "The same text."}
            texts = [answers_of(job_id, n, **(changes | (equal if n < same else {}))) for n in range(answers)]
            tx.evaluations.finish(evaluation, texts)
    return evaluation
