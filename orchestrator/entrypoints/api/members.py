"""HTTP endpoints for members, tokens and accounts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import SecretStr

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, CurrentUser, ServerDep, revoke
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import accounts, members

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS)
Id = Annotated[str, Path(max_length=100)]


@router.get("/me", tags=["people"], operation_id="get_me", summary="Get the current member")
def me_(me: CurrentUser) -> responses.Me:
    """The member that the token belongs to."""
    return responses.Me.model_validate(me)


@router.get("/members", tags=["people"], operation_id="list_members", summary="List members")
def list_members(server: ServerDep, _: Admin) -> responses.Items[responses.Member]:
    """For admins."""
    return responses.Items[responses.Member].model_validate({"items": members.list_members(server.ctx)})


@router.post("/members", status_code=201, tags=["people"], operation_id="add_member", summary="Add a member")
def add_member(server: ServerDep, me: Admin, asked: requests.MemberCreate) -> responses.Member:
    """For admins. Then create a token for the member."""
    return responses.Member.model_validate(members.add_member(server.ctx, me, asked.name, asked.role))


@router.delete(
    "/members/{member_id}", status_code=204, tags=["people"], operation_id="remove_member", summary="Remove a member"
)
def remove_member(server: ServerDep, me: Admin, member_id: Id) -> None:
    """For admins. Takes an id or a name. Tokens, logins, accounts and channels are deleted. Jobs and data files stay.

    Refused while the member has an unfinished job, and for yourself.
    """
    members.remove_member(server.ctx, me, member_id)
    server.auth.forget()


@router.get("/tokens", tags=["people"], operation_id="list_tokens", summary="List tokens")
def list_tokens(server: ServerDep, me: CurrentUser) -> responses.Items[responses.Token]:
    """Your tokens, or all members' tokens for an admin. Secrets are not stored."""
    names = {member.id: member.name for member in members.list_members(server.ctx)}
    items = [{**vars(t), "member": names[t.member_id]} for t in members.list_tokens(server.ctx, me)]
    return responses.Items[responses.Token].model_validate({"items": items})


@router.post("/tokens", status_code=201, tags=["people"], operation_id="add_token", summary="Create a token")
def add_token(server: ServerDep, me: CurrentUser, asked: requests.TokenCreate) -> responses.NewToken:
    """The secret is returned only in this answer."""
    token, secret = members.add_token(
        server.ctx, me, member=asked.member or me.member_id, name=asked.name, days=asked.days
    )
    owner = next(m.name for m in members.list_members(server.ctx) if m.id == token.member_id)
    return responses.NewToken.model_validate({**vars(token), "member": owner, "secret": secret})


@router.delete(
    "/tokens/{token_id}", status_code=204, tags=["people"], operation_id="remove_token", summary="Revoke a token"
)
def remove_token(server: ServerDep, me: CurrentUser, token_id: Id) -> None:
    """The token and the member's unused login links stop working at once."""
    revoke(server, me, token_id)


@router.get("/accounts", tags=["accounts"], operation_id="list_accounts", summary="List accounts and pools")
def list_accounts(server: ServerDep, me: CurrentUser) -> responses.Items[responses.Account]:
    """Shared pools and your own accounts, or all accounts for an admin."""
    return responses.Items[responses.Account].model_validate({"items": accounts.list_accounts(server.ctx, me)})


@router.post("/accounts", status_code=201, tags=["accounts"], operation_id="add_account", summary="Connect an account")
def add_account(server: ServerDep, me: CurrentUser, asked: requests.AccountCreate) -> responses.Account:
    """One account per member and provider. Pools need an admin. Connecting your own account is your consent.

    Credentials are tried first. If they are refused, or the provider does not answer, nothing is stored.
    """
    made = accounts.add_account(
        server.ctx,
        me,
        provider=asked.provider,
        name=asked.name,
        owner=asked.owner,
        config=asked.config,
        credentials=_open(asked.credentials),
    )
    return responses.Account.model_validate(made)


@router.patch(
    "/accounts/{account_id}", tags=["accounts"], operation_id="change_account", summary="Change or pause an account"
)
def change_account(
    server: ServerDep, me: CurrentUser, account_id: Id, asked: requests.AccountUpdate
) -> responses.Account:
    """A paused account starts no new sessions. Running sessions continue."""
    changed = accounts.change_account(
        server.ctx,
        me,
        account_id,
        paused=asked.paused,
        config=asked.config,
        unset=asked.unset,
        credentials=_open(asked.credentials),
    )
    return responses.Account.model_validate(changed)


def _open(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


@router.post(
    "/accounts/{account_id}:consent",
    tags=["accounts"],
    operation_id="consent_account",
    summary="Consent to jobs on your account",
)
def consent(server: ServerDep, me: CurrentUser, account_id: Id) -> responses.Account:
    """Only the owner can consent. Needed if an admin connected the account."""
    return responses.Account.model_validate(accounts.consent(server.ctx, me, account_id))


@router.post(
    "/accounts/{account_id}:check",
    tags=["accounts"],
    operation_id="check_account",
    summary="Check an account's credentials",
)
def check(server: ServerDep, me: CurrentUser, account_id: Id) -> responses.CheckedAccount:
    """503 if the provider does not answer. The credentials are then unverified."""
    account, words = accounts.check(server.ctx, me, account_id)
    return responses.CheckedAccount(
        account=responses.Account.model_validate(account), ok=not account.problem, words=words
    )


@router.delete(
    "/accounts/{account_id}",
    status_code=204,
    tags=["accounts"],
    operation_id="remove_account",
    summary="Disconnect an account",
)
def remove_account(server: ServerDep, me: CurrentUser, account_id: Id) -> None:
    """Refused while sessions run on it."""
    accounts.remove_account(server.ctx, me, account_id)
