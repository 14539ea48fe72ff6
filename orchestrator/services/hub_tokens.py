"""Members' tokens for the Hugging Face hub: tried, sealed, used by this server alone and handed to nobody."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.domain.errors import ForbiddenError, InvalidError
from orchestrator.ports.providers import Context, VaultError
from orchestrator.ports.repository import Transaction

MAX_TOKEN = 2_048


@dataclass(frozen=True, kw_only=True)
class HubToken:
    """Whether a member has a token here, and the name of the hub account that it belongs to."""

    stored: bool
    account: str = ""


def set_token(ctx: Context, member_id: str, token: str) -> HubToken:
    """Keep the member's token in place of any earlier one; raises `InvalidError` if the hub does not accept it."""
    token = token.strip()
    if not (token.isascii() and token.isprintable() and 0 < len(token) <= MAX_TOKEN) or " " in token:
        words = "this is no token of the hub: it is one word that begins with hf_"
        raise InvalidError(words, [("/token", words)])
    account = ctx.catalog.whose(token)
    with ctx.uow() as tx:
        _write(tx, member_id, ctx.vault.seal(json.dumps({"token": token, "account": account})))
    return HubToken(stored=True, account=account)


def forget_token(ctx: Context, member_id: str) -> None:
    """Forget the member's token; nothing happens if there is none."""
    with ctx.uow() as tx:
        _write(tx, member_id, "")


def _write(tx: Transaction, member_id: str, sealed: str) -> None:
    found = tx.lock_members(member_id)
    if not found:
        raise ForbiddenError("you are no longer a member of this server")
    found[0].hub_token = sealed
    tx.save_member(found[0])


def stored(ctx: Context, member_id: str) -> HubToken:
    """What may be told of the member's token."""
    kept = _open(ctx, member_id)
    return HubToken(stored=kept is not None, account=kept["account"] if kept else "")


def token_of(ctx: Context, member_id: str) -> str | None:
    """The member's token, for the moment of a call; None if they have none. Not to be called inside a transaction."""
    kept = _open(ctx, member_id)
    return kept["token"] if kept else None


def _open(ctx: Context, member_id: str) -> dict[str, str] | None:
    with ctx.uow() as tx:
        member = tx.member(member_id)
    if member is None or not member.hub_token:
        return None
    try:
        return json.loads(ctx.vault.open(member.hub_token))
    except VaultError as error:
        words = f"your token for the Hugging Face hub is lost ({error}); set it again with `trainhop hub login`"
        raise InvalidError(words, [("/base_model", words)]) from error
