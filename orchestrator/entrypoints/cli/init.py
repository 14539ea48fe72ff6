"""`trainhop init`: the steps from a new server to a job file, as the dashboard's path has them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import schemas
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, connect
from orchestrator.entrypoints.cli.hub import fits, parameters
from orchestrator.entrypoints.cli.members import read_secret
from orchestrator.entrypoints.cli.output import clean, put, say
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.stores import sign_in
from trainhop.connection import segment
from trainhop.errors import Error
from trainhop.job_file import SCHEMA, SCHEMA_PATH
from worker.shared.files import expanded

app = typer.Typer()

NO_ACCOUNT, KEEP = "none", "keep"
_FILE = """\
# yaml-language-server: $schema={schema}
# Made by `trainhop init`. See what it would do: trainhop plan {file}   Start it: trainhop submit {file}
name: {name}
# A Hugging Face id (org/name, or org/name@revision), or an allowed folder of the server.
base_model: {model}
datasets:
  # JSON Lines, CSV or Parquet. A file of this computer is uploaded when the job is submitted.
  - path: {data}

# `lora` trains with the model in full precision, `qlora` with the model in 4 bits, for small GPUs.
adapter: {adapter}
# Rank of the adapter: more learns more, and needs more memory.
lora_r: 16

# Rows per step, the same on every machine. Each machine cuts them into passes that fit its memory.
global_batch_size: {batch}
num_epochs: 2
# Longer rows are cut off, in tokens.
sequence_len: {sequence_len}
learning_rate: 2.0e-4

# Share of the rows that is kept for validation. 0 trains on all of them.
val_set_size: 0.02
# Questions that the model answers before the first step and at each evaluation.
# sample_prompts: ["Is there a train tonight?"]
"""


@app.command(rich_help_panel="Server")
def init(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The job file to write.")] = Path("job.yaml"),
    account: Annotated[
        str | None, typer.Option(metavar="PROVIDER", help="Connect your account there, or `none` for no account.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file with the account's credentials, or - for stdin.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="STORE", help="Where checkpoints are kept, or `keep` for no change.")
    ] = None,
    client_secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your OAuth client for the store's sign-in.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model.")] = None,
    data: Annotated[str | None, typer.Option(help="The data file.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Sign in with a browser here.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Set up machines, store, model and data, and write a job file with comments. It asks for what is not given."""
    if file.exists() and not force:
        raise CommandError(Exit.USAGE, f"{file} exists. Choose another name, or replace it with --force.")
    if not sys.stdin.isatty() and (model is None or data is None):
        raise CommandError(Exit.USAGE, "Without a terminal, --model and --data are needed.")
    client = connect(context)
    _connect(client, account, token_file)
    _choose_store(client, store, client_secrets, browser=browser)
    chosen, adapter = _choose_model(client, model)
    path = _choose_data(data)
    name = chosen.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    small, named = adapter == "lora", shlex.quote(str(file))
    text = _FILE.format(
        schema=client.url + SCHEMA_PATH,
        file=named,
        name=json.dumps(name),
        model=json.dumps(chosen),
        data=json.dumps(path),
        adapter=adapter,
        batch=8 if small else 16,
        sequence_len=512 if small else 1024,
    )
    file.write_text(text, encoding="utf-8")
    put(str(file))
    say(f"Next: trainhop plan {named}")


@app.command(rich_help_panel="Jobs")
def schema() -> None:
    """Print the JSON Schema of a job file, for an editor."""
    put(SCHEMA.read_text(encoding="utf-8").rstrip())


def _ask(question: str, default: str) -> str:
    """The answer at a terminal, or the default without one."""
    if not sys.stdin.isatty():
        return default
    return str(typer.prompt(question, default=default, err=True)).strip()


def _connect(client: Client, provider: str | None, token_file: str | None) -> None:
    connected = [a for a in listed(client.get("/accounts")) if not a["problem"] and not a["paused"]]
    for each in connected:
        say(f"machines: {clean(each['name'])} ({clean(each['provider'])})")
    taken = {a["provider"] for a in connected if a["has_credentials"]}
    kinds = {p["name"]: p for p in listed(client.get("/providers")) if p["personal"] and not p["problem"]}
    kinds = {name: p for name, p in kinds.items() if name not in taken}
    if provider is None:
        provider = _ask(f"Connect an account at ({', '.join(kinds)}, or {NO_ACCOUNT})", NO_ACCOUNT) if kinds else None
    if provider in (None, NO_ACCOUNT) or provider in taken:
        return
    if provider not in kinds:
        raise CommandError(Exit.USAGE, f"{provider} is none of {', '.join(kinds) or 'the providers'}, or {NO_ACCOUNT}.")
    kind = kinds[provider]
    for line in (*kind["steps"], kind["page"], kind["credentials"]):
        if line:
            say(f"  {clean(line)}")
    if token_file is None and not sys.stdin.isatty():
        raise CommandError(Exit.USAGE, f"--token-file is missing. {clean(kind['credentials'])}")
    secret = read_secret(token_file) if token_file else typer.prompt("Credentials", hide_input=True, err=True)
    config = schemas.ask_missing(kind["settings"], {})
    made = client.post("/accounts", {"provider": provider, "credentials": secret, "config": config})
    say(client.post(f"/accounts/{segment(made['id'])}:check")["words"])


def _choose_store(client: Client, store: str | None, client_secrets: Path | None, *, browser: bool) -> None:
    if store is None and not sys.stdin.isatty():
        return
    known = listed(client.get("/stores"))
    current = next(s["name"] for s in known if s["current"])
    say(f"checkpoints are kept in {clean(current)}")
    if store is None:
        store = _ask(f"Keep them in another store (local, drive, or {KEEP})", KEEP)
    if store in (KEEP, current):
        return
    kind = client.get(f"/stores/{segment(store)}/kind")
    body: dict[str, Any] = {"config": {} if kind["set_up"] else schemas.ask_missing(kind["settings"], {})}
    if client_secrets is None and kind["credentials"] and not kind["set_up"]:
        say(clean(kind["credentials"]))
        client_secrets = Path(_ask("File of your OAuth client", ""))
    if client_secrets is not None:
        body["credentials"] = sign_in(store, read_secret(str(client_secrets)), browser=browser)
    used = client.put(f"/stores/{segment(store)}", body)
    say(f"new files are stored in {clean(used['name'])}: wrote, read and deleted a file")


def _choose_model(client: Client, model: str | None) -> tuple[str, str]:
    """The model and how it is trained."""
    if model is not None:
        return model, _adapter(client, model)
    while True:
        words = _ask("Search for a model", "qwen2.5")
        found = listed(client.get("/base-models", search=words))
        for number, each in enumerate(found, 1):
            access = "gated" if each["gated"] else "open"
            facts = (parameters(each) or "size not known", each["licence"] or "licence not known", access, fits(each))
            say(f"{number:>3}  {clean(each['id'])}: {clean(', '.join(facts))}")
        chosen = _ask("Its number, or Enter to search again", "0")
        if chosen.isdecimal() and 0 < int(chosen) <= len(found):
            return found[int(chosen) - 1]["id"], found[int(chosen) - 1]["adapter"]


def _adapter(client: Client, model: str) -> str:
    """How a model is trained unless the job file says otherwise: by its size, if the hub can tell it."""
    name = model.partition("@")[0]
    if name.startswith((".", "/", "~")):
        return "lora"
    try:
        found = listed(client.get("/base-models", search=name[:100]))
    except Error:  # offline, or the hub does not answer: the plan will tell
        return "lora"
    return next((m["adapter"] for m in found if m["id"] == name), "lora")


def _choose_data(data: str | None) -> str:
    while data is None:
        asked = _ask("Data file", "data.jsonl")
        if expanded(asked).is_file():
            return asked
        say(f"{clean(asked)} is not a file.")
    return data
