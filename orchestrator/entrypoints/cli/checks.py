"""The part of `trainhop doctor` that tries machines and stores of others out: Kaggle, Colab, Google Drive."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit, segment
from orchestrator.entrypoints.cli.output import clean, moment, put, put_json, say, seconds
from orchestrator.entrypoints.cli.phrases import listed

ASK_EVERY_S = 2.0
MAX_ANSWER = 1 << 20
"""Characters of a file with a notebook's answer."""
_SIGNS = {"ok": "ok", "failed": "fail", "not asked": "-"}
QUOTA = "the check on a GPU takes about five minutes of this week's GPU hours of the account"
Probe = dict[str, Any]


def kaggle(client: Client, *, account: str | None, gpu: bool, sure: bool, out: Path | None, as_json: bool) -> Exit:
    """Check the machines of a Kaggle account, showing each probe as it ends."""
    chosen = _account(client, account)
    if gpu and not sure:
        _agree()
    path = f"/accounts/{segment(chosen['id'])}"
    try:
        client.post(f"{path}:diagnose", {"gpu": gpu})
        say(f"checking a machine of {clean(chosen['name'])}: about {'four' if gpu else 'two'} minutes")
    except CommandError as error:
        if "under way" not in str(error):
            raise
        say(clean(error.lines[0]))
    shown = set[str]()
    show: Callable[[Iterable[Probe]], None] = (lambda _: None) if as_json else (lambda probes: _show(probes, shown))
    while (found := client.get(f"{path}/diagnosis"))["running"] is not None:
        show(found["running"]["seen"])
        time.sleep(ASK_EVERY_S)
    if found["problem"]:
        raise CommandError(Exit.FAILED, found["problem"])
    check = max(found["checks"], key=lambda each: each["at"])
    show(check["probes"])
    return _conclude(check, "kaggle", out, as_json=as_json)


def colab_cell(client: Client) -> None:
    """Print the cell that checks a Colab runtime."""
    made = client.post("/checks/colab")
    put(made["cell"])
    say("paste this into a cell of a new notebook at colab.research.google.com (Runtime > T4 GPU) and run it")
    if made["reaches"]:
        say("its answer comes to this server by itself; what it prints can also be given to --colab --answer FILE")
    else:
        say("save the last line that it prints to a file, then: trainhop doctor --colab --answer FILE")


def colab_answer(client: Client, file: Path, *, out: Path | None, as_json: bool) -> Exit:
    """Judge what a cell has printed."""
    text = sys.stdin.read(MAX_ANSWER) if str(file) == "-" else _read(file)
    line = next((line.strip() for line in reversed(text.splitlines()) if "@trainhop " in line), "")
    if not line:
        raise CommandError(Exit.USAGE, f"{file} holds no answer of a check: copy the line that begins with @trainhop")
    check = client.post("/checks/colab:answer", {"line": line})
    if not as_json:
        _show(check["probes"], set())
    return _conclude(check, "colab", out, as_json=as_json)


def drive(client: Client, *, as_json: bool) -> Exit:
    """Use an upload session of the Drive without signing in."""
    probe = client.post("/stores/drive:try-upload")
    if as_json:
        put_json(probe)
    else:
        _show([probe], set())
        if probe["status"] == "ok":
            say("machines that hold no credential of yours can send their checkpoints to this Drive")
    return Exit.FAILED if probe["status"] == "failed" else Exit.OK


def _account(client: Client, named: str | None) -> dict[str, Any]:
    found = [a for a in listed(client.get("/accounts")) if a["provider"] == "kaggle"]
    if named is not None:
        found = [a for a in found if named in (a["id"], a["name"])]
    elif len(found) > 1:
        me = client.get("/me")["id"]
        found = [a for a in found if a["member_id"] == me]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(clean(a["name"]) for a in found)
        raise CommandError(Exit.USAGE, f"which account? say --account with one of: {names}")
    if named is not None:
        raise CommandError(Exit.NOT_FOUND, f"there is no Kaggle account {named!r}; see `trainhop accounts ls`")
    raise CommandError(
        Exit.NOT_FOUND,
        "you have no Kaggle account here",
        "connect it: trainhop accounts add kaggle --username NAME --token-file FILE (kaggle.com/settings/api makes one)",
    )


def _agree() -> None:
    if not sys.stdin.isatty():
        raise CommandError(Exit.USAGE, f"{QUOTA}: say --yes to agree")
    say(QUOTA)
    typer.confirm("Go on?", abort=True, err=True)


def _show(probes: Iterable[Probe], shown: set[str]) -> None:
    for probe in probes:
        if probe["name"] in shown:
            continue
        shown.add(probe["name"])
        took = f" ({seconds(probe['seconds'])})" if probe["seconds"] >= 1 else ""
        put(f"{_SIGNS[probe['status']]:<5} {probe['name']:<13} {clean(probe['words'])}{took}")
        if probe["remedy"]:
            put(f"{'':<19} -> {clean(probe['remedy'])}")


def _conclude(check: dict[str, Any], provider: str, out: Path | None, *, as_json: bool) -> Exit:
    from importlib.metadata import version

    report = {"trainhop": version("trainhop"), "provider": provider, **check}
    if out is not None:
        _write(out, json.dumps(report, indent=2) + "\n")
        say(f"{out} holds the report; it names nobody and may be posted")
    failed = [probe for probe in check["probes"] if probe["status"] == "failed"]
    if as_json:
        put_json(report)
    else:
        image = f", image {clean(check['image'])}" if check["image"] else ""
        say(f"checked at {moment(check['at'])}{image}")
        say(f"{len(failed)} of {len(check['probes'])} probes failed" if failed else "nothing is broken")
    return Exit.FAILED if failed else Exit.OK


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as source:
            return source.read(MAX_ANSWER)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{path}: {error.strerror}") from error
