"""Base models on the hub by words, with what a person must know before they choose one."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.services.capacity import list_capacity
from orchestrator.services.context import Context
from orchestrator.services.hub_tokens import token_of
from worker.shared import memory_estimate
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.job_spec import JobSpec

MAX_WORDS = 100
QLORA_FROM = 2e9
"""Parameters from which a model is trained with QLoRA unless the job says otherwise."""
SEQUENCE_LEN = 1024
_NO_DATA = (DatasetSpec(path="sha256:" + "0" * 64),)


@dataclass(frozen=True, kw_only=True)
class ModelOffer:
    """A model that a search has found.

    `adapter` is how it would be trained, and `gpu_bytes` and `host_bytes` about what that needs with rows of 1,024
    tokens (0: not known). `fits` are the accounts whose machines have this memory. `largest_bytes` is the most that any
    of them has. `unknown_memory` are those whose memory is not known.
    """

    id: str
    parameters: int | None
    licence: str
    gated: bool
    private: bool
    downloads: int
    adapter: str
    gpu_bytes: int
    host_bytes: int
    fits: tuple[str, ...]
    largest_bytes: int
    unknown_memory: tuple[str, ...]


def search(ctx: Context, actor: Actor, words: str) -> list[ModelOffer]:
    """Text models whose name has these words, most downloaded first. Raises `InvalidError`, `UnavailableError`.

    The estimate is by the number of parameters alone. A plan knows the model's shape and is more exact.
    """
    words = words.strip()
    if not 0 < len(words) <= MAX_WORDS:
        text = f"Search for 1 to {MAX_WORDS} characters of a model's name."
        raise InvalidError(text, [("/search", text)])
    found = ctx.catalog.search(words, token_of(ctx, actor.member_id))
    with ctx.uow() as tx:
        usable = [a for a in tx.accounts.all() if a.member_id in (None, actor.member_id)]
    places = list_capacity(ctx, usable)
    offers: list[ModelOffer] = []
    for model in found:
        adapter = "qlora" if (model.parameters or 0) >= QLORA_FROM else "lora"
        spec = JobSpec(base_model=model.id, adapter=adapter, sequence_len=SEQUENCE_LEN, datasets=_NO_DATA, max_steps=1)
        need = memory_estimate.need(spec, None, model.parameters)
        sized = [p for p in places if p.memory_bytes]
        offers.append(
            ModelOffer(
                id=model.id,
                parameters=model.parameters,
                licence=model.licence,
                gated=model.gated,
                private=model.private,
                downloads=model.downloads,
                adapter=adapter,
                gpu_bytes=need.gpu_bytes,
                host_bytes=need.host_bytes,
                fits=tuple(p.name for p in sized if 0 < need.on(gpu=p.gpu) <= p.memory_bytes),
                largest_bytes=max((p.memory_bytes for p in sized), default=0),
                unknown_memory=tuple(p.name for p in places if not p.memory_bytes and not p.closed_reason),
            )
        )
    return offers
