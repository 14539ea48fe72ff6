"""Members, their tokens and their accounts; pools of machines that belong to the installation."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from orchestrator.domain.model import Account, Member, Role
from orchestrator.ports.providers import (
    Capabilities,
    Context,
    CredentialsRefused,
    ProviderError,
    SupportsCheck,
    SupportsIdentity,
)
from orchestrator.ports.repository import TokenInfo, Transaction
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor

MAX_CREDENTIALS = 8192
MAX_SLOTS = 1000
MAX_SESSION_S = 30 * 86_400.0
_SECRETIVE = re.compile(r"token|secret|password|api_?key|^key$|credential", re.IGNORECASE)


def require_admin(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor is an admin."""
    if actor.role is not Role.ADMIN:
        raise ForbiddenError("only an admin may do this")


def add_member(ctx: Context, actor: Actor, name: str, role: Role) -> Member:
    """Let a person in."""
    require_admin(actor)
    member = Member(id=new_id("member", ctx.clock.now()), name=name, role=role, created_at=ctx.clock.now())
    with ctx.uow() as tx:
        alike = next((m.name for m in tx.members() if _folded(m.name) == _folded(name)), None)
        if alike is not None:
            raise ConflictError(f"there is already a member called {alike}")
        tx.add_member(member)
    return member


def _folded(name: str) -> str:
    """Equal for names that people would take for the same."""
    return unicodedata.normalize("NFKC", name).casefold()


def add_token(ctx: Context, actor: Actor, *, member: str, name: str, days: float | None) -> tuple[TokenInfo, str]:
    """A new token for a member (name or id), and its secret, which is shown this once."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        owner = _served(tx, actor, member, "only an admin may make tokens for others")
        token = TokenInfo(
            id=new_id("token", now),
            member_id=owner.id,
            role=owner.role,
            name=name,
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
        )
        secret = ctx.tokens.new()
        tx.add_token(token, ctx.tokens.hash(secret))
    return token, secret


def remove_token(ctx: Context, actor: Actor, token_id: str) -> TokenInfo:
    """Make a token useless, and return what it was."""
    with ctx.uow() as tx:
        found = [t for t in tx.tokens() if t.id == token_id and actor.may_see(t.member_id)]
        if not found:
            raise NotFoundError(f"there is no token {token_id}")
        tx.delete_token(token_id)
    return found[0]


def list_tokens(ctx: Context, actor: Actor) -> list[TokenInfo]:
    """The actor's tokens; for an admin everybody's."""
    with ctx.uow() as tx:
        return tx.tokens(None if actor.role is Role.ADMIN else actor.member_id)


def list_members(ctx: Context) -> list[Member]:
    """Everybody on this installation."""
    with ctx.uow() as tx:
        return tx.members()


def find_member(tx: Transaction, name_or_id: str) -> Member:
    """A member by id or name, held in the transaction; raises `NotFoundError`."""
    member = tx.member(name_or_id) or tx.member_by_name(name_or_id)
    held = tx.hold_member(member.id) if member is not None else None
    if held is None:
        raise NotFoundError(f"there is no member {name_or_id}")
    return held


def _served(tx: Transaction, actor: Actor, name_or_id: str, refusal: str) -> Member:
    """Whom the actor may do this for: themselves, and an admin anybody. Others are not told who there is."""
    if actor.role is not Role.ADMIN and name_or_id not in (actor.member_id, actor.name):
        raise ForbiddenError(refusal)
    return find_member(tx, name_or_id)


def add_account(
    ctx: Context,
    actor: Actor,
    *,
    provider: str,
    name: str | None,
    owner: str | None,
    config: dict[str, Any],
    credentials: str | None = None,
) -> Account:
    """Connect a member's account, or (admins) a pool. One account per person and provider is a rule of the providers.

    Who enters the credentials of their own account agrees by doing so that their jobs run there; of one that an admin
    enters, its owner has to agree first.
    """
    capabilities = _capabilities(ctx, provider)
    _refuse_secrets(capabilities, config)
    check_settings(config)
    sealed = _sealed(ctx, capabilities, credentials)
    now = ctx.clock.now()
    with ctx.uow() as tx:
        member = None
        if not capabilities.personal:
            require_admin(actor)
            _refuse_owner(provider, owner)
        else:
            member = _served(tx, actor, owner or actor.member_id, "an account is connected by its owner or an admin")
        account = Account(
            id=new_id("account", now),
            provider=provider,
            member_id=member.id if member else None,
            name=name or (f"{member.name}'s {provider.capitalize()}" if member else provider),
            config=config,
            credentials=sealed,
            consented_at=now if member is not None and member.id == actor.member_id else None,
            created_at=now,
        )
    _refuse_shared(ctx, account)
    with ctx.uow() as tx:
        known = _of_notebooks(tx, member, provider) if member is not None and sealed else None
        if known is not None:
            account = replace(account, id=known.id, name=name or known.name, created_at=known.created_at)
            tx.save_account(account)
        else:
            tx.add_account(account)
    ctx.wake()
    return account


def _of_notebooks(tx: Transaction, member: Member, provider: str) -> Account | None:
    """Where a member's notebooks are counted, as long as no credentials were given: it becomes the account itself."""
    theirs = (a for a in tx.accounts() if (a.provider, a.member_id) == (provider, member.id))
    return next((a for a in theirs if not a.credentials), None)


def _refuse_shared(ctx: Context, account: Account) -> None:
    """Raise `ConflictError` for what is connected for somebody else, `UnavailableError` where whose it is cannot be told now.

    Nothing runs with credentials that are refused, and new ones pass here again; that a provider takes a refusal back by itself
    is not noticed, nor are two who connect one account at the same moment.
    """
    provider = ctx.providers.get(account.provider) if account.credentials else None
    if not isinstance(provider, SupportsIdentity):
        return
    try:
        login = provider.login(account)
    except CredentialsRefused:
        return
    except ProviderError as error:
        raise UnavailableError(f"whose account this is cannot be told now: {error}") from error
    with ctx.uow() as tx:
        others = [a for a in tx.accounts() if a.provider == account.provider and a.member_id != account.member_id]
    if login and any(_login(provider, other) == login for other in others):
        words = f"this account at {account.provider} is connected for another member: one account is one person's"
        raise ConflictError(words)


def _login(provider: SupportsIdentity, account: Account) -> str:
    try:
        return provider.login(account) if account.credentials else ""
    except ProviderError:
        return ""


def _refuse_owner(provider: str, owner: str | None) -> None:
    if owner is not None:
        words = f"machines of {provider} are a pool for everybody and have no owner"
        raise InvalidError(words, [("/owner", words)])


def _capabilities(ctx: Context, provider: str) -> Capabilities:
    try:
        return ctx.providers.get(provider).capabilities
    except ProviderError as error:
        raise InvalidError(str(error), [("/provider", str(error))]) from error


def _refuse_secrets(capabilities: Capabilities, config: dict[str, Any]) -> None:
    found = next((key for key in config if _SECRETIVE.search(key)), None)
    if capabilities.personal and found is not None:
        raise InvalidError(
            f"{found} looks like a secret, and settings can be read by others",
            [(f"/config/{found}", "give it as the account's credentials (--token-file)")],
        )


class _Settings(BaseModel):
    """What every driver reads alike; each may read more."""

    slots: Annotated[int, Field(ge=0, le=MAX_SLOTS)] = 0
    session_s: Annotated[float, Field(gt=0, le=MAX_SESSION_S, allow_inf_nan=False)] = 1.0
    env: dict[str, str] = Field(default_factory=dict)


def check_settings(config: dict[str, Any]) -> None:
    """Raise `InvalidError` for a setting that a driver could not read."""
    try:
        _Settings.model_validate(config)
    except ValidationError as error:
        faults = [(f"/config/{'/'.join(map(str, e['loc']))}", e["msg"]) for e in error.errors()]
        raise InvalidError(f"{faults[0][0][8:]}: {faults[0][1]}", faults) from None


def _sealed(ctx: Context, capabilities: Capabilities, credentials: str | None) -> str:
    """The credentials for the database, or nothing; raises `InvalidError` in words that hold none of them."""
    if not capabilities.personal:
        if credentials is not None:
            words = f"accounts at {capabilities.provider} have no credentials"
            raise InvalidError(words, [("/credentials", words)])
        return ""
    if credentials is None:
        raise InvalidError(
            f"an account at {capabilities.provider} needs its owner's credentials",
            [("/credentials", "are missing (--token-file FILE, or - for stdin)")],
        )
    return ctx.vault.seal(_one_line(credentials))


def _one_line(credentials: str) -> str:
    """What was entered, without the file's blanks around it; a JSON object may have had several lines."""
    text = credentials.strip()
    if text.startswith("{") and len(text) <= MAX_CREDENTIALS:
        try:
            text = json.dumps(json.loads(text))
        except (ValueError, RecursionError):
            raise _unfit("begin like a JSON object but are none") from None
    if not text:
        raise _unfit("are empty")
    if len(text) > MAX_CREDENTIALS:
        raise _unfit(f"are longer than {MAX_CREDENTIALS} characters; is it the right file?")
    if not text.isprintable():
        raise _unfit("hold line breaks or control characters; is it the right file?")
    return text


def _unfit(why: str) -> InvalidError:
    return InvalidError(f"the credentials {why}", [("/credentials", why)])


def consent(ctx: Context, actor: Actor, account_id: str) -> Account:
    """The owner agrees that their jobs run on their account; nobody can do that for them."""
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        if account.member_id != actor.member_id:
            raise ForbiddenError(f"only the owner of {account.name} can agree that jobs run there")
        account.consented_at = account.consented_at or ctx.clock.now()
        tx.save_account(account)
    ctx.wake()
    return account


def check(ctx: Context, actor: Actor, account_id: str) -> tuple[Account, str]:
    """Try an account's credentials: the account, and in words who they belong to or what is wrong with them.

    Raises `UnavailableError` if the provider does not answer, which says nothing about the credentials.
    """
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
    problem = ""
    try:
        provider = ctx.providers.get(account.provider)
        words = provider.check(account) if isinstance(provider, SupportsCheck) else "there is nothing to sign in to"
    except CredentialsRefused as error:
        words = problem = str(error)
    except ProviderError as error:
        raise UnavailableError(str(error)) from error
    with ctx.uow() as tx:
        current = tx.account(account.id)
        if current is None:
            raise NotFoundError(f"there is no account {account_id}")
        if current.credentials == account.credentials:
            current.problem = problem
            current.not_before, current.note = 0.0, ""
            tx.save_account(current)
    ctx.wake()
    return current, words


def list_accounts(ctx: Context, actor: Actor) -> list[Account]:
    """Pools, and the actor's own accounts; for an admin everybody's. A pool's environment is for admins alone."""
    with ctx.uow() as tx:
        found = [a for a in tx.accounts() if a.member_id is None or actor.may_see(a.member_id)]
    if actor.role is Role.ADMIN:
        return found
    return [a if a.member_id else replace(a, config={k: v for k, v in a.config.items() if k != "env"}) for a in found]


def change_account(
    ctx: Context,
    actor: Actor,
    account_id: str,
    *,
    paused: bool | None,
    config: dict[str, Any] | None,
    credentials: str | None = None,
) -> Account:
    """Pause or open an account, change its settings, or replace its credentials."""
    with ctx.uow() as tx:
        found = owned(tx, actor, account_id)
    sealed = ""
    if config is not None:
        _refuse_secrets(_capabilities(ctx, found.provider), config)
        check_settings(config)
    if credentials is not None:
        sealed = _sealed(ctx, _capabilities(ctx, found.provider), credentials)
    if credentials is not None or config is not None:
        changed = replace(found, credentials=sealed or found.credentials, config=found.config | (config or {}))
        _refuse_shared(ctx, changed)
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        if credentials is not None:
            account.credentials, account.problem = sealed, ""
            account.not_before, account.note = 0.0, ""
        if paused is not None:
            account.paused = paused
            account.not_before, account.note = 0.0, ""
        if config is not None:
            account.config = account.config | config
        tx.save_account(account)
    ctx.wake()
    return account


def remove_account(ctx: Context, actor: Actor, account_id: str) -> None:
    """Disconnect an account on which nothing runs."""
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        _, busy = tx.live_counts()
        if busy.get(account.id):
            raise ConflictError(
                f"{account.name} still has sessions that run ({busy[account.id]}): pause it and wait, or cancel them"
            )
        tx.delete_account(account.id)


def owned(tx: Transaction, actor: Actor, account_id: str) -> Account:
    """The account (id or name) if the actor owns it or is an admin; raises `NotFoundError` or `ForbiddenError`."""
    found = tx.account(account_id) or next((a for a in tx.accounts() if a.name == account_id), None)
    if found is None or (found.member_id is not None and not actor.may_see(found.member_id)):
        raise NotFoundError(f"there is no account {account_id}")
    if found.member_id is None:
        require_admin(actor)
    return found
