"""Faults of a job's rows that its sessions would end with, and findings about them, said before the job is queued.

Only where the model's tokenizer is on this server. Elsewhere the first session finds them before its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import Looks, Verdict
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_spec import DatasetSpec, FileFormat
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import TRUNCATE, piece_count
from worker.shared.own_template import template_sha256

MAX_VERDICTS = 1_000
AGAIN_S = 60.0
"""Time until rows that could not be looked at are tried again."""


def judge_rows(ctx: Context, spec: JobSpec) -> tuple[str, ...]:
    """What the preview says the model will do differently from what the rows teach.

    Raises `InvalidError` with what the preview says of rows that cannot be trained on.
    """
    if ctx.looks is None:
        return ()
    return judged([verdict(ctx, ctx.looks, spec, dataset) for dataset in spec.datasets])


def judged(found: Sequence[Verdict]) -> tuple[str, ...]:
    """The same of looks at all datasets of a job."""
    faults = [(f"/datasets/{place}/path", seen.fault) for place, seen in enumerate(found) if seen.fault]
    if not faults and all(seen.untaught for seen in found):
        faults = [("/datasets/0/path", found[0].untaught)]
    if faults:
        raise InvalidError("The data cannot be trained on with this model. Change the data or the model.", faults)
    return tuple(dict.fromkeys(finding for seen in found for finding in seen.findings))


def token_facts(ctx: Context, spec: JobSpec, dataset: DatasetSpec) -> TokenFacts | None:
    """What the data checks need of the tokenizer. None where it is not on this server."""
    return None if ctx.looks is None else verdict(ctx, ctx.looks, spec, dataset).counts


def verdict(ctx: Context, looks: Looks, spec: JobSpec, dataset: DatasetSpec) -> Verdict:
    """What a look at these rows has found, now or earlier."""
    read = (dataset.sha256, dataset.type, dataset.taught.model_dump_json())
    key = (spec.base_model, *read, spec.sequence_len, spec.train_on_inputs, spec.encoding)
    key = (*key, template_sha256(spec.own_template), spec.excess_length_strategy == TRUNCATE)
    key = (*key, spec.tokens, *spec.added_tokens_overrides.items())
    now = ctx.clock.now()
    known = ctx.verdicts.get(key)
    if known is None or (known.away and not known.at <= now < known.at + AGAIN_S):
        known = _look(ctx, looks, spec, dataset, now)
        ctx.verdicts[key] = known
        if len(ctx.verdicts) > MAX_VERDICTS:
            ctx.verdicts.pop(next(iter(ctx.verdicts)), None)
    return known


def _look(ctx: Context, looks: Looks, spec: JobSpec, dataset: DatasetSpec, now: float) -> Verdict:
    with ctx.uow() as tx:
        stored = tx.datasets.get(dataset.sha256 or "")
    if stored is None or not looks.has(spec.base_model):
        return Verdict(at=now, away=True)
    with copied(ctx, stored) as path:
        return look_at(looks, spec, dataset, path, FileFormat(stored.file_format), now=now, local_only=True)


def look_at(
    looks: Looks,
    spec: JobSpec,
    dataset: DatasetSpec,
    path: Path,
    container: FileFormat,
    *,
    now: float,
    token: str | None = None,
    local_only: bool = False,
) -> Verdict:
    """What a look at the rows of this file finds. `token` and `local_only` as in `Looks.of`."""
    look = looks.of(
        spec.base_model,
        path,
        dataset.type,
        container,
        sequence_len=spec.sequence_len,
        train_on_inputs=spec.train_on_inputs,
        encoding=spec.encoding,
        rendered_at=spec.rendered_at,
        taught=dataset.taught,
        chat_template=spec.own_template,
        split_texts=spec.excess_length_strategy != TRUNCATE,
        new_tokens=spec if spec.new_tokens else None,
        token=token,
        local_only=local_only,
    )
    pieces = [piece_count(tokens, spec.sequence_len) for tokens in look.lengths]
    return Verdict(
        at=now,
        fault=look.fault,
        untaught=look.untaught,
        findings=tuple(look.findings),
        counts=look.counts,
        away=bool(look.away),
        measured=len(pieces),
        longer=sum(count > 1 for count in pieces),
        pieces=sum(pieces),
    )
