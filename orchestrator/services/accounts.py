"""Members' accounts at providers, and pools of machines that belong to the installation."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from orchestrator.domain.accounts import Account, Actor, Member, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from orchestrator.ports.joining import SupportsJoining
from orchestrator.ports.providers import (
    Capabilities,
    CredentialsRefused,
    Provider,
    ProviderError,
    SupportsCheck,
    SupportsIdentity,
)
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import find_served_member, require_admin
from orchestrator.services.context import Context, new_id
from orchestrator.services.options import checked
from worker.shared.plain_errors import MAX_KEY, nearest

MAX_CREDENTIALS = 8192
_SECRETIVE = re.compile(r"token|secret|password|api_?key|^key$|credential", re.IGNORECASE)


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
    """Connect a member's account, or (admins) a pool. The providers allow one account per person.

    A member who enters the credentials of their own account thereby agrees that their jobs run there. If an admin
    enters them, the owner has to agree first.
    """
    driver = driver_of(ctx, provider)
    if isinstance(driver, SupportsJoining):
        words = "Machines join by themselves. Create a code with `trainhop accounts code`."
        raise InvalidError(words, [("/provider", words)])
    capabilities = driver.capabilities
    _refuse_secrets(capabilities, config)
    check_settings(driver, config)
    sealed = _sealed(ctx, driver, credentials)
    now = ctx.clock.now()
    with ctx.uow() as tx:
        member = None
        if not capabilities.personal:
            require_admin(actor)
            _refuse_owner(provider, owner)
        else:
            member = find_served_member(
                tx,
                actor,
                owner or actor.member_id,
                "Only the owner or an admin can connect an account. Ask one of them.",
            )
        account = Account(
            id=new_id("account", now),
            provider=provider,
            member_id=member.id if member else None,
            name=name or (f"{member.name}'s {driver.texts.title or provider.capitalize()}" if member else provider),
            config=config,
            credentials=sealed,
            consented_at=now if member is not None and member.id == actor.member_id else None,
            created_at=now,
        )
    _try_credentials(ctx, account)
    _refuse_shared(ctx, account)
    with ctx.uow() as tx:
        known = _of_notebooks(tx, member, provider) if member is not None and sealed else None
        if known is not None:
            account = replace(account, id=known.id, name=name or known.name, created_at=known.created_at)
            tx.accounts.save(account)
        else:
            tx.accounts.add(account)
    ctx.wake()
    return account


def _try_credentials(ctx: Context, account: Account) -> None:
    """Sign in with new credentials, so that wrong ones are never stored.

    Raises `InvalidError` with the provider's words if it refuses them, and `UnavailableError` if it does not answer.
    """
    provider = ctx.providers.get(account.provider)
    if not account.credentials or not isinstance(provider, SupportsCheck):
        return
    try:
        provider.check(account)
    except CredentialsRefused as error:
        words = f"The credentials were refused, and nothing was stored: {error}"
        raise InvalidError(words, [("/credentials", str(error))]) from error
    except ProviderError as error:
        raise UnavailableError(
            f"The credentials could not be tried, and nothing was stored ({error}). Try again later."
        ) from error


def _of_notebooks(tx: Transaction, member: Member, provider: str) -> Account | None:
    """The account on which a member's notebooks are counted, as long as it has no credentials.

    The member's own account then takes its place.
    """
    theirs = (a for a in tx.accounts.all() if (a.provider, a.member_id) == (provider, member.id))
    return next((a for a in theirs if not a.credentials), None)


def _refuse_shared(ctx: Context, account: Account) -> None:
    """Raise `ConflictError` if the account is connected for another member.

    Raises `UnavailableError` if the provider cannot name the owner now. An account with refused credentials passes,
    so that its owner can change its settings: nothing runs with them. Two cases are not noticed: a provider that
    accepts refused credentials again, and two members who connect one account at the same moment.
    """
    provider = ctx.providers.get(account.provider) if account.credentials else None
    if not isinstance(provider, SupportsIdentity):
        return
    try:
        login = provider.login(account)
    except CredentialsRefused:
        return
    except ProviderError as error:
        raise UnavailableError(
            f"The owner of this account could not be verified ({error}). Try again later."
        ) from error
    with ctx.uow() as tx:
        others = [a for a in tx.accounts.all() if a.provider == account.provider and a.member_id != account.member_id]
    if login and any(_login(provider, other) == login for other in others):
        message = (
            f"This {account.provider} account is already connected for another member. Use an account of your own."
        )
        raise ConflictError(message)


def _login(provider: SupportsIdentity, account: Account) -> str:
    try:
        return provider.login(account) if account.credentials else ""
    except ProviderError:
        return ""


def _refuse_owner(provider: str, owner: str | None) -> None:
    if owner is not None:
        message = f"Machines of {provider} are a shared pool, which has no owner. Leave out the owner."
        raise InvalidError(message, [("/owner", message)])


def driver_of(ctx: Context, provider: str) -> Provider:
    """The driver of this name. Raises `InvalidError` if there is none, or it did not load."""
    try:
        return ctx.providers.get(provider)
    except ProviderError as error:
        raise InvalidError(str(error), [("/provider", str(error))]) from error


def _refuse_secrets(capabilities: Capabilities, config: dict[str, Any]) -> None:
    secret_key = next((key for key in config if _SECRETIVE.search(key)), None)
    if capabilities.personal and secret_key is not None:
        raise InvalidError(
            f"{secret_key} looks like a secret, but other members can read settings. Pass it as credentials.",
            [(f"/config/{secret_key}", "pass it as the account's credentials (--token-file)")],
        )


def check_settings(driver: Provider, config: dict[str, Any]) -> None:
    """Raise `InvalidError` for a setting that the driver does not know or cannot read."""
    checked(driver.account_settings, config)


def _sealed(ctx: Context, driver: Provider, credentials: str | None) -> str:
    """The credentials in the form for the database, or nothing. Raises `InvalidError`, which holds no part of them."""
    capabilities = driver.capabilities
    if not capabilities.personal:
        if credentials is not None:
            message = f"Accounts at {capabilities.provider} have no credentials. Leave them out."
            raise InvalidError(message, [("/credentials", message)])
        return ""
    if credentials is None:
        raise InvalidError(
            f"An account at {capabilities.provider} needs its owner's credentials.",
            [("/credentials", f"are missing (--token-file FILE, or - for stdin). {driver.texts.credentials}".strip())],
        )
    return ctx.vault.seal(_one_line(credentials))


def _one_line(credentials: str) -> str:
    """The entered credentials without blanks around them. A JSON object of several lines becomes one line."""
    text = credentials.strip()
    if text.startswith("{") and len(text) <= MAX_CREDENTIALS:
        try:
            text = json.dumps(json.loads(text))
        except (ValueError, RecursionError):
            raise _unfit("are not valid JSON") from None
    if not text:
        raise _unfit("are empty")
    if len(text) > MAX_CREDENTIALS:
        raise _unfit(f"are longer than {MAX_CREDENTIALS} characters (is it the right file?)")
    if not text.isprintable():
        raise _unfit("have line breaks or control characters (is it the right file?)")
    return text


def _unfit(why: str) -> InvalidError:
    return InvalidError(f"the credentials {why}", [("/credentials", why)])


def consent(ctx: Context, actor: Actor, account_id: str) -> Account:
    """The owner agrees that their jobs run on their account. Only the owner can do that."""
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        if account.member_id != actor.member_id:
            raise ForbiddenError(f"Only the owner of {account.name} can allow jobs to run on it. Ask the owner.")
        account.consented_at = account.consented_at or ctx.clock.now()
        tx.accounts.save(account)
    ctx.wake()
    return account


def check(ctx: Context, actor: Actor, account_id: str) -> tuple[Account, str]:
    """Check an account's credentials. Returns the account, and in words its owner or what is wrong with them.

    Raises `UnavailableError` if the provider does not answer. The credentials may then be right or wrong.
    """
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
    problem = ""
    try:
        provider = ctx.providers.get(account.provider)
        message = provider.check(account) if isinstance(provider, SupportsCheck) else "this account needs no sign-in"
    except CredentialsRefused as error:
        message = problem = str(error)
    except ProviderError as error:
        raise UnavailableError(str(error)) from error
    with ctx.uow() as tx:
        current = tx.accounts.get(account.id)
        if current is None:
            raise NotFoundError(f"There is no account {account_id}. List them with `trainhop accounts ls`.")
        if current.credentials == account.credentials:
            current.problem = problem
            current.not_before, current.note = 0.0, ""
            tx.accounts.save(current)
    ctx.wake()
    return current, message


def list_accounts(ctx: Context, actor: Actor) -> list[Account]:
    """Pools and the actor's own accounts. Admins get every account, and only they get a pool's environment."""
    with ctx.uow() as tx:
        matching = [a for a in tx.accounts.all() if a.member_id is None or actor.may_see(a.member_id)]
    if actor.role is Role.ADMIN:
        return matching
    return [
        a if a.member_id else replace(a, config={k: v for k, v in a.config.items() if k != "env"}) for a in matching
    ]


def change_account(
    ctx: Context,
    actor: Actor,
    account_id: str,
    *,
    paused: bool | None = None,
    config: dict[str, Any] | None = None,
    unset: Collection[str] = (),
    credentials: str | None = None,
) -> Account:
    """Pause or open an account, change its settings, set settings back to their defaults, or replace its credentials.

    New credentials are tried first. If they are refused, the account keeps those that it has.
    """
    with ctx.uow() as tx:
        known = owned(tx, actor, account_id)
    sealed = ""
    if config or unset:
        _check_changes(driver_of(ctx, known.provider), known.config, config or {}, unset)
    if credentials is not None:
        sealed = _sealed(ctx, driver_of(ctx, known.provider), credentials)
    if credentials is not None or config or unset:
        changed = replace(
            known, credentials=sealed or known.credentials, config=_changed(known.config, config or {}, unset)
        )
        if sealed:
            _try_credentials(ctx, changed)
        _refuse_shared(ctx, changed)
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        if sealed:
            account.credentials, account.problem = sealed, ""
        if sealed or paused is not None:
            account.not_before, account.note = 0.0, ""
        if paused is not None:
            account.paused = paused
        account.config = _changed(account.config, config or {}, unset)
        tx.accounts.save(account)
    ctx.wake()
    return account


def _changed(config: dict[str, Any], given: dict[str, Any], unset: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in unset} | given


def _check_changes(driver: Provider, config: dict[str, Any], given: dict[str, Any], unset: Collection[str]) -> None:
    """Raise `InvalidError` for a setting that the driver cannot read, or one that cannot be unset."""
    _refuse_secrets(driver.capabilities, given)
    check_settings(driver, given | _required(driver, config, unset))
    known = {*config, *driver.account_settings.model_fields}
    faults = [
        (f"/unset/{place}", _no_unset(driver, key, known))
        for place, key in enumerate(unset)
        if key in given or key not in known or _is_required(driver, key)
    ]
    if faults:
        raise InvalidError("; ".join(words for _, words in faults), faults)


def _required(driver: Provider, config: dict[str, Any], unset: Collection[str]) -> dict[str, Any]:
    """Settings that stay and that the driver cannot do without, so that a change of others is accepted."""
    return {key: value for key, value in config.items() if key not in unset and _is_required(driver, key)}


def _is_required(driver: Provider, key: str) -> bool:
    field = driver.account_settings.model_fields.get(key)
    return field is not None and field.is_required()


def _no_unset(driver: Provider, key: str, known: Collection[str]) -> str:
    if key not in known:
        return f"{key[:MAX_KEY]} is not a setting{nearest(key, sorted(known)) or ''}"
    if _is_required(driver, key):
        return f"{key} has no default. Set it to another value instead"
    return f"{key} is set and unset at once. Choose one"


def remove_account(ctx: Context, actor: Actor, account_id: str) -> None:
    """Disconnect an account without running sessions."""
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        _, busy = tx.leases.live_counts()
        if busy.get(account.id):
            raise ConflictError(
                f"{account.name} has running sessions ({busy[account.id]}). Pause it and wait for them, or cancel them."
            )
        tx.accounts.delete(account.id)
    driver = next((e.provider for e in ctx.providers.entries() if e.name == account.provider), None)
    if isinstance(driver, SupportsJoining):
        driver.forget_machine(account.id)


def owned(tx: Transaction, actor: Actor, account_id: str) -> Account:
    """The account (id or name) if the actor owns it or is an admin. Raises `NotFoundError` or `ForbiddenError`."""
    account = tx.accounts.get(account_id) or next((a for a in tx.accounts.all() if a.name == account_id), None)
    if account is None or (account.member_id is not None and not actor.may_see(account.member_id)):
        raise NotFoundError(f"There is no account {account_id}. List them with `trainhop accounts ls`.")
    if account.member_id is None:
        require_admin(actor)
    return account
