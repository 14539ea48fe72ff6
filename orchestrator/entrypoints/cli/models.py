"""Commands for models: candidates under a name, their verdicts, promotion and rollback."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.domain.choices import AGAINST
from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.output import JsonFlag, facts, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import JobArgument, listed
from trainhop.connection import find_job, segment

app = typer.Typer(no_args_is_help=True, help="Models: candidates under a name, and which of them is promoted.")
ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]
MemberOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model's owner. Only an admin needs this. Default: you.")
]
Json = dict[str, Any]


@app.command("ls")
def list_models(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List models with what is promoted."""
    found = listed(connect(context).get("/models"))
    if as_json:
        put_json(found)
        return
    rows = [(m["name"], m["member"], m["promoted"], AGAINST if m["against_verdict"] else None) for m in found]
    table(("NAME", "OWNER", "PROMOTED", "NOTE"), rows)


@app.command("show")
def show_model(
    context: typer.Context, name: ModelArgument, member: MemberOption = None, as_json: JsonFlag = False
) -> None:
    """Show a model's candidates with their verdicts, and its history."""
    model = connect(context).get(f"/models/{segment(name)}", member=member)
    if as_json:
        put_json(model)
        return
    _put_promoted(model)
    rows = [
        (c["job"], c["name"], "yes" if c["promoted"] else None, *_verdict(c["verdict"])) for c in model["candidates"]
    ]
    put()
    table(("CANDIDATE", "NAME", "PROMOTED", "VERDICT", "REASONS"), rows)
    if model["history"]:
        put()
        table(("MOVE", "TIME", "BY", "FROM", "TO", "VERDICT THEN"), [_move(move) for move in model["history"]])


def _put_promoted(model: Json) -> None:
    against = f" ({AGAINST})" if model["against_verdict"] else ""
    facts([("model", model["name"]), ("promoted", (model["promoted"] or "nothing") + against)])


def _verdict(verdict: Json | None) -> tuple[str, str]:
    if verdict is None:
        return "deleted", ""
    return verdict["answer"], " ".join([*verdict["reasons"], verdict["advice"]])


def _move(move: Json) -> tuple[Any, ...]:
    then = f"{move['verdict'] or '-'}{', against the verdict' if move['against_verdict'] else ''}"
    return move["kind"], moment(move["at"]), move["actor"], move["before"], move["after"], then


@app.command("add")
def add_candidate(context: typer.Context, name: ModelArgument, job: JobArgument, as_json: JsonFlag = False) -> None:
    """Add a finished job's adapter to a model, which is created if it does not exist."""
    client = connect(context)
    model = client.post(f"/models/{segment(name)}/candidates", {"job": find_job(client, job)["id"]})
    _put(model, as_json, f"{name} has {len(model['candidates'])} candidate(s)")


@app.command("promote")
def promote_candidate(
    context: typer.Context,
    name: ModelArgument,
    job: JobArgument,
    force: Annotated[bool, typer.Option("--force", help="Promote against the verdict. Needs an admin.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Promote a finished job's adapter. Without the verdict "promote" this is refused with the reasons."""
    client = connect(context)
    body = {"job": find_job(client, job)["id"], "force": force}
    model = client.post(f"/models/{segment(name)}:promote", body)
    _put(model, as_json, _promoted(model))


@app.command("rollback")
def roll_back(
    context: typer.Context, name: ModelArgument, member: MemberOption = None, as_json: JsonFlag = False
) -> None:
    """Promote the candidate that was promoted before."""
    model = connect(context).post(f"/models/{segment(name)}:rollback", {}, member=member)
    _put(model, as_json, _promoted(model))


def _promoted(model: Json) -> str:
    against = f", {AGAINST}" if model["against_verdict"] else ""
    return f"promoted in {model['name']}: {model['promoted'] or 'nothing'}{against}"


def _put(model: Json, as_json: bool, words: str) -> None:
    if as_json:
        put_json(model)
    else:
        say(words)
