"""A check of a Colab runtime: a person runs it in a notebook, and its signed answer comes back by itself or by hand."""

from __future__ import annotations

import json
from typing import Any, cast

from orchestrator.domain import diagnosis
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.diagnosis import Examined
from orchestrator.ports.providers import Context
from orchestrator.services.diagnosis import Json, hidden, keep
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor
from worker.doctor.outcome import PROBES, Outcome, one_line
from worker.shared.messages import signed_message

MAX_LINE = 64 << 10
"""Characters."""
PROBE_S, HUB_S = 240.0, 60.0
DRIVE = "https://www.googleapis.com"


def order(ctx: Context, actor: Actor) -> Json:
    """What a cell is to do. The check's name says for whom, and the token follows from it: nothing is kept of it here."""
    name = f"{new_id('check', ctx.clock.now())}.{actor.member_id}"
    return {
        "check": name,
        "token": ctx.tokens.for_lease(name),
        "server": ctx.public_url or "",
        "drive": DRIVE,
        "probes": list(PROBES),
        "probe_s": PROBE_S,
        "hub_s": HUB_S,
        "hub": {"repo": "hf-internal-testing/tiny-random-gpt2", "file": "model.safetensors"},
    }


def take(ctx: Context, line: str) -> Json:
    """The judged check of an answer, kept with the member's Colab account where there is one.

    Raises `InvalidError` for what no cell of this server has written.
    """
    said = _read(ctx, line)
    probes = said.get("probes")
    listed = cast("list[object]", probes) if isinstance(probes, list) else []
    outcomes = tuple(found for each in listed if (found := Outcome.read(each)) is not None)
    versions: dict[str, str] = {}
    if isinstance(said.get("versions"), dict):
        versions = {str(k)[:40]: str(v)[:40] for k, v in list(cast("Json", said["versions"]).items())[:40]}
    machine = "gpu" if said.get("machine") == "gpu" else "cpu"
    found = Examined(image=one_line(said.get("image", ""))[:64], versions=versions, outcomes=outcomes)
    name, now = str(said["check"]), ctx.clock.now()
    member = name.partition(".")[2]
    with ctx.uow() as tx:
        names = {m.name for m in tx.members() if m.id == member}
        for account in tx.accounts():
            if (account.provider, account.member_id) == ("colab", member):
                keep(account, found, check=name, machine=machine, at=now, names=names)
                tx.save_account(account)
    judged = diagnosis.judged([o.as_dict() for o in outcomes])
    kept = {"at": now, "image": found.image, "versions": versions, "probes": judged}
    return {"machine": machine, **hidden(kept, names)}


def _read(ctx: Context, line: str) -> Json:
    """What was said under this server's own token for the check that it names."""
    try:
        named: Any = json.loads(line[line.index("{") :])
        name = str(named["check"])
        message = signed_message(ctx.tokens.for_lease(name), line)
    except (ValueError, KeyError, TypeError, RecursionError):
        message = None
    if message is None:
        words = "this is no answer of a check of this server: copy the whole line that begins with @trainhop"
        raise InvalidError(words, [("/line", words)])
    return cast("Json", json.loads(message))
