"""The composition root: builds a server from its settings. The only module that knows every adapter."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy import Engine

from orchestrator.adapters import data_folder
from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.chats import ServerChats
from orchestrator.adapters.database.guard import DatabaseGuard, guard_database
from orchestrator.adapters.database.instance import count_live_sessions, count_sealed, is_empty, read_id, write_id
from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine, make_unit_of_work
from orchestrator.adapters.exporter import ProcessExporter
from orchestrator.adapters.hub_publisher import HubPublisher
from orchestrator.adapters.instance import InstanceFolder, Origin, choose_id
from orchestrator.adapters.judge_client import WebJudge
from orchestrator.adapters.notifier import WebNotifier
from orchestrator.adapters.steady_clock import SteadyClock
from orchestrator.adapters.stores.configured import ConfiguredStores
from orchestrator.adapters.stores.local import LocalStore
from orchestrator.adapters.stores.object_ids import ObjectIds
from orchestrator.adapters.stores.registry import StoreRegistry
from orchestrator.adapters.stores.signed_links import BlobLinks
from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.adapters.tokens import KeyedTokens
from orchestrator.adapters.trackers.processes import ProcessTrackers
from orchestrator.adapters.vault import FernetVault
from orchestrator.config import Settings
from orchestrator.ports.chats import Chats
from orchestrator.ports.judges import JudgeClient
from orchestrator.ports.notifications import Notifier
from orchestrator.ports.providers import DriverEnv, Provider, Providers
from orchestrator.ports.repository import UnitOfWork
from orchestrator.ports.stores import Links, StoreConfig, StoreEnv, StoreKind, Stores
from orchestrator.ports.system import Clock, Vault
from orchestrator.providers.registry import Registry
from orchestrator.services.chat_rooms import ChatRooms
from orchestrator.services.chats import ChatContext, RunningChats
from orchestrator.services.context import Context
from orchestrator.services.copied_folder import leave_to_the_original
from orchestrator.services.judge_endpoints import JudgingContext, RunningJudges
from orchestrator.services.notifications import NotificationContext
from orchestrator.services.pushing import PushingContext
from orchestrator.services.reporting import ReportingContext
from orchestrator.services.rounds import Rounds
from orchestrator.services.running_checks import RunningChecks
from orchestrator.services.running_exports import RunningExports
from orchestrator.services.setup import first_start

log = structlog.get_logger()

LAUNCHERS = 8
"""Maximum number of launches at once. With several, a slow provider does not block the others."""


def _spawn(pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
    def guarded() -> None:
        try:
            work()
        except Exception:
            log.exception("a launch failed; reconciling repairs it")

    pool.submit(guarded)


@dataclass(kw_only=True)
class App:
    """A complete server. `wake` triggers a dispatch and `news` a pass over the machines.

    `rounds` knows which of its loops is late, `judges` what it does with judge models, and `running_chats` who chats.
    `chat_rooms` has the questions to sessions on machines. `pushing` is the context of the use cases that push to the
    Hugging Face hub, `reporting` that of those that write to experiment trackers.
    """

    settings: Settings
    engine: Engine
    context: Context
    store: LocalStore
    wake: threading.Event
    news: threading.Event
    token_file: Path
    notifier: Notifier
    judge_client: JudgeClient
    clock: SteadyClock
    guard: DatabaseGuard
    pushing: PushingContext
    reporting: ReportingContext
    rounds: Rounds = field(default_factory=Rounds)
    judges: RunningJudges = field(default_factory=RunningJudges)
    chats: Chats = field(default_factory=ServerChats)
    running_chats: RunningChats = field(default_factory=RunningChats)
    chat_rooms: ChatRooms = field(default_factory=ChatRooms)
    closers: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    @property
    def notifications(self) -> NotificationContext:
        """The context of the use cases that notify members."""
        return NotificationContext(ctx=self.context, notifier=self.notifier)

    @property
    def judging(self) -> JudgingContext:
        """The context of the use cases that call judge models."""
        return JudgingContext(ctx=self.context, client=self.judge_client, running=self.judges)

    @property
    def chatting(self) -> ChatContext:
        """The context of the use cases that chat with an adapter."""
        return ChatContext(ctx=self.context, chats=self.chats, running=self.running_chats, rooms=self.chat_rooms)

    def close(self) -> None:
        """Close threads, connections and the data folder."""
        self.running_chats.stop()
        self.judges.stopping.set()
        for closer in reversed(self.closers):
            closer()


def build(
    settings: Settings,
    *,
    server_url: Callable[[], str] | None = None,
    providers: Providers | None = None,
    origin: Origin | None = None,
) -> App:
    """Build a server over its data folder. `origin` says what is meant by a copied one.

    Raises `ConflictError` if another server uses the folder or the database, or if they are not what they were.
    """
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as undo:
        undo.callback(data_folder.lock(settings.folder))
        engine = make_engine(settings.url)
        undo.callback(engine.dispose)
        guard = guard_database(engine)
        undo.callback(guard.close)
        app = _build(settings, _Ground(engine, guard, origin), server_url, providers)
        app.closers[:0] = [undo.pop_all().close]
    return app


@dataclass(frozen=True)
class _Ground:
    """What a server is built on: its database, and what is known of its data folder."""

    engine: Engine
    guard: DatabaseGuard
    origin: Origin | None


def _build(
    settings: Settings, ground: _Ground, server_url: Callable[[], str] | None, providers: Providers | None
) -> App:
    engine = ground.engine
    instance_id = _open(settings, ground)
    uow = make_unit_of_work(engine, ground.guard.check)
    wake, news = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(LAUNCHERS, thread_name_prefix="launch")
    tokens = KeyedTokens.from_file(settings.folder / "secret.key")
    url = server_url or (lambda: f"http://{_reachable(settings.host)}:{settings.port}")
    links = BlobLinks(
        lambda key: f"{settings.public_url or url()}/api/v1/blobs/{key}", tokens.for_lease("blobs").encode()
    )
    vault, registry = _vault(settings), StoreRegistry()
    clock = SteadyClock(settings.folder / "clock.json")
    make_store_env = _StoreEnvs(settings, uow, vault, links)
    store = _local_store(registry, make_store_env)
    data_folder.remove_unfinished(settings.folder, store.folder)

    stores = ConfiguredStores(store, engine, registry, make_store_env)
    catalog = FolderAndHubCatalog(
        (*settings.allowed_folders, settings.models),
        frozenset(settings.trusted_models),
        offline=settings.offline,
        endpoint=settings.hub_endpoint,
        cache=settings.hub_cache,
    )
    exports, trackers = _exports(settings), ProcessTrackers(settings.folder, python=settings.trackers_python)
    trackers.remove_unfinished()
    context = Context(
        uow=uow,
        clock=clock,
        providers=providers or Registry.installed(_DriverEnvs(settings, vault, clock, stores, news.set, instance_id)),
        stores=stores,
        catalog=catalog,
        looks=TokenLooks(catalog, offline=settings.offline, endpoint=settings.hub_endpoint, cache=settings.hub_cache),
        checks=RunningChecks(),
        exports=exports,
        trackers=trackers,
        tokens=tokens,
        limits=settings.limits,
        vault=vault,
        server_url=url,
        public_url=settings.public_url,
        wake=wake.set,
        spawn=lambda work: _spawn(pool, work),
        started_at=clock.now(),
        instance_id=instance_id,
    )
    app = App(
        settings=settings,
        engine=engine,
        context=context,
        store=store,
        wake=wake,
        news=news,
        token_file=settings.folder / "admin.token",
        notifier=WebNotifier(),
        judge_client=WebJudge(),
        clock=clock,
        guard=ground.guard,
        pushing=_pushing(settings, context),
        reporting=ReportingContext(ctx=context, trackers=trackers),
        closers=[stores.close, exports.close, lambda: pool.shutdown(wait=False, cancel_futures=True)],
    )
    if ground.origin is Origin.COPY:
        leave_to_the_original(context)
    with uow() as tx:
        write_id(tx.connection, instance_id)
    InstanceFolder(settings.folder).keep(instance_id)
    first_start(context, app.token_file, slots=settings.local_slots, session_s=settings.local_session_s)
    return app


def _pushing(settings: Settings, context: Context) -> PushingContext:
    """The context of pushes, without the files of those that were under way when a server was killed."""
    folder = settings.folder / "pushes"
    shutil.rmtree(folder, ignore_errors=True)
    publisher = HubPublisher(is_offline=settings.offline, endpoint=settings.hub_endpoint)
    return PushingContext(ctx=context, publisher=publisher, folder=folder)


def _open(settings: Settings, ground: _Ground) -> str:
    """Check that folder, database and keys belong together and are all there. Returns the instance's id.

    "Missing" is not "first start": a used folder without its database is refused, and so is a database with sealed
    credentials without its key.
    """
    folder = InstanceFolder(settings.folder)
    if ground.origin is None:
        folder.refuse_copy()
    elif ground.origin is Origin.MOVED:
        folder.refuse_running_original()
    data_folder.refuse_missing_parts(
        settings.folder, known=folder.id is not None, database=settings.url, is_empty=is_empty(ground.engine)
    )
    _shut(settings)
    upgrade(ground.engine)
    ground.guard.pin()
    chosen = choose_id(folder.id, read_id(ground.engine), ground.origin, settings.folder)
    _refuse_missing_keys(settings, ground.engine, known=folder.id is not None)
    return chosen


def _refuse_missing_keys(settings: Settings, engine: Engine, *, known: bool) -> None:
    if settings.vault_key is None:
        data_folder.refuse_missing_vault_key(settings.folder, count_sealed(engine))
    if known:
        data_folder.refuse_missing_token_key(settings.folder, count_live_sessions(engine))


@dataclass(frozen=True)
class _StoreEnvs:
    """Makes the environment of a store from its kind and configuration."""

    settings: Settings
    uow: UnitOfWork
    vault: Vault
    links: Links

    def __call__(self, kind: StoreKind, config: StoreConfig) -> StoreEnv:
        chosen = self.settings.of_driver(kind.name, kind.settings)
        return StoreEnv(
            name=config.name,
            folder=self.settings.folder / ("store" if kind.name == LocalStore.name else f"stores/{kind.name}"),
            links=self.links,
            ids=ObjectIds(self.uow, config.name),
            settings=chosen,
            config=config.config,
            credentials=self.vault.open(config.credentials) if config.credentials else "",
            endpoint=getattr(chosen, "endpoint", None),
            report_problem=lambda words: _note_problem(self.uow, config.name, words),
            has_problem=bool(config.problem),
        )


def _local_store(registry: StoreRegistry, make_env: _StoreEnvs) -> LocalStore:
    kind = registry.kind(LocalStore.name)
    store = kind.make(make_env(kind, StoreConfig(name=LocalStore.name, config={}, created_at=0.0)))
    assert isinstance(store, LocalStore), "datasets and the server's own endpoints need this very store"
    return store


def _exports(settings: Settings) -> RunningExports:
    folder = settings.folder / "exports"
    folder.mkdir(mode=0o700, exist_ok=True)
    exporter = ProcessExporter(offline=settings.offline, endpoint=settings.hub_endpoint, cache=settings.hub_cache)
    found = RunningExports(folder, exporter)
    found.remove_unfinished()
    return found


def _note_problem(uow: UnitOfWork, store: str, problem: str) -> None:
    with uow() as tx:
        for config in tx.stores.all():
            if config.name == store and config.problem != problem:
                tx.stores.put(dataclasses.replace(config, problem=problem))


def _vault(settings: Settings) -> FernetVault:
    if settings.vault_key is not None:
        return FernetVault(settings.vault_key.get_secret_value())
    return FernetVault.from_file(settings.folder / "vault.key")


@dataclass(frozen=True)
class _DriverEnvs:
    """Makes the environment of a provider's driver."""

    settings: Settings
    vault: Vault
    clock: Clock
    stores: Stores
    notify: Callable[[], None]
    instance_id: str

    def __call__(self, name: str, driver: type[Provider]) -> DriverEnv:
        chosen = self.settings.of_driver(name, driver.settings)
        folder = self.settings.folder / (driver.folder_name or f"drivers/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        for each in {folder.parent, folder} - {self.settings.folder}:
            data_folder.make_private(each)
        return DriverEnv(
            folder=folder,
            vault=self.vault,
            clock=self.clock,
            settings=chosen,
            endpoint=getattr(chosen, "endpoint", None),
            notify=self.notify,
            can_deliver=self._can_deliver,
            offline=self.settings.offline,
            hub_endpoint=self.settings.hub_endpoint,
            instance_id=self.instance_id,
        )

    def _can_deliver(self) -> bool:
        """Whether a machine elsewhere can call this server, or write to the store in use."""
        return self.settings.public_url is not None or self.stores.current().name != self.stores.local().name


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  compared, not bound


def _shut(settings: Settings) -> None:
    """Allow only this user to read these files, also in a data folder that others created or may read.

    Folders of drivers are made private when the drivers are made.
    """
    store = settings.folder / "store"
    store.mkdir(mode=0o700, exist_ok=True)
    if settings.database_url is None:
        settings.database.touch(mode=0o600)
    for path in (store, *settings.folder.glob(f"{settings.database.name}*")):
        data_folder.make_private(path)
