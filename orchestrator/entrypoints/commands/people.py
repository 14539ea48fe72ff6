"""Commands about who and where: accounts, members, tokens."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.commands.client import connect, segment
from orchestrator.entrypoints.commands.job_file import assignments
from orchestrator.entrypoints.commands.output import JsonFlag, clean, moment, put, put_json, say, table
from orchestrator.entrypoints.commands.phrases import listed

accounts = typer.Typer(no_args_is_help=True, help="Accounts at providers, and pools of machines.")
members = typer.Typer(no_args_is_help=True, help="The people who use this server.")
tokens = typer.Typer(no_args_is_help=True, help="What lets a person or a program in.")

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id or name.")]


def _answer(made: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        put_json(made)
    else:
        put(text)


@accounts.command("ls")
def list_accounts(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the accounts and pools you may use."""
    found = listed(connect(context).get("/accounts"))
    if as_json:
        put_json(found)
        return
    rows = [
        (
            a["id"],
            a["name"],
            a["provider"],
            a.get("member") or a.get("member_id") or "everyone",
            "paused" if a["paused"] else "open",
            json.dumps(a.get("config") or {}),
            a.get("note"),
        )
        for a in found
    ]
    table(("ID", "NAME", "PROVIDER", "OWNER", "STATE", "CONFIG", "NOTE"), rows)


@accounts.command("add")
def add_account(
    context: typer.Context,
    provider: Annotated[str, typer.Argument(help="local, or another installed driver.")],
    name: Annotated[str, typer.Argument(help="What to call it.")],
    owner: Annotated[str | None, typer.Option(help="Member it belongs to; you, if left out.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Connect an account, or (admins) a pool of machines."""
    body = {"provider": provider, "name": name, "owner": owner, "config": assignments(changes or [])}
    made = connect(context).post("/accounts", {k: v for k, v in body.items() if v is not None})
    _answer(made, as_json, made["id"])


@accounts.command("pause")
def pause_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Start nothing more there; what runs goes on."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"paused": True})
    _answer(changed, as_json, f"{clean(changed['name'])} is paused")


@accounts.command("resume")
def resume_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Open an account again."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"paused": False})
    _answer(changed, as_json, f"{clean(changed['name'])} is open")


@accounts.command("rm")
def remove_account(context: typer.Context, account: AccountArgument) -> None:
    """Disconnect an account on which nothing runs."""
    connect(context).delete(f"/accounts/{segment(account)}")
    say(f"{clean(account)} is removed")


@members.command("ls")
def list_members(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the people who use this server."""
    found = listed(connect(context).get("/members"))
    if as_json:
        put_json(found)
        return
    rows = [(m["id"], m["name"], m["role"], moment(m.get("created_at"))) for m in found]
    table(("ID", "NAME", "ROLE", "SINCE"), rows)


@members.command("add")
def add_member(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call the person.")],
    role: Annotated[str, typer.Option(help="member or admin.")] = "member",
    as_json: JsonFlag = False,
) -> None:
    """Let a person in; give them a token next."""
    made = connect(context).post("/members", {"name": name, "role": role})
    _answer(made, as_json, made["id"])


@tokens.command("ls")
def list_tokens(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List tokens; the secrets themselves are kept nowhere."""
    found = listed(connect(context).get("/tokens"))
    if as_json:
        put_json(found)
        return
    rows = [
        (
            t["id"],
            t["name"],
            t.get("member") or t.get("member_id"),
            t.get("role"),
            moment(t.get("created_at")),
            moment(t.get("expires_at")),
        )
        for t in found
    ]
    table(("ID", "NAME", "MEMBER", "ROLE", "MADE", "EXPIRES"), rows)


@tokens.command("add")
def add_token(
    context: typer.Context,
    member: Annotated[str, typer.Argument(help="Id or name of a member.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "cli",
    days: Annotated[float | None, typer.Option(min=0, help="How long it works; for ever, if left out.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token; it is shown this once."""
    body = {"member": member, "name": name, "days": days}
    made = connect(context).post("/tokens", {k: v for k, v in body.items() if v is not None})
    _answer(made, as_json, made.get("secret") or made.get("token") or made["id"])
    say("keep it: it is not shown again")


@tokens.command("rm")
def remove_token(context: typer.Context, token: Annotated[str, typer.Argument(help="Id of the token.")]) -> None:
    """Make a token useless."""
    connect(context).delete(f"/tokens/{segment(token)}")
    say(f"{clean(token)} is removed")
