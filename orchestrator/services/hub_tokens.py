"""Members' tokens for the Hugging Face hub: checked, sealed, used only by this server and never passed on."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.domain.errors import ForbiddenError, InvalidError
from orchestrator.ports.repository import Transaction
from orchestrator.ports.system import VaultError
from orchestrator.services.context import Context

MAX_TOKEN = 2_048
LOG_IN = "A push needs your Hugging Face token, one that can write. Set it with `trainhop hub login`."


@dataclass(frozen=True, kw_only=True)
class HubToken:
    """Whether a member has a token here, and the name of the hub account that it belongs to."""

    stored: bool
    account: str = ""


def set_token(ctx: Context, member_id: str, token: str) -> HubToken:
    """Keep the member's token and discard any earlier one. Raises `InvalidError` if the hub does not accept it."""
    token = token.strip()
    if not (token.isascii() and token.isprintable() and 0 < len(token) <= MAX_TOKEN) or " " in token:
        message = "This is not a Hugging Face token. A token is one word that begins with hf_."
        raise InvalidError(message, [("/token", message)])
    account = ctx.catalog.whose(token)
    with ctx.uow() as tx:
        _write(tx, member_id, ctx.vault.seal(json.dumps({"token": token, "account": account})))
    return HubToken(stored=True, account=account)


def forget_token(ctx: Context, member_id: str) -> None:
    """Delete the member's token. Nothing happens if there is none."""
    with ctx.uow() as tx:
        _write(tx, member_id, "")


def _write(tx: Transaction, member_id: str, sealed: str) -> None:
    found = tx.members.get_for_update(member_id)
    if not found:
        raise ForbiddenError("You are no longer a member of this server. Ask an admin.")
    found[0].hub_token = sealed
    tx.members.save(found[0])


def stored(ctx: Context, member_id: str) -> HubToken:
    """Whether the member has a token, and the name of its hub account, without the token itself."""
    kept = _open(ctx, member_id)
    return HubToken(stored=kept is not None, account=kept["account"] if kept else "")


def token_of(ctx: Context, member_id: str) -> str | None:
    """The member's token for one call, or None. Must not be called inside a transaction."""
    kept = _open(ctx, member_id)
    return kept["token"] if kept else None


def refuse_without_write(ctx: Context, member_id: str, repo: str, pointer: str) -> None:
    """Raise `InvalidError` at `pointer` unless the member has a token that may write to the repository.

    It asks the hub, so it must not run in a transaction.
    """
    token = token_of(ctx, member_id)
    try:
        if token is None:
            raise InvalidError(LOG_IN)
        ctx.catalog.refuse_without_write(repo, token)
    except InvalidError as error:
        raise InvalidError(str(error), [(pointer, str(error))]) from None


def _open(ctx: Context, member_id: str) -> dict[str, str] | None:
    with ctx.uow() as tx:
        member = tx.members.get(member_id)
    if member is None or not member.hub_token:
        return None
    try:
        return json.loads(ctx.vault.open(member.hub_token))
    except VaultError as error:
        words = f"Your Hugging Face token could not be decrypted ({error}). Set it again with `trainhop hub login`."
        raise InvalidError(words, [("/base_model", words)]) from error
