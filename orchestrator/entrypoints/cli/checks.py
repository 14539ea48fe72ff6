"""The part of `trainhop doctor` that tries out machines of providers and stores."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.output import clean, moment, put, put_json, say, seconds
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import segment
from trainhop.errors import Error

ASK_EVERY_S = 2.0
MAX_ANSWER = 1 << 20
"""Maximum characters of a file with a check's result."""
_SIGNS = {"ok": "ok", "failed": "fail", "not asked": "-"}
QUOTA = "The GPU check uses about 5 minutes of the account's weekly GPU hours."
Probe = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which provider's machines to check and how, as it was typed."""

    provider: str
    account: str | None
    gpu: bool
    sure: bool
    answer: Path | None
    out: Path | None


def provider(client: Client, order: Order, *, as_json: bool) -> Exit:
    """Check machines of a provider, on an account or by a cell."""
    known = next((p for p in listed(client.get("/providers")) if p["name"] == order.provider), None)
    if known is None:
        raise CommandError(Exit.NOT_FOUND, f"There is no provider {order.provider}. See `trainhop accounts providers`.")
    if known["problem"]:
        raise CommandError(Exit.FAILED, f"{known['title']} cannot be used: {known['problem']}")
    if known["account_check"]:
        if order.answer is not None:
            raise CommandError(
                Exit.USAGE, f"--answer cannot be used with {known['title']}, because its check runs on an account."
            )
        return _on_account(client, known, order, as_json=as_json)
    if not known["cell_check"]:
        raise CommandError(Exit.USAGE, f"There is no check for machines of {known['title']}.")
    if order.gpu or order.account:
        raise CommandError(
            Exit.USAGE, f"--gpu and --account cannot be used with {known['title']}, because you run its check yourself."
        )
    if order.answer is not None:
        return _judge(client, order, order.answer, as_json=as_json)
    if order.out is not None:
        raise CommandError(Exit.USAGE, "--out needs --answer here, because the report contains the result of the cell.")
    _print_cell(client, order.provider)
    return Exit.OK


def _on_account(client: Client, known: dict[str, Any], order: Order, *, as_json: bool) -> Exit:
    """Check the machines of an account, showing each probe as it ends."""
    chosen, gpu = _account(client, known, order.account), order.gpu
    if gpu and not order.sure:
        _agree()
    path = f"/accounts/{segment(chosen['id'])}"
    try:
        client.post(f"{path}:diagnose", {"gpu": gpu})
        say(f"checking {clean(chosen['name'])}, this takes about {'four' if gpu else 'two'} minutes")
    except Error as error:
        if "already running" not in str(error):
            raise
        say(clean(error.lines[0]))
    shown = set[str]()
    show: Callable[[Iterable[Probe]], None] = (lambda _: None) if as_json else (lambda probes: _show(probes, shown))
    while (diagnosis := client.get(f"{path}/diagnosis"))["running"] is not None:
        show(diagnosis["running"]["seen"])
        time.sleep(ASK_EVERY_S)
    if diagnosis["problem"]:
        raise CommandError(Exit.FAILED, diagnosis["problem"])
    check = max(diagnosis["checks"], key=lambda each: each["at"])
    show(check["probes"])
    return _conclude(check, order.provider, order.out, as_json=as_json)


def _print_cell(client: Client, name: str) -> None:
    made = client.post(f"/checks/{segment(name)}")
    put(made["cell"])
    say("Paste this into a cell of a new notebook there, enable a GPU, and run the cell.")
    if made["reaches"]:
        say(f"The cell sends its result to this server. You can also pass its output with --{name} --answer FILE.")
    else:
        say(f"Save the last line of its output to a file. Then run: trainhop doctor --{name} --answer FILE")


def _judge(client: Client, order: Order, file: Path, *, as_json: bool) -> Exit:
    """Evaluate the output of the check's cell."""
    text = sys.stdin.read(MAX_ANSWER) if str(file) == "-" else _read(file)
    line = next((line.strip() for line in reversed(text.splitlines()) if "@trainhop " in line), "")
    if not line:
        raise CommandError(Exit.USAGE, f"{file} has no check result. Copy the line that begins with @trainhop.")
    check = client.post(f"/checks/{segment(order.provider)}:answer", {"line": line})
    if not as_json:
        _show(check["probes"], set())
    return _conclude(check, order.provider, order.out, as_json=as_json)


def drive(client: Client, *, as_json: bool) -> Exit:
    """Test an upload to Google Drive without a sign-in."""
    probe = client.post("/stores/drive:try-upload")
    if as_json:
        put_json(probe)
    else:
        _show([probe], set())
        if probe["status"] == "ok":
            say("Machines without your credentials can upload checkpoints to this Drive.")
    return Exit.FAILED if probe["status"] == "failed" else Exit.OK


def _account(client: Client, known: dict[str, Any], named: str | None) -> dict[str, Any]:
    accounts = [a for a in listed(client.get("/accounts")) if a["provider"] == known["name"]]
    if named is not None:
        accounts = [a for a in accounts if named in (a["id"], a["name"])]
    elif len(accounts) > 1:
        me = client.get("/me")["id"]
        accounts = [a for a in accounts if a["member_id"] == me]
    if len(accounts) == 1:
        return accounts[0]
    if accounts:
        names = ", ".join(clean(a["name"]) for a in accounts)
        raise CommandError(
            Exit.USAGE, f"You have several {known['title']} accounts. Choose one with --account: {names}"
        )
    if named is not None:
        raise CommandError(
            Exit.NOT_FOUND, f"There is no {known['title']} account {named!r}. See `trainhop accounts ls`."
        )
    raise CommandError(
        Exit.NOT_FOUND,
        f"You have no {known['title']} account on this server.",
        f"Connect one: {known['connect']}. {known['credentials']}",
    )


def _agree() -> None:
    if not sys.stdin.isatty():
        raise CommandError(Exit.USAGE, f"{QUOTA} Confirm with --yes.")
    say(QUOTA)
    typer.confirm("Continue?", abort=True, err=True)


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
        say(f"Saved the report to {out}. It has no personal data and can be posted.")
    failed = [probe for probe in check["probes"] if probe["status"] == "failed"]
    if as_json:
        put_json(report)
    else:
        image = f", image {clean(check['image'])}" if check["image"] else ""
        say(f"checked at {moment(check['at'])}{image}")
        say(f"{len(failed)} of {len(check['probes'])} probes failed" if failed else "all probes passed")
    return Exit.FAILED if failed else Exit.OK


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"Could not write {path}: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as source:
            return source.read(MAX_ANSWER)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{path}: {error.strerror}") from error
