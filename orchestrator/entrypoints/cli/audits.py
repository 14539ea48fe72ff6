"""Commands for audits of data files. People label rows on the page of the audit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.domain.choices import StrataKind, percent
from orchestrator.entrypoints.cli.client import connect
from orchestrator.entrypoints.cli.datasets import find
from orchestrator.entrypoints.cli.exports import Form, FormOption, OutOption, refuse_existing, save
from orchestrator.entrypoints.cli.output import JsonFlag, facts, put, put_json, say
from worker.shared.counted_words import many

app = typer.Typer(no_args_is_help=True, help="Audits: people label a random sample of a data file.")
DatasetArgument = Annotated[
    str, typer.Argument(metavar="SHA256", help="The sha256, or its first four or more characters.")
]


@app.command("start")
def start_audit(
    context: typer.Context,
    dataset: DatasetArgument,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed draws the same sample. Default: random.")
    ] = None,
    strata: Annotated[
        StrataKind, typer.Option(help="Sample each of these in proportion, besides short, middle and long answers.")
    ] = StrataKind.LENGTH,
    max_wrong: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The largest share of wrong rows that passes (0.1 = 10 %).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw the sample of a data file. Then label its rows on the page that is printed."""
    client = connect(context)
    sha256 = find(client, dataset, None)
    body = {"seed": seed, "strata": strata.value, "max_wrong": max_wrong}
    audit = client.post(f"/datasets/{sha256}/audit", body)
    if as_json:
        put_json(audit)
        return
    put(f"{client.url}/datasets/{sha256}/audit")
    say(
        f"drawn: {audit['drawn']} of {audit['rows']} answers. Open the page to label them (`trainhop open` logs you in)"
    )


@app.command("status")
def audit_status(context: typer.Context, dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Show the share of wrong rows so far, with its interval."""
    client = connect(context)
    audit = client.get(f"/datasets/{find(client, dataset, None)}/audit")
    if as_json:
        put_json(audit)
        return
    estimate, both = audit["estimate"], audit["agreement"]
    facts(
        [
            ("result", audit["words"]),
            ("labelled", f"{audit['labelled']} of {audit['drawn']} drawn, of {audit['rows']} answers"),
            ("unsure", _bounds(estimate) if estimate["unsure"] else None),
            ("not checkable", estimate["not_checkable"] or None),
            ("limit", _limit(audit)),
            ("rated twice", f"{both['units']}, {both['equal']} of them with one label" if both["units"] else None),
            ("alpha", f"{both['alpha']:.2f}" if both["alpha"] is not None else None),
            ("order", f"seed {audit['seed']}, strata by {audit['strata_by']}"),
            ("note", None if audit["has_data"] else "the data file was deleted. Upload it again to continue"),
        ]
    )


def _bounds(estimate: dict[str, Any]) -> str:
    low, high = percent(estimate["if_correct"]["low"]), percent(estimate["if_wrong"]["high"])
    return f"{estimate['unsure']}, so that the share is from {low} to {high} %"


def _limit(audit: dict[str, Any]) -> str | None:
    if audit["standing"] is None:
        return None
    words = f"{percent(audit['max_wrong'])} %: {audit['standing']['decision']}"
    more = audit["standing"]["more"]
    if audit["standing"]["decision"] != "open":
        return words
    return f"{words}, about {many(more, 'more row')}" if more is not None else f"{words}, more than 2,000 more rows"


@app.command("more")
def draw_more(context: typer.Context, dataset: DatasetArgument) -> None:
    """Draw more rows. The sample so far stays the beginning of the order."""
    client = connect(context)
    drawn = client.post(f"/datasets/{find(client, dataset, None)}/audit:more")["drawn"]
    say(f"drawn: {many(drawn, 'answer')}")


@app.command("export")
def export_labels(
    context: typer.Context,
    dataset: DatasetArgument,
    form: FormOption = Form.JSONL,
    out: OutOption = None,
) -> None:
    """Save all labels with their notes, without the texts of the rows."""
    client = connect(context)
    sha256 = find(client, dataset, None)
    refuse_existing(out)
    save(client, f"/datasets/{sha256}/audit/labels", form, out)
