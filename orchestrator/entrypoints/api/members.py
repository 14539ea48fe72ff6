"""Members, tokens and accounts over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import SecretStr

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, CurrentUser, PlainTextRoute, ServerDep, revoke
from orchestrator.services import accounts, member_removal

router = APIRouter(route_class=PlainTextRoute, responses=PROBLEMS)
Id = Annotated[str, Path(max_length=100)]


@router.get("/me", tags=["people"], operation_id="get_me", summary="Who this token belongs to")
def me_(me: CurrentUser) -> responses.Me:
    """The caller as the server knows them."""
    return responses.Me.model_validate(me)


@router.get("/members", tags=["people"], operation_id="list_members", summary="Everybody here")
def list_members(server: ServerDep, _: Admin) -> responses.Items[responses.Member]:
    """For admins."""
    return responses.Items[responses.Member].model_validate({"items": accounts.list_members(server.ctx)})


@router.post("/members", status_code=201, tags=["people"], operation_id="add_member", summary="Let a person in")
def add_member(server: ServerDep, me: Admin, asked: requests.MemberCreate) -> responses.Member:
    """For admins. Give the person a token next."""
    return responses.Member.model_validate(accounts.add_member(server.ctx, me, asked.name, asked.role))


@router.delete(
    "/members/{member_id}", status_code=204, tags=["people"], operation_id="remove_member", summary="Remove a person"
)
def remove_member(server: ServerDep, me: Admin, member_id: Id) -> None:
    """For admins; a name will do. Their tokens, sessions, accounts and channels are gone at once; their jobs and data files stay.

    Refused while a job of theirs has not ended, and for yourself.
    """
    member_removal.remove_member(server.ctx, me, member_id)
    server.auth.forget()


@router.get("/tokens", tags=["people"], operation_id="list_tokens", summary="Your tokens")
def list_tokens(server: ServerDep, me: CurrentUser) -> responses.Items[responses.Token]:
    """For an admin everybody's. Secrets are kept nowhere."""
    names = {member.id: member.name for member in accounts.list_members(server.ctx)}
    items = [{**vars(t), "member": names[t.member_id]} for t in accounts.list_tokens(server.ctx, me)]
    return responses.Items[responses.Token].model_validate({"items": items})


@router.post("/tokens", status_code=201, tags=["people"], operation_id="add_token", summary="Make a token")
def add_token(server: ServerDep, me: CurrentUser, asked: requests.TokenCreate) -> responses.NewToken:
    """The secret is in this answer and nowhere else."""
    token, secret = accounts.add_token(
        server.ctx, me, member=asked.member or me.member_id, name=asked.name, days=asked.days
    )
    owner = next(m.name for m in accounts.list_members(server.ctx) if m.id == token.member_id)
    return responses.NewToken.model_validate({**vars(token), "member": owner, "secret": secret})


@router.delete(
    "/tokens/{token_id}", status_code=204, tags=["people"], operation_id="remove_token", summary="Revoke a token"
)
def remove_token(server: ServerDep, me: CurrentUser, token_id: Id) -> None:
    """It is useless from now on, and with it the member's login links that nobody has used yet."""
    revoke(server, me, token_id)


@router.get("/accounts", tags=["accounts"], operation_id="list_accounts", summary="Accounts and pools you may use")
def list_accounts(server: ServerDep, me: CurrentUser) -> responses.Items[responses.Account]:
    """Pools, and your own accounts; for an admin everybody's."""
    return responses.Items[responses.Account].model_validate({"items": accounts.list_accounts(server.ctx, me)})


@router.post("/accounts", status_code=201, tags=["accounts"], operation_id="add_account", summary="Connect an account")
def add_account(server: ServerDep, me: CurrentUser, asked: requests.AccountCreate) -> responses.Account:
    """One account per member and provider; pools are an admin's. Entering your own credentials is your consent."""
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
    "/accounts/{account_id}", tags=["accounts"], operation_id="change_account", summary="Pause or change an account"
)
def change_account(
    server: ServerDep, me: CurrentUser, account_id: Id, asked: requests.AccountUpdate
) -> responses.Account:
    """Pausing keeps new sessions away; what runs goes on."""
    changed = accounts.change_account(
        server.ctx,
        me,
        account_id,
        paused=asked.paused,
        config=asked.config,
        credentials=_open(asked.credentials),
    )
    return responses.Account.model_validate(changed)


def _open(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


@router.post(
    "/accounts/{account_id}:consent",
    tags=["accounts"],
    operation_id="consent_account",
    summary="Agree that jobs run on your account",
)
def consent(server: ServerDep, me: CurrentUser, account_id: Id) -> responses.Account:
    """Only its owner can; needed where somebody else entered the account."""
    return responses.Account.model_validate(accounts.consent(server.ctx, me, account_id))


@router.post(
    "/accounts/{account_id}:check",
    tags=["accounts"],
    operation_id="check_account",
    summary="Try an account's credentials",
)
def check(server: ServerDep, me: CurrentUser, account_id: Id) -> responses.CheckedAccount:
    """503 if the provider does not answer, which says nothing about the credentials."""
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
    """Refused while something runs there."""
    accounts.remove_account(server.ctx, me, account_id)
