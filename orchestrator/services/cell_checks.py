"""Check of a notebook's machine: a person runs a cell, and its signed answer is sent or pasted."""

from __future__ import annotations

import json
from typing import Any, cast

from orchestrator.domain import diagnosis
from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.ports.providers import Examined
from orchestrator.services.context import Context, new_id
from orchestrator.services.diagnosis import Json, keep
from orchestrator.services.hidden_names import hidden
from worker.doctor.outcome import PROBES, Outcome, one_line
from worker.shared.messages import signed_message

MAX_LINE = 64 << 10
"""In characters."""
PROBE_S, HUB_S = 240.0, 60.0
DRIVE = "https://www.googleapis.com"


def order(ctx: Context, actor: Actor, provider: str) -> Json:
    """The order for a cell of this provider. Raises `NotFoundError` if its notebooks are not checked by a cell.

    The check's name contains the member, and the token follows from the name. So the server keeps no record of it.
    """
    check_provider(ctx, provider)
    name = f"{new_id('check', ctx.clock.now())}.{actor.member_id}"
    return {
        "check": name,
        "token": ctx.tokens.for_lease(name),
        "server": ctx.public_url or "",
        "answer_path": f"/api/v1/checks/{provider}:answer",
        "answer_command": f"trainhop doctor --{provider} --answer FILE",
        "drive": DRIVE,
        "probes": list(PROBES),
        "probe_s": PROBE_S,
        "hub_s": HUB_S,
        "hub": {"repo": "hf-internal-testing/tiny-random-gpt2", "file": "model.safetensors"},
    }


def check_provider(ctx: Context, provider: str) -> None:
    """Raise `NotFoundError` unless people open this provider's machines themselves, in notebooks."""
    known = next((e.provider for e in ctx.providers.entries() if e.name == provider), None)
    if known is None or not known.capabilities.notebooks:
        raise NotFoundError(
            f"Machines of {provider} cannot be checked from a notebook. Choose a provider with notebooks."
        )


def take(ctx: Context, provider: str, line: str) -> Json:
    """Judge the answer of a cell, and keep the check with the member's account at this provider if there is one.

    Raises `NotFoundError` as `order` does, and `InvalidError` for text that no cell of this server has written.
    """
    check_provider(ctx, provider)
    message = _read(ctx, line)
    probes = message.get("probes")
    listed = cast("list[object]", probes) if isinstance(probes, list) else []
    outcomes = tuple(found for each in listed if (found := Outcome.read(each)) is not None)
    versions: dict[str, str] = {}
    if isinstance(message.get("versions"), dict):
        versions = {str(k)[:40]: str(v)[:40] for k, v in list(cast("Json", message["versions"]).items())[:40]}
    machine = "gpu" if message.get("machine") == "gpu" else "cpu"
    examined = Examined(image=one_line(message.get("image", ""))[:64], versions=versions, outcomes=outcomes)
    name, now = str(message["check"]), ctx.clock.now()
    member = name.partition(".")[2]
    with ctx.uow() as tx:
        names = {m.name for m in tx.members.all() if m.id == member}
        for account in tx.accounts.all():
            if (account.provider, account.member_id) == (provider, member):
                keep(account, examined, check=name, machine=machine, at=now, names=names)
                tx.accounts.save(account)
    judged = diagnosis.judged([o.as_dict() for o in outcomes])
    kept = {"at": now, "image": examined.image, "versions": versions, "probes": judged}
    return {"machine": machine, **hidden(kept, names)}


def _read(ctx: Context, line: str) -> Json:
    """The content of an answer that was signed with this server's token for the check it names."""
    try:
        named: Any = json.loads(line[line.index("{") :])
        name = str(named["check"])
        message = signed_message(ctx.tokens.for_lease(name), line)
    except (ValueError, KeyError, TypeError, RecursionError):
        message = None
    if message is None:
        words = "This is not a check result of this server. Copy the full line that begins with @trainhop."
        raise InvalidError(words, [("/line", words)])
    return cast("Json", json.loads(message))
