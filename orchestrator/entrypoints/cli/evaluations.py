"""Evaluate a job, and show what came of it."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import Client, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, facts, put, put_json, say, size, table
from orchestrator.entrypoints.cli.phrases import JobArgument, chosen_checkpoint, listed
from trainhop.connection import find_job
from trainhop.errors import Error
from trainhop.polling import state_word
from worker.shared.benchmark_list import BENCHMARKS
from worker.shared.counted_words import many

app = typer.Typer()


@app.command(rich_help_panel="Jobs")
def evaluate(
    context: typer.Context,
    job: JobArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rows as for training. Their answers are left out. Default: validation rows."
        ),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts with a check of the answer by a program.")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Ask the items of a benchmark too: {', '.join(BENCHMARKS)}. Repeatable."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Let a model compare the answers on the same machine: ORG/NAME, ORG/NAME@COMMIT, or a folder.",
        ),
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=1, max=500, help="How many prompts to ask.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 takes the most probable token, more draws tokens.")
    ] = 0.0,
    checkpoint: Annotated[
        str | None, typer.Option(help="Evaluate this checkpoint, by step or sha256 prefix. Default: the newest.")
    ] = None,
    accept_leak: Annotated[
        bool, typer.Option("--accept-leak", help="Ask prompts and tasks that are training rows too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let the base model and the adapter of a job answer the same prompts."""
    client = connect(context)
    path = f"/jobs/{find_job(client, job)['id']}"
    body: dict[str, Any] = {
        "max_prompts": max_prompts,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }
    if checkpoint is not None:
        found = listed(client.get(f"{path}/checkpoints"))
        body["checkpoint"] = chosen_checkpoint(found, checkpoint, "--checkpoint")["sha256"]
    if accept_leak:
        body["accept_findings"] = ["leak"]
    if prompts is not None:
        body["prompts"] = {"path": f"sha256:{_sent(client, prompts)}"}
    if tasks is not None:
        body["tasks"] = {"path": f"sha256:{_sent(client, tasks, type='task')}"}
    if benchmark:
        body["benchmarks"] = benchmark
    if judge is not None:
        body["judge"] = {"model": judge}
    made = client.post(f"{path}:evaluate", body, key=str(uuid.uuid4()))
    for words in made.get("notes", ()):
        say(f"note: {clean(words)}")
    if as_json:
        put_json(made)
        return
    put(made["id"])
    say(f"queued. Follow it with `trainhop watch {made['id']}`, then see `trainhop show {made['id']}`")


def _sent(client: Client, file: Path, **how: str) -> str:
    say(f"uploading {file.name} ({size(file.stat().st_size)})")
    return client.upload("/datasets", file, name=file.name, **how)["sha256"]


def evaluations_of(client: Client, job_id: str) -> list[dict[str, Any]]:
    """The evaluations of a job. None on an older server, which does not know them."""
    try:
        return listed(client.get(f"/jobs/{job_id}/evaluations"))
    except Error as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return []
        raise


def show_evaluations(job: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The report of an evaluation, or the evaluations of a job."""
    own = next((each for each in found if each["id"] == job["id"]), None)
    if own is not None and own["report"] is not None:
        put()
        _show_report(own["report"])
        _show_similarity(own)
    if own is None and found:
        put()
        rows = [(e["id"], state_word(e["state"]), e["checkpoint_sha256"][:12], _in_short(e["report"])) for e in found]
        table(("EVALUATION", "STATE", "CHECKPOINT", "RESULT"), rows)


def _in_short(report: dict[str, Any] | None) -> str:
    if report is None:
        return ""
    vetoes, warnings = len(report["vetoes"]), len(report["warnings"])
    return (
        f"{many(report['prompts'], 'prompt')}, {many(vetoes, 'veto', 'vetoes')}, "
        f"{warnings} warning{'' if warnings == 1 else 's'}"
    )


def _both(values: dict[str, Any], form: str) -> str:
    return f"{form.format(values['base'])} base, {form.format(values['adapter'])} adapter"


def _scores(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    value, low, high = (100 * found["difference"][name] for name in ("value", "low", "high"))
    return (
        f"{found['base']} of {found['prompts']} base, {found['adapter']} adapter: {value:+.0f} points "
        f"({low:+.0f} to {high:+.0f}), p {found['p']:.3f}"
    )


def _benchmark(found: dict[str, Any]) -> str:
    scores = found["scores"]
    if scores is None:
        return "every item is too long"
    value, low, high = (100 * scores["difference"][name] for name in ("value", "low", "high"))
    shares = ", ".join(
        f"{arm} {scores[arm]['value']:.0%} ({scores[arm]['low']:.0%} to {scores[arm]['high']:.0%})"
        for arm in ("base", "adapter")
    )
    items = many(found["items"], "item")
    return f"{items}: {shares}: {value:+.0f} points ({low:+.0f} to {high:+.0f}), p {scores['p']:.3f}"


def _refused(found: dict[str, Any] | None) -> str | None:
    return (
        f"{found['base']} of {found['prompts']} refused by base, {found['adapter']} by adapter"
        if found is not None
        else None
    )


def _show_similarity(evaluation: dict[str, Any]) -> None:
    """How much the answers resemble the data, with what is known of the data. An older server says nothing of it."""
    found = evaluation["report"].get("similarity")
    if found is None:
        return
    own = found["own_loss"]
    put()
    put("Resembles your data (says nothing of quality, and does not count for a verdict)")
    facts(
        [
            ("rows", f"{found['rows']} with an answer of their own"),
            ("held-out loss", _both(own, "{:.3f}") + " nats per token" if own else None),
            ("chrF", _both(found["chrf"], "{:.1f}")),
            ("BLEU", _both(found["bleu"], "{:.1f}")),
            ("ROUGE-L", _both(found["rouge_l"], "{:.2f}")),
            *((f"data {audit['sha256'][:12]}", audit["words"]) for audit in evaluation["audits"]),
        ]
    )


def _show_report(report: dict[str, Any]) -> None:
    def both(name: str, form: str) -> str:
        return _both(report[name], form)

    tasks = report.get("tasks")
    forgotten = report["forgetting"]
    rise = forgotten["rise"] if forgotten else None
    facts(
        [
            ("prompts", f"{report['prompts']}, {report['identical']} with equal answers"),
            ("cut at the limit", both("truncated", "{:.0%}")),
            ("tokens", both("tokens", "{:.0f}")),
            ("refusals", both("refusals", "{:.0%}")),
            ("repetition", both("repetition", "{:.0%}")),
            ("control tokens", both("template_leaks", "{:.0%}")),
            (
                "general text",
                f"loss {rise['value']:+.3f} nats per token ({rise['low']:+.3f} to {rise['high']:+.3f})"
                if rise
                else None,
            ),
            ("instructions", _scores(report.get("instructions"))),
            ("harmless prompts", _refused(report.get("harmless"))),
            ("tasks", _scores(tasks["scores"] if tasks else None)),
            *((each["title"], _benchmark(each)) for each in report.get("benchmarks") or ()),
            *(("veto", words) for words in report["vetoes"]),
            *(("warning", words) for words in report["warnings"]),
        ]
    )
