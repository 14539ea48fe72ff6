"""`trainhop export`: an adapter merged into its base model, or as GGUF for llama.cpp and Ollama."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, facts, put, put_json, say, size
from trainhop.connection import find_job
from trainhop.download import save_adapter
from worker.shared.files import temporary_folder
from worker.shared.process import last_line, tied

app = typer.Typer()


class Form(StrEnum):
    """What is made of an adapter."""

    MERGED = "merged"
    GGUF = "gguf"
    GGUF_ADAPTER = "gguf-adapter"


class Kind(StrEnum):
    """Types of the weights."""

    FP16 = "fp16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


class Onto(StrEnum):
    """Forms of the base model."""

    ORIGINAL = "original"
    NF4 = "nf4"


@app.command(rich_help_panel="Records")
def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="JOB|FOLDER", help="A finished job, or a PEFT folder.")],
    form: Annotated[Form, typer.Option("--format", help="A merged model, a GGUF model, or a GGUF adapter.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the export.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The base model's folder or id. Default: the one that the adapter names."),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--type", help="Type of the weights. Default: fp16 where that fits, else bf16.")
    ] = None,
    onto: Annotated[
        Onto, typer.Option(help="Merge into the original base model, or into the NF4 form that qlora trains on.")
    ] = Onto.ORIGINAL,
    as_json: JsonFlag = False,
) -> None:
    """Export an adapter: merge it into its base model, or convert it to GGUF. The result is checked first."""
    request = {"form": form.value, "out": str(out.absolute()), "base": base, "onto": onto.value}
    request["kind"] = None if kind is None else kind.value
    folder = Path(source)
    # A folder may have the name of a job, for example an export.
    if (folder / "adapter_config.json").is_file():
        report = _run(request | {"adapter": str(folder.absolute())})
    else:
        client = connect(context)
        record = find_job(client, source)
        with temporary_folder("trainhop-export-", None) as temporary:
            save_adapter(client, record, temporary / "adapter")
            report = _run(request | {"adapter": str(temporary / "adapter"), "adapter_name": f"{record['id']}-adapter"})
        report["commands"] = {"adapter": f"trainhop adapter {record['id']} --out {record['id']}-adapter"} | report[
            "commands"
        ]
    if as_json:
        put_json(report)
    else:
        _show(report)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """The export in a process of its own, which loads torch. It says on stderr what it does."""
    command = tied([sys.executable, "-W", "ignore", "-m", "worker.export"])
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer = json.loads(last_line(done.stdout))
    except ValueError:
        raise CommandError(
            Exit.FAILED, f"The export ended without a result (exit code {done.returncode}). Nothing was published."
        ) from None
    if "error" in answer:
        text = str(answer["error"])
        raise CommandError(Exit.FAILED, f"{text[:1].upper()}{text[1:]}.")
    return answer


def _show(report: dict[str, Any]) -> None:
    put(report["path"])
    check, difference = report["check"], report["nf4_difference"]
    checked = (
        f"logits differ by {check['error']:.3%} from base and adapter, the next token is the same for "
        f"{check['same']:.1%} of {check['tokens']}; the adapter moves logits by {check['adapter_effect']:.1%}"
    )
    facts(
        [
            ("format", f"{report['format']}, {report['type']}, {report['architecture']}"),
            ("base", report["base"]),
            ("merged into", {"original": "the original base model", "nf4": "its NF4 form"}.get(report["onto"] or "")),
            (
                "original against NF4",
                None
                if difference is None
                else f"weights differ by {difference['weights']:.1%}, logits by {difference['logits']:.1%}",
            ),
            *((file["name"], f"{size(file['bytes'])}, sha256 {file['sha256']}") for file in report["files"]),
            ("checked", checked),
            *report["commands"].items(),
        ]
    )
    for note in report["notes"]:
        say(clean(f"note: {note}"))
