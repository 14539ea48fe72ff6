"""The composition root: settings in, a ready server out. The only module that knows every adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.database.channels import NoticeBook
from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine, make_unit_of_work
from orchestrator.adapters.notifier import WebCarrier
from orchestrator.adapters.stores.configured import ConfiguredStores
from orchestrator.adapters.stores.google_drive.object_ids import ObjectIds
from orchestrator.adapters.stores.local import BROKEN_OFF, LocalStore
from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.adapters.tokens import KeyedTokens, write_secret_once
from orchestrator.adapters.vault import FernetVault
from orchestrator.config import Settings
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.model import Account, Member, Role
from orchestrator.ports.notifications import Carrier, ChannelRepository
from orchestrator.ports.providers import Context, Provider, Providers, Store, Stores, StoreUnavailable, Vault
from orchestrator.ports.repository import StoreConfig, TokenInfo, UnitOfWork
from orchestrator.providers.colab import ColabProvider
from orchestrator.providers.colab.calls import Bridge
from orchestrator.providers.local import LocalProvider
from orchestrator.providers.registry import Registry
from orchestrator.services.ids import new_id
from orchestrator.services.notifications import NotificationContext

log = structlog.get_logger()

KAGGLE_FRESH_S, COLAB_FRESH_S, EMULATED_FRESH_S = 10.0, 30.0, 1.0
"""How long what a provider said is believed; every round of dispatching and reconciling asks anew."""
EMULATED_LISTED_S = 5.0
"""An emulator lists all files of a session when it ends: one that left none need not be waited for as long as Kaggle's."""
EMULATED_CHECK = {"limit_s": 8.0, "over_s": 30.0, "probe_s": 400.0, "poll_s": 0.2, "flood_bytes": 256 << 10}
"""An emulator's machines end within seconds, and may train slowly."""
COLAB_POLL_S = 20.0
"""How often the log of a Colab machine is read; every look is a process and a few requests."""

LAUNCHERS = 8
"""Launches under way at once; one slow provider must not hold up another."""


class SystemClock:
    """The computer's own clock."""

    def now(self) -> float:
        return time.time()


def _spawn(pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
    def guarded() -> None:
        try:
            work()
        except Exception:
            log.exception("a launch failed; reconciling will settle it")

    pool.submit(guarded)


@dataclass(kw_only=True)
class App:
    """A wired server. `wake` asks the ticker for a dispatch, `news` for a look at the machines."""

    settings: Settings
    engine: Engine
    context: Context
    store: LocalStore
    wake: threading.Event
    news: threading.Event
    token_file: Path
    book: ChannelRepository
    carrier: Carrier
    _closers: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    @property
    def office(self) -> NotificationContext:
        """What notifications are made with."""
        return NotificationContext(ctx=self.context, book=self.book, carrier=self.carrier)

    def close(self) -> None:
        """Let go of threads, connections and the data folder."""
        for closer in reversed(self._closers):
            closer()


def build(
    settings: Settings, *, server_url: Callable[[], str] | None = None, providers: Providers | None = None
) -> App:
    """Wire a server over its data folder; raises `ConflictError` where another one already uses it."""
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    unlock = _lock(settings.folder)
    _shut(settings)
    engine = make_engine(settings.url)
    upgrade(engine)
    wake, news = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(LAUNCHERS, thread_name_prefix="launch")
    tokens = KeyedTokens.from_file(settings.folder / "secret.key")
    url = server_url or (lambda: f"http://{_reachable(settings.host)}:{settings.port}")
    store = LocalStore(
        settings.folder / "store",
        lambda key: f"{settings.public_url or url()}/api/v1/blobs/{key}",
        tokens.for_lease("blobs").encode(),
    )
    for left in (*settings.folder.glob(BROKEN_OFF), *store.folder.rglob(BROKEN_OFF)):
        left.unlink(missing_ok=True)  # of a server that was killed while it wrote
    uow, vault = make_unit_of_work(engine), _vault(settings)
    stores = ConfiguredStores(
        store, engine, {"drive": lambda config: _make_drive(config, settings, uow, vault, store.links)}
    )
    context = Context(
        uow=uow,
        clock=SystemClock(),
        providers=providers or Registry(lambda kind: _make_provider(kind, settings, vault, stores, news)),
        stores=stores,
        catalog=FolderAndHubCatalog(
            (*settings.allowed_folders, settings.models),
            frozenset(settings.trusted_models),
            offline=settings.offline,
            endpoint=settings.hub_endpoint,
            cache=settings.hub_cache,
        ),
        tokens=tokens,
        limits=settings.limits,
        vault=vault,
        server_url=url,
        public_url=settings.public_url,
        wake=wake.set,
        spawn=lambda work: _spawn(pool, work),
        started_at=time.time(),
    )
    app = App(
        settings=settings,
        engine=engine,
        context=context,
        store=store,
        wake=wake,
        news=news,
        token_file=settings.folder / "admin.token",
        book=NoticeBook(uow),
        carrier=WebCarrier(),
        _closers=[unlock, engine.dispose, stores.close, lambda: pool.shutdown(wait=False, cancel_futures=True)],
    )
    _first_start(app)
    return app


def _make_drive(config: StoreConfig, settings: Settings, uow: UnitOfWork, vault: Vault, links: BlobLinks) -> Store:
    """The Drive store by its configuration; its client libraries are loaded here, by those who use it."""
    try:
        from orchestrator.adapters.stores.google_drive.client import DriveClient
        from orchestrator.adapters.stores.google_drive.login import read_login
        from orchestrator.adapters.stores.google_drive.store import DriveStore
    except ImportError as error:
        raise StoreUnavailable(f"Google Drive needs `pip install 'trainhop[drive]'` ({error})") from error
    client = DriveClient(
        read_login(vault.open(config.credentials), settings.drive_endpoint),
        settings.drive_endpoint,
        on_trouble=lambda words: _note_problem(uow, config.name, words),
        in_trouble=bool(config.problem),
    )
    return DriveStore(client, ObjectIds(uow, config.name), links, config.config["folder"])


def _note_problem(uow: UnitOfWork, store: str, problem: str) -> None:
    with uow() as tx:
        for config in tx.store_configs():
            if config.name == store and config.problem != problem:
                tx.put_store_config(dataclasses.replace(config, problem=problem))


def _vault(settings: Settings) -> FernetVault:
    if settings.vault_key is not None:
        return FernetVault(settings.vault_key.get_secret_value())
    return FernetVault.from_file(settings.folder / "vault.key")


def _make_provider(kind: Any, settings: Settings, vault: Vault, stores: Stores, news: threading.Event) -> Provider:
    """Ours are handed what they need; those of extras are told by their name, for they cannot be imported here."""
    if kind is LocalProvider:
        hub = settings.hub_endpoint
        return LocalProvider(settings.folder / "sessions", news.set, offline=settings.offline, hub_endpoint=hub)
    if kind is ColabProvider:
        return _make_colab(settings, vault, stores)
    if kind.capabilities.provider == "kaggle":
        times = {"fresh_s": KAGGLE_FRESH_S}
        if settings.kaggle_endpoint:
            times = {"fresh_s": EMULATED_FRESH_S, "listed_s": EMULATED_LISTED_S}
        made = kind(vault, settings.folder / "kaggle", settings.kaggle_endpoint, **times)
        if settings.kaggle_endpoint:
            made.limits = dataclasses.replace(made.limits, **EMULATED_CHECK)
        return made
    return kind()


def _make_colab(settings: Settings, vault: Vault, stores: Stores) -> ColabProvider:
    folder, emulated = settings.folder / "colab", settings.colab_endpoint is not None
    return ColabProvider(
        Bridge(settings.colab_python, vault, folder, settings.colab_endpoint),
        folder,
        can_work=lambda: settings.public_url is not None or stores.current().name != stores.local().name,
        any_folder=emulated,
        fresh_s=EMULATED_FRESH_S if emulated else COLAB_FRESH_S,
        poll_s=EMULATED_FRESH_S if emulated else COLAB_POLL_S,
    )


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  compared, not bound


def _lock(folder: Path) -> Callable[[], None]:
    """Hold the data folder for this process; the lock goes with the process, however it ends."""
    handle = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConflictError(
            f"another server already uses {folder}; stop it, or give this one its own folder with --data-dir"
        ) from error
    return lambda: os.close(handle)


def _shut(settings: Settings) -> None:
    """Only this user may read what lies here, also in a data folder that others had made or may look into."""
    folders = [settings.folder / name for name in ("store", "sessions", "kaggle", "colab")]
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
    if settings.database_url is None:
        settings.database.touch(mode=0o600)
    for path in (*folders, *settings.folder.glob(f"{settings.database.name}*")):
        with contextlib.suppress(PermissionError):  # what an operator has put in its place, theirs to shut
            path.chmod(0o700 if path.is_dir() else 0o600)


def _first_start(app: App) -> None:
    """An empty database gets its admin, the admin's token file and the pool of this computer.

    Later on only a token file that was not there counts: the token in it may have been revoked since.
    """
    ctx, now = app.context, app.context.clock.now()
    with ctx.uow() as tx:
        admin = next((m for m in tx.members() if m.role is Role.ADMIN), None)
        is_new = admin is None
        if admin is None:
            admin = Member(id=new_id("member", now), name="admin", role=Role.ADMIN, created_at=now)
            tx.add_member(admin)
        is_new |= write_secret_once(app.token_file, ctx.tokens.new())
        hashed = ctx.tokens.hash(app.token_file.read_text().strip())
        if tx.token(hashed) is None and not is_new:
            log.warning(
                "this token was revoked; remove the file: the next start makes a new one", file=str(app.token_file)
            )
        elif tx.token(hashed) is None:
            made = TokenInfo(id=new_id("token", now), member_id=admin.id, role=Role.ADMIN, name="first", created_at=now)
            tx.add_token(made, hashed)
        pool = next((a for a in tx.accounts() if a.provider == "local"), None)
        config = {"slots": app.settings.local_slots, "session_s": app.settings.local_session_s}
        if pool is None:
            tx.add_account(
                Account(
                    id=new_id("account", now),
                    provider="local",
                    member_id=None,
                    name="this-computer",
                    config=config,
                    created_at=now,
                )
            )
