"""Commands for blind comparisons. Each one is about the newest comparison of an evaluation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.domain.choices import GainKind, PlanName, percent
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.exports import Form, FormOption, OutOption, refuse_existing, save
from orchestrator.entrypoints.cli.output import JsonFlag, facts, put, put_json, say
from trainhop.connection import find_job
from worker.shared.counted_words import many

HELP = "Blind comparisons: people vote on the answers of two models. The command diff shows jobs side by side."
app = typer.Typer(no_args_is_help=True, help=HELP)
EvaluationArgument = Annotated[str, typer.Argument(metavar="JOB", help="The evaluation's job: its id or its name.")]


@app.command("start")
def start_comparison(
    context: typer.Context,
    job: EvaluationArgument,
    plan: Annotated[
        PlanName, typer.Option(help="How many decisive prompts it takes: 20 to 160 (standard), or 16 to 64 (small).")
    ] = PlanName.STANDARD,
    margin: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Also test: not worse by more than this (0.1 = 10 %).")
    ] = None,
    gain: Annotated[
        GainKind | None,
        typer.Option(help="With a margin: promote an adapter that is not worse if it solves more of the tasks."),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="TEXT", help="The question that raters see.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the comparison of an evaluation's answers."""
    client = connect(context)
    job_id = find_job(client, job)["id"]
    body = {"plan": plan.value, "margin": margin, "gain": gain and gain.value, "question": question}
    made = client.post(f"/evaluations/{job_id}/comparisons", {k: v for k, v in body.items() if v is not None})
    if as_json:
        put_json(made)
        return
    put(f"{client.url}/evaluations/{job_id}/comparisons")
    say("started. Each rater needs a link: see `trainhop compare link --help`")


@app.command("link")
def rater_link(
    context: typer.Context,
    job: EvaluationArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The rater's name.")],
) -> None:
    """Print a rater's link. A rater with this name gets a new link, and keeps their votes."""
    client = connect(context)
    found = _newest(client, job)
    path = f"/comparisons/{found['id']}/raters"
    known = next((rater["id"] for rater in found["raters"] if rater["name"] == name), None)
    made = client.post(path, {"name": name}) if known is None else client.post(f"{path}/{known}/link")
    put(made["url"])
    say("The link works once. Give it only to this person.")


@app.command("status")
def comparison_status(context: typer.Context, job: EvaluationArgument, as_json: JsonFlag = False) -> None:
    """Show how many ratings are needed, and after closing the result."""
    found = _newest(connect(context), job)
    if as_json:
        put_json(found)
        return
    both = found["agreement"]
    twice = f"{both['prompts']}, {both['equal']} of them with equal votes" if both["prompts"] else None
    facts(
        [
            ("question", found["question"]),
            ("plan", found["plan"]),
            ("not worse", f"by more than {percent(found['margin'])} %" if found["margin"] else None),
            ("declared gain", found.get("gain")),
            ("state", found["ending"] or "open"),
            ("result", found["result"]["words"] if found["result"] else None),
            ("prefer the adapter", _rate(found["result"]["all_prompts"]) if found["result"] else None),
            ("similar length", _rate(found["result"]["similar_length"]) if found["result"] else None),
            ("decisive prompts", f"{found['decisive']} of {found['prompts']}"),
            ("ties", f"{found['ties']}, and {many(found['identical'], 'prompt')} with identical answers"),
            ("ratings", found["ratings"]),
            ("needed", f"about {found['more']} more ratings" if found["closed_at"] is None else None),
            ("rated twice", twice),
            ("alpha", f"{both['alpha']:.2f}" if both["alpha"] is not None else None),
            ("raters", ", ".join(f"{r['name']} ({r['ratings']})" for r in found["raters"])),
        ]
    )


def _rate(found: dict[str, Any]) -> str:
    share = found["share"]
    if share["value"] is None:
        return "no decisive prompt"
    low, high = percent(share["low"]), percent(share["high"])
    return f"{percent(share['value'])} % of {many(found['decisive'], 'decisive prompt')} ({low} to {high} %)"


@app.command("close")
def close_comparison(context: typer.Context, job: EvaluationArgument) -> None:
    """Close the comparison before the votes decide. Its result is then "not enough evidence"."""
    client = connect(context)
    closed = client.post(f"/comparisons/{_newest(client, job)['id']}:close")
    say(closed["result"]["words"])


@app.command("export")
def export_votes(
    context: typer.Context,
    job: EvaluationArgument,
    form: FormOption = Form.JSONL,
    out: OutOption = None,
) -> None:
    """Save all votes of a closed comparison with their notes, without the texts of the answers."""
    client = connect(context)
    refuse_existing(out)
    save(client, f"/comparisons/{_newest(client, job)['id']}/votes", form, out)


def _newest(client: Client, job: str) -> dict[str, Any]:
    job_id = find_job(client, job)["id"]
    known = client.get(f"/evaluations/{job_id}/comparisons")["items"]
    if not known:
        raise CommandError(
            Exit.NOT_FOUND, f"{job} has no blind comparison. Start one with `trainhop compare start {job}`."
        )
    return client.get(f"/comparisons/{known[0]['id']}")
