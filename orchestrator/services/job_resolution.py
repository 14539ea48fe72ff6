"""Pins everything of a job file that may not change later, and refuses what no machine could run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.services import evaluation_prompts, start_adapters
from orchestrator.services.adapter_conflicts import refuse_other_model
from orchestrator.services.capacity import refuse_the_too_large
from orchestrator.services.context import Context
from orchestrator.services.datasets import resolve_dataset
from orchestrator.services.hub_tokens import refuse_without_write, token_of
from orchestrator.services.job_checks import names_modules, notes, refuse_what_the_model_lacks
from orchestrator.services.job_pinning import fixed, pinned, refuse_keys_of_the_server
from orchestrator.services.long_texts import split_texts
from orchestrator.services.row_faults import judge_rows
from orchestrator.services.template_trial import refuse_bad_template
from orchestrator.services.tracker_logins import refuse_unwritable
from worker.shared import memory_estimate
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need


def resolve(
    ctx: Context,
    actor: Actor,
    spec: JobSpec,
    given: Collection[str] = (),
    begun: Mapping[str, Any] | None = None,
) -> tuple[JobSpec, Need, tuple[str, ...]]:
    """The spec with everything pinned that may not change later, the memory it needs, and notes for its author.

    `given` are datasets that the actor may read without an upload, because they are those of a job of theirs.
    `begun` is the stored job file of the job from whose checkpoint this one goes on. It reads its rows and computes as
    that one does.
    """
    refuse_keys_of_the_server(spec)
    _refuse_the_unknown(ctx, spec)
    if spec.hub_model_id is not None:
        refuse_without_write(ctx, actor.member_id, spec.hub_model_id, "/hub_model_id")
    refuse_unwritable(ctx, actor.member_id, spec.report_to)
    token = token_of(ctx, actor.member_id)
    spec, start, said = start_adapters.resolve(ctx, actor, spec, given)
    model = ctx.catalog.model(spec.base_model, token, with_modules=names_modules(spec) or start is not None)
    if start is not None:
        refuse_other_model(spec, start, model)
    refuse_what_the_model_lacks(spec, model)
    datasets = tuple(
        resolve_dataset(ctx, actor.member_id, dataset, f"/datasets/{place}/path", given)
        for place, dataset in enumerate(spec.datasets)
    )
    ready = pinned(spec, model, datasets, ctx.clock.now(), begun)
    asked = ready.evaluate
    if asked is not None:
        asked = evaluation_prompts.pinned(ctx, actor.member_id, ready, asked, pointer="/evaluate", given=given)
        ready = ready.model_copy(update={"evaluate": asked})
    few = evaluation_prompts.notes(ready, asked) if asked is not None else ()
    needed = memory_estimate.need(ready, model.shape, model.parameters)
    remedy = "choose a smaller model, adapter: qlora, or a shorter sequence_len"
    refuse_the_too_large(ctx, actor.member_id, needed, "base model", "/base_model", remedy)
    written = refuse_bad_template(ready)
    findings = judge_rows(ctx, ready)
    ready, split = split_texts(ctx, ready, begun)
    return fixed(ready), needed, (*said, *notes(spec, model), *split, *written, *findings, *few)


def _refuse_the_unknown(ctx: Context, spec: JobSpec) -> None:
    """Refuse a job for an unknown provider, because it would wait forever."""
    known = sorted(entry.name for entry in ctx.providers.entries())
    for place, name in enumerate(spec.placement.providers):
        if name not in known:
            message = f"There is no provider {name}. Choose one of {', '.join(known)}."
            raise InvalidError(message, [(f"/placement/providers/{place}", message)])
