"""`trainhop export`: an adapter merged into its base model, or as GGUF for llama.cpp and Ollama."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from orchestrator.domain.exports import ExportFormat, ExportSettings, ExportState, Onto, WeightType
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, facts, put, put_json, say, size
from trainhop.connection import find_job
from trainhop.download import fetch, save_adapter
from trainhop.polling import state_word, until_final
from worker.shared.files import temporary_folder, write_atomically
from worker.shared.process import last_line, tied

app = typer.Typer()


@app.command(rich_help_panel="Records")
def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="JOB|FOLDER", help="A finished job, or a PEFT folder.")],
    form: Annotated[ExportFormat, typer.Option("--format", help="A merged model, a GGUF model, or a GGUF adapter.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the export. Default: JOB-FORMAT.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The base model's folder or id. Default: the one that the adapter names."),
    ] = None,
    kind: Annotated[
        WeightType | None, typer.Option("--type", help="Type of the weights. Default: fp16 where that fits, else bf16.")
    ] = None,
    onto: Annotated[
        Onto, typer.Option(help="Merge into the original base model, or into the NF4 form that qlora trains on.")
    ] = Onto.ORIGINAL,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="Let the server make the export, then download it.")
    ] = False,
    on_machine: Annotated[
        bool,
        typer.Option("--on-machine", help="Let a machine of your accounts make it, without a GPU, then download it."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export an adapter: merge it into its base model, or convert it to GGUF. The result is checked first."""
    settings = ExportSettings(format=form, type=kind, onto=onto)
    folder = Path(source)
    # A folder may have the name of a job, for example an export.
    if on_server and on_machine:
        raise CommandError(Exit.USAGE, "Choose one of --on-server and --on-machine.")
    elsewhere = "--on-server" if on_server else "--on-machine" if on_machine else ""
    if (folder / "adapter_config.json").is_file():
        if elsewhere:
            raise CommandError(Exit.USAGE, f"{elsewhere} exports jobs. The server does not have this folder.")
        request = _request(settings, out or Path(f"{folder.absolute().name}-{form.value}"), base)
        report = run_export(request | {"adapter": str(folder.absolute())})
    else:
        client = connect(context)
        record = find_job(client, source)
        chosen = out or Path(f"{record['id']}-{form.value}")
        if elsewhere and base is not None:
            raise CommandError(Exit.USAGE, f"{elsewhere} takes the base model that the job names. Leave --base out.")
        report = (
            _by_other(client, record, settings, chosen, _by_server if on_server else _by_machine)
            if elsewhere
            else _here(client, record, settings, chosen, base)
        )
        report["commands"] = {"adapter": f"trainhop adapter {record['id']} --out {record['id']}-adapter"} | report[
            "commands"
        ]
    if as_json:
        put_json(report)
    else:
        _show(report)


def _request(settings: ExportSettings, out: Path, base: str | None) -> dict[str, Any]:
    kind = None if settings.type is None else settings.type.value
    form, onto = settings.format.value, settings.onto.value
    return {"form": form, "out": str(out.absolute()), "base": base, "onto": onto, "kind": kind}


def _here(
    client: Client, record: dict[str, Any], settings: ExportSettings, out: Path, base: str | None
) -> dict[str, Any]:
    with temporary_folder("trainhop-export-", None) as temporary:
        save_adapter(client, record, temporary / "adapter")
        request = _request(settings, out, base) | {"adapter_name": f"{record['id']}-adapter"}
        return run_export(request | {"adapter": str(temporary / "adapter")})


_Maker = Callable[[Client, str, ExportSettings], tuple[str, dict[str, Any]]]
"""Makes an export of a job, or finds one that exists. Returns the path of its files, and its report."""


def _by_other(
    client: Client, record: dict[str, Any], settings: ExportSettings, out: Path, make: _Maker
) -> dict[str, Any]:
    """Let the server or a machine export, wait, and download what it has made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(Exit.USAGE, f"{out} already exists. Choose another place with --out.")
    files, report = make(client, record["id"], settings)
    return _downloaded(client, files, report, out)


def _by_server(client: Client, job: str, settings: ExportSettings) -> tuple[str, dict[str, Any]]:
    path = f"/jobs/{job}/exports"
    made = next((each for each in client.get(path)["items"] if _is_made(each, settings)), None)
    if made is None:
        client.post(path, vars(settings))
        made = until_final(lambda: client.get(f"{path}/{settings.format}"), _Steps().show, say)
    if made["state"] == ExportState.FAILED:
        raise CommandError(Exit.FAILED, made["doing"])
    return f"{path}/{settings.format}/files", made["report"]


def _by_machine(client: Client, job: str, settings: ExportSettings) -> tuple[str, dict[str, Any]]:
    """It is a job of its own. One with these settings that has not failed is used again."""
    found = client.get(f"/jobs/{job}/machine-exports")["items"]
    same = (each["id"] for each in found if each["state"] not in ("failed", "cancelled") and _is_like(each, settings))
    ident = next(same, None) or client.post(f"/jobs/{job}:export", vars(settings), key=str(uuid.uuid4()))["id"]
    say(f"{ident} makes the export. It continues if you stop waiting; the same command downloads it later")
    ended = until_final(lambda: client.get(f"/jobs/{ident}"), _States().show, say)
    if ended["state"] != "succeeded":
        raise CommandError(Exit.FAILED, ended["message"] or f"Job {ident} is {ended['state']}.")
    (made,) = client.get(f"/jobs/{ident}/machine-exports")["items"]
    return f"/jobs/{ident}/machine-exports/files", made["report"]


def _is_like(export: dict[str, Any], settings: ExportSettings) -> bool:
    return (export["format"], export["type"], export["onto"]) == (settings.format, settings.type, settings.onto)


def _is_made(export: dict[str, Any], settings: ExportSettings) -> bool:
    return (
        (export["format"], export["onto"]) == (settings.format, settings.onto)
        and export["state"] == ExportState.SUCCEEDED
        and settings.type in (None, export["type"])
    )


class _Steps:
    """Says each step of the server once."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, export: dict[str, Any]) -> None:
        """Say what the server does now, if that is new."""
        step = export["doing"] or export["state"]
        if step != self._last and not ExportState(export["state"]).is_final:
            say(clean(step))
        self._last = step


class _States:
    """Says each state of the job once, with the phase of its session."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, job: dict[str, Any]) -> None:
        """Say the state, if that is new."""
        words = state_word(job["state"])
        if session := job.get("session"):
            words += f", {session['phase']}"
        if words != self._last:
            say(words)
        self._last = words


def _downloaded(client: Client, path: str, report: dict[str, Any], out: Path) -> dict[str, Any]:
    """The files of a report in the new folder `out`, which appears when it is complete. A second call resumes."""
    aside = out.with_name(f".{out.name}.download")
    for file in report["files"]:
        if not (aside / file["name"]).is_file():
            say(f"downloading {clean(file['name'])} ({size(file['bytes'])})")
            fetch(client, f"{path}/{quote(file['name'])}", aside / Path(file["name"]).name, file["sha256"])
    place, name = shlex.quote(str(out)), report["path"]
    commands = {program: text.replace(name, place) for program, text in report["commands"].items()}
    report |= {"path": str(out), "commands": commands}
    write_atomically(aside / "trainhop-export.json", json.dumps(report, indent=2) + "\n")
    if out.exists():
        out.rmdir()
    aside.rename(out)
    return report


def run_export(request: dict[str, Any]) -> dict[str, Any]:
    """The report of an export in a process of its own, which loads torch. It says on stderr what it does.

    Raises `CommandError` if nothing was published.
    """
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
