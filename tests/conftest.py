"""What all tests share: both databases, a server over a fresh data folder, a clock that stands still, a fake
provider."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

# Libraries read these when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # a tiny model gains nothing from threads and loses much to their waiting

import hypothesis
import pytest
import structlog

from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.providers.colab import ColabProvider
from orchestrator.providers.joined import JoinedProvider
from orchestrator.providers.registry import Registry
from orchestrator.testing import FakeClock, FakePersonalProvider, FakeProvider
from orchestrator.testing.environments import driver_env
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from tests.helpers import forked_process
from tests.helpers.colab_client import MissingError, environment
from tests.helpers.postgres import Cluster, missing_programs
from tests.helpers.requirements import skip_or_fail
from tests.images import Image, load

# How long one example takes says something of the machine's neighbours, and nothing of the code.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Colours and all variables of a traceback take longer than most tests.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# Collecting imports everything. Garbage collections find nothing in it, then or later.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # files of few tests, which are the long ones, would come last
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[forked_process.FOLDER] = tempfile.mkdtemp()
        Path(os.environ[forked_process.FOLDER], "owner").write_text(str(os.getpid()))
    forked_process.install(Path(os.environ[forked_process.FOLDER]))


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ[forked_process.FOLDER])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: several processes share the files, and none works alone on a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


DATABASES = [pytest.param("sqlite"), pytest.param("postgres", marks=pytest.mark.postgres)]


def _migrate(url: str) -> None:
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """One private PostgreSQL for the session, with a migrated template database."""
    if missing := missing_programs():
        skip_or_fail(missing)
    cluster = Cluster()
    try:
        cluster.start()
        cluster.migrate(_migrate)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> Path:
    """A migrated SQLite file to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def empty_database(request, tmp_path):
    """Makes the URL of a database without any table: `empty_database("sqlite")`."""
    made: list[str] = []
    numbers = count()

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / f'empty-{next(numbers)}.db'}"
        cluster: Cluster = request.getfixturevalue("postgres_cluster")
        made.append(cluster.create())
        return made[-1]

    yield make
    for url in made:
        request.getfixturevalue("postgres_cluster").drop(url)


@pytest.fixture(params=DATABASES)
def database_url(request, tmp_path) -> Iterator[str]:
    """A migrated, empty database; every test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        path = tmp_path / "trainhop.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    cluster: Cluster = request.getfixturevalue("postgres_cluster")
    url = cluster.lend()
    yield url
    cluster.take_back(url)


@pytest.fixture(scope="session")
def image() -> Callable[[str], Image]:
    """The built image of a name, `image("kaggle-gpu")`; a test that asks is skipped where it cannot be had."""

    def ready(name: str) -> Image:
        found = load(name)
        if found.problem:
            skip_or_fail(found.problem)
        return found

    return ready


@pytest.fixture
def drive(tmp_path) -> Iterator[Drive]:
    """An emulated Google Drive."""
    with Drive(tmp_path / "drive") as drive:
        yield drive


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubEmulator]:
    """An emulated Hugging Face hub; an operator's own token lies about, and nothing may be asked with it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read from the environment at its import

    monkeypatch.setenv("HF_TOKEN", "hf_of_the_operator")
    with HubEmulator() as hub:
        yield hub
    assert not any("hf_of_the_operator" in (seen.authorization or "") for seen in hub.seen)


@pytest.fixture(scope="session")
def colab_python(tmp_path_factory) -> str:
    """A Python with Colab's official client. Tests that need it are skipped where it cannot be installed."""
    base = tmp_path_factory.getbasetemp()
    try:
        return environment(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
    except MissingError as missing:
        skip_or_fail(str(missing))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider() -> FakeProvider:
    """What is registered as `local`: the pool of every fresh installation."""
    return FakeProvider("local", slots=4, this_computer=True)


@pytest.fixture
def cloud() -> FakePersonalProvider:
    """A provider of personal accounts, registered as `cloud`."""
    return FakePersonalProvider()


@pytest.fixture
def make_server(tmp_path, clock, provider, cloud):
    """Builds a server over `tmp_path`; launches happen at once, time stands still."""
    built: list[App] = []

    def make(url: str, **settings) -> App:
        providers = Registry.of(
            {
                "local": provider,
                "fake": FakeProvider("fake"),
                "cloud": cloud,
                "colab": ColabProvider(driver_env(tmp_path / "colab")),
                "joined": JoinedProvider(driver_env(tmp_path / "joined", clock=clock)),
            }
        )
        fixed = {"data_dir": tmp_path / "data", "database_url": url, "offline": True, "local_slots": 4}
        config = Settings(**(fixed | settings))
        app = build(config, providers=providers)
        app.context = dataclasses.replace(
            app.context,
            clock=clock,
            started_at=clock.now(),
            spawn=lambda work: work(),
            checks=None,  # a process for each upload; tests of the data checks bring their own
        )
        built.append(app)
        return app

    yield make
    for app in built:
        app.close()


@pytest.fixture
def app(database_url, make_server) -> App:
    """A wired server, on both databases. It is closed before its database is given back."""
    return make_server(database_url)


@pytest.fixture
def sqlite_app(make_server, sqlite_template, tmp_path) -> App:
    """A wired server on SQLite, for tests in which the database plays no part."""
    path = tmp_path / "trainhop.db"
    shutil.copyfile(sqlite_template, path)
    return make_server(f"sqlite:///{path}")
