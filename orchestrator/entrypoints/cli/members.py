"""Commands for accounts, members and tokens."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer

from orchestrator.entrypoints.cli import schemas
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.job_file import assignments
from orchestrator.entrypoints.cli.output import JsonFlag, clean, moment, put, put_json, say, table
from orchestrator.entrypoints.cli.phrases import listed
from trainhop.connection import segment
from worker.shared.counted_words import many
from worker.shared.files import expanded

accounts = typer.Typer(no_args_is_help=True, help="Accounts at providers, and pools of machines.")
members = typer.Typer(no_args_is_help=True, help="Members of this server.")
tokens = typer.Typer(no_args_is_help=True, help="Access tokens.")

MAX_SECRET = 65_536

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id or name.")]


def _answer(made: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        put_json(made)
    else:
        put(text)


@accounts.command("ls")
def list_accounts(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the accounts and pools that you can use."""
    items = listed(connect(context).get("/accounts"))
    if as_json:
        put_json(items)
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
        for a in items
    ]
    table(("ID", "NAME", "PROVIDER", "OWNER", "STATE", "CONFIG", "NOTE"), rows)


@accounts.command("providers")
def list_providers(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the installed providers with their requirements and terms."""
    items = listed(connect(context).get("/providers"))
    if as_json:
        put_json(items)
        return
    for each in items:
        put(f"{each['name']}: {each['machines'] or each['title']}")
        for label in ("problem", "credentials", "connect", "terms"):
            if each[label]:
                put(f"  {label}: {clean(each[label])}")
        for key, default, words in schemas.rows(each["settings"]):
            put(f"  --set {key}={default}  {words}")


@accounts.command("add")
def add_account(
    context: typer.Context,
    provider: Annotated[str, typer.Argument(help="The provider's name (see `trainhop accounts providers`).")],
    name: Annotated[str | None, typer.Argument(help="A name for the account (default: the owner's name).")] = None,
    owner: Annotated[str | None, typer.Option(help="The member who owns it (default: you).")] = None,
    username: Annotated[str | None, typer.Option(help="The owner's username at the provider.")] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file with the credentials, or - for stdin.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as slots=2.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Connect an account, or (admins) a pool of machines. Connecting your own is your consent that your jobs run there.

    `trainhop accounts providers` lists the providers, and for each its credentials and its settings for `--set`.
    """
    config = assignments(changes or []) | ({"username": username} if username else {})
    secret = None if token_file is None else read_secret(token_file)
    body = {"provider": provider, "name": name, "owner": owner, "config": config, "credentials": secret}
    made = connect(context).post("/accounts", {k: v for k, v in body.items() if v is not None})
    _answer(made, as_json, made["id"])
    if made["has_credentials"] and not made["consented_at"]:
        say(f"Its owner must allow jobs first: trainhop accounts consent {shlex.quote(clean(made['name']))}")


def _state(account: dict[str, Any]) -> str:
    if account["paused"]:
        return "paused"
    if account["has_credentials"] and not account["consented_at"]:
        return "needs consent"
    return "problem" if account["problem"] else "open"


def read_secret(file: str) -> str:
    """Read a secret from a file or stdin. An argument would be visible to all users of the computer."""
    try:
        if file == "-":
            return sys.stdin.read(MAX_SECRET)
        with expanded(file).open(encoding="utf-8") as source:
            return source.read(MAX_SECRET)
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(Exit.USAGE, f"{file} is not a text file. Check the path.") from None


def read_key(file: str | None) -> str:
    """A key from a file or stdin, or typed at a terminal. Empty if there is none."""
    if file is not None:
        return read_secret(file).strip()
    if not sys.stdin.isatty():
        return ""
    return str(typer.prompt("Key (empty if it needs none)", default="", show_default=False, hide_input=True, err=True))


@accounts.command("change")
def change_account(
    context: typer.Context,
    account: AccountArgument,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as slots=2.")
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="KEY", help="A setting that gets its default again.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change settings of an account or a pool. Running sessions continue."""
    if not (changes or unset):
        raise CommandError(Exit.USAGE, "Nothing to change. Use --set KEY=VALUE or --unset KEY.")
    body = {"config": assignments(changes or []), "unset": unset or []}
    changed = connect(context).patch(f"/accounts/{segment(account)}", body)
    _answer(changed, as_json, f"{clean(changed['name'])}: {clean(json.dumps(changed['config']))}")


@accounts.command("check")
def check_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Check an account's credentials."""
    answer = connect(context).post(f"/accounts/{segment(account)}:check")
    _answer(answer, as_json, clean(answer["words"]))
    if not answer["ok"]:
        raise typer.Exit(Exit.FAILED)


@accounts.command("token")
def replace_token(
    context: typer.Context,
    account: AccountArgument,
    token_file: Annotated[str, typer.Argument(metavar="FILE", help="A file with the new credentials, or - for stdin.")],
    as_json: JsonFlag = False,
) -> None:
    """Replace an account's credentials."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"credentials": read_secret(token_file)})
    _answer(changed, as_json, f"replaced the credentials of {clean(changed['name'])}")


@accounts.command("consent")
def consent(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Allow your jobs to run on your account. Needed if an admin connected it."""
    changed = connect(context).post(f"/accounts/{segment(account)}:consent")
    _answer(changed, as_json, f"your jobs can now run on {clean(changed['name'])}")


@accounts.command("pause")
def pause_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Start no new sessions on an account. Running sessions continue."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"paused": True})
    _answer(changed, as_json, f"paused {clean(changed['name'])}")


@accounts.command("resume")
def resume_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Resume a paused account."""
    changed = connect(context).patch(f"/accounts/{segment(account)}", {"paused": False})
    _answer(changed, as_json, f"resumed {clean(changed['name'])}")


@accounts.command("code")
def make_code(
    context: typer.Context,
    shared: Annotated[bool, typer.Option("--shared", help="For the jobs of all members (admins).")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Create a code with which a machine of your own joins. It works once."""
    made = connect(context).post(f"/machine-codes?shared={str(shared).lower()}")
    _answer(made, as_json, clean(made["command"]))
    if not as_json:
        say(f"Run it on the machine. It works once, until {moment(made['expires_at'])}.")
        if made["note"]:
            say(f"note: {clean(made['note'])}")


@accounts.command("drain")
def drain_account(context: typer.Context, account: AccountArgument, as_json: JsonFlag = False) -> None:
    """Pause an account, and have its sessions save and end, for example before a restart of its machine."""
    drained = connect(context).post(f"/accounts/{segment(account)}:drain")
    words = many(drained["sessions"], "session")
    _answer(drained, as_json, f"paused {clean(drained['account']['name'])}: {words} will save and end")


@accounts.command("rm")
def remove_account(context: typer.Context, account: AccountArgument) -> None:
    """Disconnect an account without running sessions."""
    connect(context).delete(f"/accounts/{segment(account)}")
    say(f"removed {clean(account)}")


@members.command("ls")
def list_members(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List members."""
    items = listed(connect(context).get("/members"))
    if as_json:
        put_json(items)
        return
    rows = [(m["id"], m["name"], m["role"], moment(m.get("created_at"))) for m in items]
    table(("ID", "NAME", "ROLE", "SINCE"), rows)


@members.command("add")
def add_member(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The member's name.")],
    role: Annotated[str, typer.Option(help="member, viewer or admin.")] = "member",
    as_json: JsonFlag = False,
) -> None:
    """Add a member. Then create a token for them."""
    made = connect(context).post("/members", {"name": name, "role": role})
    _answer(made, as_json, made["id"])


@members.command("rm")
def remove_member(
    context: typer.Context, member: Annotated[str, typer.Argument(metavar="MEMBER", help="Id or name.")]
) -> None:
    """Remove a member without unfinished jobs. Tokens and accounts are deleted, jobs and data files stay."""
    connect(context).delete(f"/members/{segment(member)}")
    say(f"removed {clean(member)}")


@members.command("settings")
def settings(
    context: typer.Context,
    everyone_sees_jobs: Annotated[
        bool | None, typer.Option(help="Whether all members see all jobs. Only an admin can change this.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show or change what members see of each other. Actions on a job stay those of its owner and of admins."""
    client = connect(context)
    body = {"everyone_sees_jobs": everyone_sees_jobs}
    found = client.get("/team") if everyone_sees_jobs is None else client.put("/team", body)
    _answer(found, as_json, f"members see {'all jobs' if found['everyone_sees_jobs'] else 'their own jobs'}")


@tokens.command("ls")
def list_tokens(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List tokens. Secrets are not stored."""
    items = listed(connect(context).get("/tokens"))
    if as_json:
        put_json(items)
        return
    rows = [
        (t["id"], t["name"], t["member"], t.get("role"), moment(t.get("created_at")), moment(t.get("expires_at")))
        for t in items
    ]
    table(("ID", "NAME", "MEMBER", "ROLE", "CREATED", "EXPIRES"), rows)


@tokens.command("add")
def add_token(
    context: typer.Context,
    member: Annotated[str, typer.Argument(help="A member's id or name.")],
    name: Annotated[str, typer.Option(help="A name for the token.")] = "cli",
    days: Annotated[float | None, typer.Option(min=1, help="Days until it expires (default: never).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a token. It is shown only once."""
    body = {"member": member, "name": name, "days": days}
    made = connect(context).post("/tokens", {k: v for k, v in body.items() if v is not None})
    _answer(made, as_json, made.get("secret") or made.get("token") or made["id"])
    say("Save it now. It is not shown again.")


@tokens.command("rm")
def remove_token(context: typer.Context, token: Annotated[str, typer.Argument(help="The token's id.")]) -> None:
    """Revoke a token."""
    connect(context).delete(f"/tokens/{segment(token)}")
    say(f"revoked {clean(token)}")
