"""What several commands take and say of a job in the same words."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import age, moment, seconds

_NAMED = "Id, four characters or more of its beginning or end, or a name."
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help=_NAMED)]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB...", help=_NAMED)]


def machine(job: dict[str, Any]) -> str:
    """Where the job runs now."""
    session = job.get("session")
    return f"{session['provider']}/{session['account']}" if session else ""


def note(job: dict[str, Any]) -> str:
    """Why it waits, what was asked of it, or why it ended."""
    asked = [word for word, wanted in (job.get("requests") or {}).items() if wanted]
    if asked:
        return f"{' and '.join(asked)} requested"
    return obstacle(job.get("waiting")) or job.get("message") or ""


def safe_age(head: dict[str, Any]) -> str:
    """How long ago the newest checkpoint was committed."""
    return seconds(age(head["committed_at"]))


def obstacle(waiting: dict[str, Any] | None) -> str:
    """What a job waits for, and until when."""
    if not waiting:
        return ""
    until = f" (until {moment(waiting['until'])})" if waiting.get("until") else ""
    return f"{waiting['reason']}{until}"


def listed(answer: Any) -> list[dict[str, Any]]:
    """The items of a list, paged or plain."""
    return answer["items"] if isinstance(answer, dict) else answer


def chosen_checkpoint(found: list[dict[str, Any]], named: str, option: str) -> dict[str, Any]:
    """The checkpoint of a job that a person means: its step if its file is kept, or the beginning of its sha256."""
    beginning = named.lower()
    if not re.fullmatch(r"[0-9]+|[0-9a-f]{4,64}", beginning):
        raise CommandError(Exit.USAGE, f"{option} takes a step, or at least four characters of a checkpoint's sha256")
    at_step = [c for c in found if str(c["step"]) == beginning and c["state"] == "committed"]
    by_hash = [c for c in found if len(beginning) >= 4 and c["sha256"].startswith(beginning)]
    matching = list({c["sha256"]: c for c in at_step + by_hash}.values())
    if not matching:
        raise CommandError(Exit.NOT_FOUND, _no_checkpoint(found, named))
    if len(matching) > 1:
        raise CommandError(Exit.USAGE, f"{named} may be any of {', '.join(c['sha256'][:16] for c in matching)}")
    return matching[0]


def _no_checkpoint(found: list[dict[str, Any]], named: str) -> str:
    if all(str(c["step"]) != named for c in found):
        return f"this job has no checkpoint {named}"
    kept = ", ".join(str(c["step"]) for c in found if c["state"] == "committed")
    there = f"those of steps {kept} are" if kept else "this job has none that is"
    return f"the checkpoint of step {named} was made and is not kept; {there}"
