"""Arguments and phrases that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import age, moment, seconds
from trainhop.errors import Error
from trainhop.polling import STATE_WORDS

_NAMED = "Job id, name, or the first or last four or more characters of the id."
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help=_NAMED)]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB...", help=_NAMED)]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A job file (YAML or JSON), or - for stdin.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key. Use dots for nested keys.")
]
SendOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Send data files outside the job file's folder without asking.")
]


def stored_state(word: str | None) -> str | None:
    """The state that the API has for a word, for example `leased` for starting."""
    return next((state for state, shown in STATE_WORDS.items() if shown == word), word)


def machine(job: dict[str, Any]) -> str:
    """Provider and account of the job's session."""
    session = job.get("session")
    return f"{session['provider']}/{session['account']}" if session else ""


def note(job: dict[str, Any]) -> str:
    """Why the job waits or cannot save, which request is pending, or why it ended."""
    requested = [word for word, wanted in (job.get("requests") or {}).items() if wanted]
    if requested:
        return f"{' and '.join(requested)} requested"
    return obstacle(job.get("waiting")) or (job.get("session") or {}).get("detail") or job.get("message") or ""


def relation(spec: dict[str, Any]) -> str:
    """What a job is to the one that it was made from."""
    made = {"evaluation": "evaluates", "export": "exports", "chat": "chats with"}
    return next((word for key, word in made.items() if spec.get(key)), "cloned from")


def safe_age(head: dict[str, Any]) -> str:
    """Time since the last checkpoint was committed."""
    return seconds(age(head["committed_at"]))


def obstacle(waiting: dict[str, Any] | None) -> str:
    """Why a job waits, and until when."""
    if not waiting:
        return ""
    until = f" (until {moment(waiting['until'])})" if waiting.get("until") else ""
    return f"{waiting['reason']}{until}"


def if_allowed(read: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `read` returns, or nothing if only the owner of a colleague's job may read it."""
    try:
        return read()
    except Error as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return []


def listed(answer: Any) -> list[dict[str, Any]]:
    """The items of a list, paged or plain."""
    return answer["items"] if isinstance(answer, dict) else answer


def chosen_checkpoint(checkpoints: list[dict[str, Any]], named: str, option: str) -> dict[str, Any]:
    """The checkpoint with this step or sha256 prefix. Its file must exist."""
    beginning = named.lower()
    if not re.fullmatch(r"[0-9]+|[0-9a-f]{4,64}", beginning):
        raise CommandError(
            Exit.USAGE, f"{option} needs a step or the first four or more characters of a checkpoint's sha256"
        )
    at_step = [c for c in checkpoints if str(c["step"]) == beginning and c["state"] == "committed"]
    by_hash = [c for c in checkpoints if len(beginning) >= 4 and c["sha256"].startswith(beginning)]
    matching = list({c["sha256"]: c for c in at_step + by_hash}.values())
    if not matching:
        raise CommandError(Exit.NOT_FOUND, _no_checkpoint(checkpoints, named))
    if len(matching) > 1:
        raise CommandError(
            Exit.USAGE, f"{named} matches several checkpoints: {', '.join(c['sha256'][:16] for c in matching)}"
        )
    return matching[0]


def _no_checkpoint(checkpoints: list[dict[str, Any]], named: str) -> str:
    kept = ", ".join(str(c["step"]) for c in checkpoints if c["state"] == "committed")
    there = f"Available steps: {kept}." if kept else "This job has no checkpoint files."
    if all(str(c["step"]) != named for c in checkpoints):
        return f"This job has no checkpoint {named}. {there}"
    return f"The checkpoint of step {named} was deleted. {there}"
