"""Commands for judge models. Those about a judgement are about the newest one of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

import typer

from orchestrator.domain.choices import MAX_BUDGET, percent
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.members import read_key, read_secret
from orchestrator.entrypoints.cli.output import JsonFlag, clean, facts, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import find_job, segment
from trainhop.errors import Error
from worker.shared.counted_words import many

app = typer.Typer(no_args_is_help=True, help="Judge models: they compare the answers of an evaluation.")
EndpointArgument = Annotated[str, typer.Argument(metavar="NAME", help="The endpoint's name or id.")]
EvaluationArgument = Annotated[str, typer.Argument(metavar="JOB", help="The evaluation's job: its id or its name.")]
KeyOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file with the key, or - for stdin (default: prompt, or no key in a script)."),
]
BudgetOption = Annotated[
    int | None, typer.Option(min=1, max=MAX_BUDGET, help="Tokens of all requests and answers at most.")
]
Json = dict[str, Any]


@app.command("ls")
def list_endpoints(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List your endpoints. Keys are not shown."""
    items = listed(connect(context).get("/judge-endpoints"))
    if as_json:
        put_json(items)
        return
    rows = [(e["name"], e["url"], e["model"], "yes" if e["has_key"] else "no", _consent(e)) for e in items]
    table(("NAME", "ADDRESS", "MODEL", "KEY", "NOTE"), rows)


def _consent(endpoint: Json) -> str:
    if endpoint["consented_at"] is None:
        return "needs consent"
    return f"{endpoint['consented_by']} agreed on {moment(endpoint['consented_at'])}"


@app.command("add")
def add_endpoint(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the endpoint.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Its address, for example https://api.example.org/v1.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name there.")],
    key_file: KeyOption = None,
    consent: Annotated[
        bool, typer.Option("--consent", help="Agree that prompts and answers of your evaluations are sent there.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add an OpenAI-compatible chat endpoint. It is tried with one short request, and its key is encrypted."""
    body = {"name": name, "url": url, "model": model, "key": read_key(key_file), "consent": consent}
    made = connect(context).post("/judge-endpoints", body)
    if as_json:
        put_json(made)
        return
    put(made["id"])
    if made["consented_at"] is None:
        say(f"Nothing is sent there before you agree: `trainhop judge consent {clean(made['name'])}`")


@app.command("key")
def replace_key(
    context: typer.Context,
    name: EndpointArgument,
    key_file: Annotated[str, typer.Argument(metavar="FILE", help="A file with the new key, or - for stdin.")],
) -> None:
    """Replace an endpoint's key. The new one is tried first."""
    changed = connect(context).patch(f"/judge-endpoints/{segment(name)}", {"key": read_secret(key_file).strip()})
    say(f"replaced the key of {clean(changed['name'])}")


@app.command("consent")
def consent(context: typer.Context, name: EndpointArgument) -> None:
    """Agree that prompts and answers of your evaluations leave the server for this endpoint."""
    changed = connect(context).post(f"/judge-endpoints/{segment(name)}:consent")
    say(f"answers of your evaluations can now be sent to {clean(changed['url'])}")


@app.command("rm")
def remove_endpoint(context: typer.Context, name: EndpointArgument) -> None:
    """Remove an endpoint with its key. Judgements that use it stop, and their results stay."""
    connect(context).delete(f"/judge-endpoints/{segment(name)}")
    say(f"removed {clean(name)}")


@app.command("start")
def start_judgement(
    context: typer.Context,
    job: EvaluationArgument,
    name: EndpointArgument,
    max_tokens: BudgetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a judge model compare the answers of a finished evaluation, each pair in both orders."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    body = {"endpoint": name} | ({} if max_tokens is None else {"max_tokens": max_tokens})
    made = client.post(f"/evaluations/{job_id}/judgements", body)
    if as_json:
        put_json(made)
        return
    put(made["id"])
    say(f"started. See `trainhop judge status {clean(job)}`")


@app.command("status")
def judgement_status(context: typer.Context, job: EvaluationArgument, as_json: JsonFlag = False) -> None:
    """Show the newest judgement of an evaluation: its conduct, its agreement with people, and its advice."""
    _, found = _newest(connect(context), job)
    put_json(found) if as_json else facts(_described(found))


@app.command("pause")
def pause_judgement(context: typer.Context, job: EvaluationArgument) -> None:
    """Send nothing more. Stored verdicts stay."""
    client, found = _newest(connect(context), job)
    say(client.post(f"/judgements/{found['id']}:pause")["state"])


@app.command("resume")
def resume_judgement(context: typer.Context, job: EvaluationArgument, max_tokens: BudgetOption = None) -> None:
    """Continue where the judgement stopped, with a higher budget if its budget is spent."""
    client, found = _newest(connect(context), job)
    body = {} if max_tokens is None else {"max_tokens": max_tokens}
    say(client.post(f"/judgements/{found['id']}:resume", body)["state"])


def _newest(client: Client, job: str) -> tuple[Client, Json]:
    found = judgements_of(client, find_job(client, job)["id"])
    if not found:
        raise CommandError(
            Exit.NOT_FOUND, f"{clean(job)} has no judgement. To start one, see `trainhop judge start --help`."
        )
    return client, found[0]


def judgements_of(client: Client, job_id: str) -> list[Json]:
    """The judgements of an evaluation, newest first. None on an older server, which does not know them."""
    try:
        return listed(client.get(f"/evaluations/{job_id}/judgements"))
    except Error as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return []
        raise


def show_judgements(found: list[Json]) -> None:
    """The judgements of an evaluation, as `trainhop show` prints them."""
    for judgement in found:
        put()
        facts(_described(judgement))


def _described(found: Json) -> Iterator[tuple[str, Any]]:
    conduct, people, result = found["conduct"], found["people"], found["result"]
    yield "judge model", found["model"] + (f" at {found['url']}" if found["url"] else " in the evaluation's session")
    yield "state", found["state"] + (f": {found['reason']}" if found["reason"] else "")
    yield "advice", "hidden while people compare the answers" if found["is_hidden"] else found["advice"]
    yield "requests", f"{found['answered']} of {found['requests']}, prompt version {found['prompt_version']}"
    estimated = f", estimated for {many(found['estimated'], 'answer')}" if found["estimated"] else ""
    budget = f" of {found['max_tokens']}" if found["url"] else ""
    yield "tokens", f"{found['used_tokens']}{budget}{estimated}"
    yield "pairs", f"{conduct['pairs']}, and {conduct['failed']} failed"
    if conduct["pairs"]:
        yield "inconsistent", _share(conduct["inconsistent"])
        yield "first place", f"{conduct['first']} times, second {conduct['second']} times (p {conduct['bias_p']:.2f})"
    if result is not None:
        yield "prefers", f"the adapter {result['wins']} times, its base {result['losses']} times, {result['ties']} ties"
    if people is not None:
        kappa = "" if people["kappa"] is None else f", kappa {people['kappa']:.2f}"
        yield "agrees with people", f"{_share(people['equal'])} of {many(people['shared'], 'prompt')}{kappa}"
    for cause, count in found["failures"].items():
        yield "failure", f"{cause} ({count} times)"
    for words in found["warnings"]:
        yield "warning", words


def _share(found: Json) -> str:
    if found["value"] is None:
        return "unknown"
    return f"{percent(found['value'])} % ({percent(found['low'])} to {percent(found['high'])} %)"
