"""The model card and the provenance of a finished job's adapter, with what is known today.

The adapter's file is written when the job ends and never changes. Its evaluation comes later. So both are made when
they are read, and whoever downloads the adapter gets them beside its weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.audits import percent
from orchestrator.domain.choices import AGAINST
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.jobs import Job
from orchestrator.domain.models import Model, Move
from orchestrator.domain.trust.intervals import Interval, wilson
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.benchmark_leaks import known_leaks, leaked_benchmarks
from orchestrator.services.benchmark_scores import in_words, model_index
from orchestrator.services.context import Context
from orchestrator.services.data_checking import known_reports
from orchestrator.services.held_out_checking import HeldOut, held_out_of_card, known
from orchestrator.services.judge_reports import JudgeReport
from orchestrator.services.task_scores import points
from orchestrator.services.verdicts import Judged, judge
from worker.shared.counted_words import many
from worker.shared.data_checks.findings import Report
from worker.shared.early_stopping import chosen, chosen_step
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.judge_prompt import text_sha256
from worker.shared.manifest import Recipe
from worker.shared.model_card import model_card

FORMAT = 1
"""Version of the provenance file."""
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """All that is known of a job's adapter."""

    job: Job
    spec: JobSpec
    recipe: Recipe
    judged: Judged
    reports: tuple[Report | None, ...]
    held_out: tuple[tuple[HeldOut, Report], ...]
    promotions: tuple[tuple[Model, Move], ...]
    best_step: int | None
    """The step whose adapter it is, if that is not the last one and known."""
    leaked: frozenset[str]
    """Benchmarks whose items are in the training rows."""

    @property
    def benchmarks(self) -> list[Json]:
        """The benchmarks of the evaluation, each with its scores."""
        found = self.judged.evaluation
        return (found.report or {}).get("benchmarks") or [] if found is not None else []

    @property
    def model_index(self) -> list[Json]:
        """The results in the form that the hub reads. A score that was trained on is none."""
        if self.judged.evaluation is None:
            return []
        pins = {each["name"]: each for each in self.judged.evaluation.settings.get("benchmarks") or ()}
        clean = [each for each in self.benchmarks if each["name"] not in self.leaked]
        return model_index(self.spec.name, clean, pins)

    @property
    def settings_sha256(self) -> str | None:
        """Hash of the evaluation's settings, written as JSON with sorted keys."""
        if self.judged.evaluation is None:
            return None
        text = json.dumps(self.judged.evaluation.settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def card(ctx: Context, actor: Actor, job_id: str) -> str:
    """The README of the adapter's folder as Markdown. Raises `NotFoundError` for a job without an adapter."""
    facts = _gather(ctx, actor, job_id)
    rows = "\n".join(f"| {name} | {_cell(words)} |" for name, words in _evidence(facts))
    answer = facts.judged.verdict.answer
    head = f"## Is it better than its base?\n\nVerdict: **{answer}**. {' '.join(facts.judged.verdict.reasons)}\n\n"
    table = f"{head}| evidence | |\n|---|---|\n{rows}\n\n"
    evidence = table + _resemblance(facts)
    words = (facts.job.message, chosen(facts.best_step) if facts.best_step is not None else "")
    return model_card(facts.spec, facts.recipe, evidence, facts.model_index, ending="; ".join(filter(None, words)))


def provenance(ctx: Context, actor: Actor, job_id: str) -> Json:
    """Everything behind the adapter with its hashes, as plain data. Raises `NotFoundError` as `card` does."""
    facts = _gather(ctx, actor, job_id)
    job, judged = facts.job, facts.judged
    return {
        "format": FORMAT,
        "job": job.id,
        "adapter": {
            "sha256": job.adapter_sha256,
            "zip_sha256": job.adapter_zip_sha256,
            "zip_bytes": job.adapter_bytes,
        },
        "base_model": {"name": facts.spec.base_model, "sha256": facts.recipe.base_sha256},
        "datasets": [
            {
                "sha256": entry.sha256,
                "rows": entry.rows,
                "audit": next((audit.words for audit in judged.audits if audit.sha256 == entry.sha256), "not audited"),
                "checks": _checks(report),
            }
            for entry, report in zip(facts.spec.datasets, facts.reports, strict=True)
        ],
        "held_out": [
            {
                "rows": asked.names,
                "sha256": asked.held_out[0] if asked.held_out is not None else None,
                "checks": _checks(report),
            }
            for asked, report in facts.held_out
        ],
        "accepted_findings": list(facts.spec.accept_findings),
        "recipe": facts.recipe.model_dump(mode="json"),
        "checkpoints": [{"job": of, "step": step, "sha256": sha256} for of, step, sha256 in judged.checkpoints],
        "missing": list(judged.missing),
        "evaluation": _evaluation(facts),
        "comparison": _comparison(judged),
        "judges": [_judge(found) for found in judged.judges.reports] if judged.judges is not None else [],
        "verdict": {"answer": judged.verdict.answer, "reasons": list(judged.verdict.reasons)},
        "promoted": [
            {"model": model.name, "at": _time(move.at), "by": move.actor, "against_verdict": move.against_verdict}
            for model, move in facts.promotions
        ],
    }


def _gather(ctx: Context, actor: Actor, job_id: str) -> _Facts:
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.adapter_sha256 is None:
            raise NotFoundError(f"Job {job_id} has no adapter yet. Wait until it has succeeded.")
        spec = JobSpec.model_validate(job.spec)
        head = tx.checkpoints.get(job.id, job.head) if job.head else None
        recipe = Recipe.model_validate(head.manifest["recipe"]) if head is not None else Recipe.of(spec)
        judged = judge(tx, job)
        return _Facts(
            job=job,
            spec=spec,
            recipe=recipe,
            judged=judged,
            reports=known_reports(tx, spec),
            held_out=tuple(_held_out(tx, spec, judged)),
            promotions=tuple(_promotions(tx, job)),
            best_step=chosen_step(spec, head.manifest.get("state", {}).get("best")) if head is not None else None,
            leaked=_leaked(tx, spec, judged),
        )


def _leaked(tx: Transaction, spec: JobSpec, judged: Judged) -> frozenset[str]:
    if judged.evaluation is None or not judged.evaluation.settings.get("benchmarks"):
        return frozenset()
    asked = EvaluationSpec.model_validate(judged.evaluation.settings)
    return frozenset(name for entry in spec.datasets for name in leaked_benchmarks(known_leaks(tx, asked, entry)))


def _held_out(tx: Transaction, spec: JobSpec, judged: Judged) -> Iterator[tuple[HeldOut, Report]]:
    """What is known of the rows that the job's split holds out, and of prompts and tasks of its evaluation."""
    settings = judged.evaluation.settings if judged.evaluation is not None else {}
    for each in held_out_of_card(spec, settings):
        report = known(tx, each)
        if report is not None and report.checked:
            yield each, report


def _promotions(tx: Transaction, job: Job) -> Iterator[tuple[Model, Move]]:
    for model in tx.models.promoting(job.id):
        move = tx.models.newest_move(model)
        if move is not None:
            yield model, move


def _evidence(facts: _Facts) -> Iterator[tuple[str, str]]:
    """The rows of the card's table."""
    judged, evidence = facts.judged, facts.judged.evidence
    for model, move in facts.promotions:
        words = AGAINST if move.against_verdict else "promoted by the verdict"
        yield "promoted", f"{words} as {model.name} on {_time(move.at)[:10]}"
    yield "comparison by people", judged.votes_in_words or "none"
    if evidence.alpha is not None:
        yield "agreement of raters", f"alpha {evidence.alpha:.2f}"
    if evidence.votes is not None:
        count = f" in one of {judged.comparisons} comparisons" if judged.comparisons > 1 else ""
        if evidence.gain is not None:
            yield "declared gain", f"{'shown' if evidence.gain.is_shown else 'not shown'}: {evidence.gain.words}"
        yield "wrong claims", f"at most {percent(judged.error_rate)} % of equal adapters would be called better{count}"
    for found in judged.judges.reports if judged.judges is not None else ():
        yield "judge model", _judge_in_words(found)
    yield from _evaluated(facts)
    for entry, report in zip(facts.spec.datasets, facts.reports, strict=True):
        audit = next((audit.words for audit in judged.audits if audit.sha256 == entry.sha256), "not audited")
        yield f"data `{(entry.sha256 or 'unknown')[:16]}`", f"{audit}; {_found(report)}"
    for asked, report in facts.held_out:
        notes = [one.words for one in report.findings if one.level == "list"]
        words = "; ".join(notes) if notes and asked.held_out is None else ""
        yield f"{asked.names} and training rows", "; ".join(filter(None, (_found(report), words)))
    yield "provenance", f"not whole: {', '.join(judged.missing)} is missing" if judged.missing else "whole"


def _evaluated(facts: _Facts) -> Iterator[tuple[str, str]]:
    found = facts.judged.evaluation
    if found is None or found.report is None:
        yield "evaluation", "not evaluated yet"
        return
    report = found.report
    yield "evaluation", f"{many(report['prompts'], 'prompt')}, of which {report['identical']} got the same answer twice"
    yield "answers cut at the token limit", _both(report["truncated"])
    rise = report.get("forgetting")
    if rise is not None:
        low, high = rise["rise"]["low"], rise["rise"]["high"]
        words = f"loss on general text {rise['rise']['value']:+.3f} nats ({low:+.3f} to {high:+.3f})"
        yield "forgetting", f"{words}, {rise['passages']} passages: {rise['harm']}"
    for name in ("refusals", "repetition", "template_leaks"):
        yield name.replace("_", " "), _both(report[name])
    yield from _scored(report)
    for each in facts.benchmarks:
        trained_on = "; items of it are in the training rows, so this score says nothing"
        yield each["title"], in_words(each) + (trained_on if each["name"] in facts.leaked else "")
    for words in report["vetoes"]:
        yield "veto", words
    for words in report["warnings"]:
        yield "warning", words
    yield "evaluated checkpoint", f"`{found.checkpoint_sha256}`"
    yield "evaluation settings", f"sha256 `{facts.settings_sha256}`"
    yield "answers", f"sha256 `{found.answers_sha256}`"


def _scored(report: Json) -> Iterator[tuple[str, str]]:
    """What programs say of answers. Nothing for an older evaluation."""
    harmless: Json | None = report.get("harmless")
    tasks: Json = report.get("tasks") or {}
    for name, found in (("fixed instructions", report.get("instructions")), ("tasks", tasks.get("scores"))):
        if found is not None:
            yield (
                name,
                (
                    f"of {found['prompts']}, base {found['base']}, adapter {found['adapter']}: {points(found)}, "
                    f"p {found['p']:.3f}"
                ),
            )
    if harmless is not None:
        yield (
            "harmless fixed prompts",
            f"of {harmless['prompts']}, base refuses {harmless['base']}, adapter {harmless['adapter']}",
        )
    if report.get("fixed_sha256"):
        yield "fixed prompts", f"sha256 `{report['fixed_sha256']}`"


def _resemblance(facts: _Facts) -> str:
    """The section on similarity with the audit of the data beside it. Empty without an evaluation that measured it."""
    found = (facts.judged.evaluation.report or {}).get("similarity") if facts.judged.evaluation is not None else None
    if found is None:
        return ""
    rows = [("chrF", found["chrf"], ".1f"), ("BLEU", found["bleu"], ".1f"), ("ROUGE-L", found["rouge_l"], ".2f")]
    if found["own_loss"] is not None:
        rows.insert(0, ("held-out loss, nats per token", found["own_loss"], ".3f"))
    table = "\n".join(f"| {name} | {each['base']:{form}} | {each['adapter']:{form}} |" for name, each, form in rows)
    audits = "; ".join(f"data `{audit.sha256[:16]}`: {audit.words}" for audit in facts.judged.audits)
    settings = ", ".join(f"`{name} {text}`" for name, text in found["settings"].items())
    return (
        f"## Resembles your data\n\n| {many(found['rows'], 'row')} | base | adapter |\n|---|---|---|\n{table}\n\n"
        f"{audits or 'not audited'}. An adapter that was trained on wrong answers resembles them too, so these "
        f"numbers do not count for the verdict. {settings}\n\n"
    )


def _both(shares: Json) -> str:
    return f"base {percent(shares['base'])} %, adapter {percent(shares['adapter'])} %"


def _found(report: Report | None) -> str:
    if report is None:
        return "not checked"
    found = [f"{one.check}: {one.words}" for one in report.findings if one.level != "list"]
    return "; ".join(found) if found else "the data checks found nothing"


def _checks(report: Report | None) -> list[Json] | None:
    """The findings without lines and samples, which could show rows."""
    if report is None:
        return None
    return [{"check": one.check, "level": one.level, "words": one.words} for one in report.findings]


def _evaluation(facts: _Facts) -> Json | None:
    found = facts.judged.evaluation
    if found is None:
        return None
    return {
        "job": found.job_id,
        "checkpoint_sha256": found.checkpoint_sha256,
        "settings": found.settings,
        "settings_sha256": facts.settings_sha256,
        "answers_sha256": found.answers_sha256,
        "report": found.report,
    }


def _comparison(judged: Judged) -> Json | None:
    votes = judged.evidence.votes
    if votes is None:
        return None
    margin, gain = judged.evidence.margin, judged.evidence.gain
    return {
        "quality": votes.quality,
        "wins": votes.wins,
        "losses": votes.losses,
        "ties": votes.ties,
        "share": _interval(wilson(votes.wins, votes.wins + votes.losses)),
        "alpha": judged.evidence.alpha,
        "margin": {"result": margin.result, "score": _interval(margin.score)} if margin is not None else None,
        "gain": {"is_shown": gain.is_shown, "words": gain.words} if gain is not None else None,
        "comparisons": judged.comparisons,
        "error_rate": judged.error_rate,
    }


def _judge_in_words(found: JudgeReport) -> str:
    words = f"{found.judgement.model}: {found.advice}. {found.conduct_in_words}"
    people = f"; agrees with people on {found.people_in_words}" if found.people_in_words else ""
    return " ".join([f"{words}{people}.", *found.warnings])


def _judge(found: JudgeReport) -> Json:
    judgement, behaved, result = found.judgement, found.conduct, found.result
    people = found.people
    return {
        "model": judgement.model,
        "url": judgement.url,
        "prompt": {"version": judgement.prompt_version, "sha256": text_sha256()},
        "advice": found.advice,
        "pairs": behaved.pairs,
        "failed": behaved.failed,
        "inconsistent": _interval(behaved.inconsistent),
        "bias_p": behaved.bias_p,
        "wins": result.wins if result is not None else None,
        "losses": result.losses if result is not None else None,
        "ties": result.ties if result is not None else None,
        "people": {"shared": people.shared, "equal": _interval(people.equal), "kappa": people.kappa}
        if people
        else None,
        "warnings": list(found.warnings),
    }


def _interval(found: Interval) -> Json:
    """An interval as plain data. JSON has no number for an unknown value."""
    return {"value": None if math.isnan(found.value) else found.value, "low": found.low, "high": found.high}


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
