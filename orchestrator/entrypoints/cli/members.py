"""Commands about who and where: accounts, members, tokens."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit, connect, segment
from orchestrator.entrypoints.cli.job_file import assignments
from orchestrator.entrypoints.cli.output import JsonFlag, clean, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import listed

accounts = typer.Typer(no_args_is_help=True, help="Accounts at providers (Kaggle, paid Colab), and pools of machines.")
members = typer.Typer(no_args_is_help=True, help="The people who use this server.")
tokens = typer.Typer(no_args_is_help=True, help="What lets a person or a program in.")

MAX_SECRET = 65_536

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
            _state(a),
            json.dumps(a.get("config") or {}),
            a.get("problem") or a.get("note") or a.get("diagnosis"),
        )
        for a in found
    ]
    table(("ID", "NAME", "PROVIDER", "OWNER", "STATE", "CONFIG", "NOTE"), rows)


@accounts.command("add")
def add_account(
    context: typer.Context,
    provider: Annotated[str, typer.Argument(help="local, or another installed driver.")],
    name: Annotated[str | None, typer.Argument(help="What to call it; named after its owner, if left out.")] = None,
    owner: Annotated[str | None, typer.Option(help="Member it belongs to; you, if left out.")] = None,
    username: Annotated[str | None, typer.Option(help="The owner's name at the provider.")] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The owner's credentials there; - for stdin.")
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Connect an account, or (admins) a pool of machines. Connecting your own is your consent that your jobs run there.

    Colab notebooks need no account. Machines of paid Colab are started for you if you ask for it with `--set mode=cli`; the token
    file is then the token.json that Colab's own client keeps, and `--set accelerator=` names a T4 (the default), L4, G4, A100 or
    H100.
    """
    config = assignments(changes or []) | ({"username": username} if username else {})
    secret = None if token_file is None else read_secret(token_file)
    body = {"provider": provider, "name": name, "owner": owner, "config": config, "credentials": secret}
    made = connect(context).post("/accounts", {k: v for k, v in body.items() if v is not None})
    _answer(made, as_json, made["id"])
    if made["has_credentials"] and not made["consented_at"]:
        say(f"nothing runs there before its owner agrees: trainhop accounts consent {shlex.quote(clean(made['name']))}")


def _state(account: dict[str, Any]) -> str:
    if account["paused"]:
        return "paused"
    if account["has_credentials"] and not account["consented_at"]:
        return "needs consent"
    return "problem" if account["problem"] else "open"


def read_secret(file: str) -> str:
    """What a file or stdin holds; never an argument, which every user of a computer can read."""
    try:
        if file == "-":
            return sys.stdin.read(MAX_SECRET)
        with Path(file).expanduser().open(encoding="utf-8") as source:
            return source.read(MAX_SECRET)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(Exit.USAGE, f"{file}: holds no text; is it the right file?") from None


@accounts.command("change")
def change_account(
    context: typer.Context,
    account: AccountArgument,
    changes: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as slots=2.")],
    as_json: JsonFlag = False,
) -> None:
    """Change settings of an account or a pool; the others stay, and what runs goes on."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"config": assignments(changes)})
    _answer(changed, as_json, f"{clean(changed['name'])}: {clean(json.dumps(changed['config']))}")


@accounts.command("check")
def check_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Try an account's credentials."""
    answer = connect(context).post(f"/accounts/{segment(account)}:check")
    _answer(answer, as_json, clean(answer["words"]))
    if not answer["ok"]:
        raise typer.Exit(Exit.FAILED)


@accounts.command("token")
def replace_token(
    context: typer.Context,
    account: AccountArgument,
    token_file: Annotated[str, typer.Argument(metavar="FILE", help="The new credentials; - for stdin.")],
    as_json: JsonFlag = False,
) -> None:
    """Replace an account's credentials."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"credentials": read_secret(token_file)})
    _answer(changed, as_json, f"{clean(changed['name'])} has new credentials")


@accounts.command("consent")
def consent(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Agree that your jobs run on your account; needed where somebody else has entered it."""
    changed = connect(context).post(f"/accounts/{segment(account)}:consent")
    _answer(changed, as_json, f"your jobs may run on {clean(changed['name'])}")


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


@members.command("rm")
def remove_member(
    context: typer.Context, member: Annotated[str, typer.Argument(metavar="MEMBER", help="Id or name.")]
) -> None:
    """Remove a person whose jobs have ended; tokens and accounts are gone at once, jobs and data files stay."""
    connect(context).delete(f"/members/{segment(member)}")
    say(f"{clean(member)} is removed")


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
            t["member"],
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
    days: Annotated[float | None, typer.Option(min=1, help="How long it works; for ever, if left out.")] = None,
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
