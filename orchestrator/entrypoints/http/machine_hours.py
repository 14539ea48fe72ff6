"""How long a job had machines, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.entrypoints.http.dependencies import Server


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Machine hours of a job: on GPUs, each GPU counted, and on CPUs. `cost` says in words what they cost."""

    gpu: float
    cpu: float
    cost: str


def hours_of(server: Server, sessions: Sequence[dict[str, Any]]) -> Hours:
    """The hours of these sessions of a job."""
    free = {e.name for e in server.ctx.providers.entries() if e.provider and e.provider.capabilities.free_of_charge}
    gpu = cpu = paid = 0.0
    for session in sessions:
        hardware, hours = session["hardware"] or {}, session["seconds"] / 3600
        if hardware.get("device") == "cuda":
            hours *= hardware.get("count", 1)
            gpu += hours
        else:
            cpu += hours
        paid += 0.0 if session["provider"] in free else hours
    if not sessions:
        cost = ""
    elif not paid:
        cost = "free of charge"
    elif paid < gpu + cpu:
        cost = f"{gpu + cpu - paid:.1f} h free of charge, the others not known"
    else:
        cost = "not known"
    return Hours(gpu=gpu, cpu=cpu, cost=cost)
