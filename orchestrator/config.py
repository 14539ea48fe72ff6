"""Settings of the server, from `TRAINHOP_*` variables and the options of `trainhop up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.ports.system import Limits, Loopback
from worker.shared.files import expanded
from worker.shared.plain_errors import in_words


def _address(url: str) -> str:
    """The address without a slash at its end, because paths are appended."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "must be an address that begins with https:// or http://, for example https://trainhop.example"
        )
    return url.rstrip("/")


def _database(url: str) -> str:
    """A database URL of a known kind. The error does not repeat a password in it."""
    if url.partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql"):
        raise ValueError("must begin with postgresql:// or sqlite:///")
    return url


M = TypeVar("M", bound=BaseModel)


class Settings(BaseSettings):
    """All settings. Lists are written as JSON. Durations are seconds. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix="TRAINHOP_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Path("~/.local/share/trainhop")
    host: str = "127.0.0.1"
    port: int = Field(default=8642, ge=0, le=65_535)
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    public_url: Annotated[str, AfterValidator(_address)] | None = None
    database_url: Annotated[str, AfterValidator(_database)] | None = None
    vault_key: SecretStr | None = None
    allowed_folders: tuple[Path, ...] = ()
    trusted_models: tuple[str, ...] = ()
    offline: bool = False
    hub_endpoint: Loopback | None = None
    drivers: dict[str, dict[str, Any]] = {}
    max_upload_bytes: int = 4 << 30

    trackers_python: Path | None = None
    """A Python with the libraries of experiment trackers, where they do not fit beside the server's own."""

    local_slots: int = Field(default=1, ge=0)
    local_session_s: float = Field(default=12 * 3600.0, gt=0)

    lease_s: float = Field(default=60.0, gt=0)
    report_every_s: float = Field(default=15.0, gt=0)
    start_grace_s: float = Field(default=180.0, gt=0)
    stop_grace_s: float = Field(default=45.0, gt=0)
    mtbf_s: float = Field(default=21_600.0, gt=0)
    tick_s: float = Field(default=1.0, gt=0)
    reconcile_s: float = Field(default=2.0, gt=0)
    letters_s: float = Field(default=5.0, gt=0)

    @property
    def folder(self) -> Path:
        """The data folder, absolute."""
        return expanded(self.data_dir).resolve()

    @property
    def models(self) -> Path:
        """The folder of base models that the server fetched itself. Jobs may always name them."""
        return self.folder / "models"

    @property
    def hub_cache(self) -> Path | None:
        """The cache folder of the hub's client, or None for its default. Files from an emulator are kept apart."""
        return self.folder / "hub" if self.hub_endpoint else None

    @property
    def database(self) -> Path:
        """The database's file, unless a URL was given."""
        return self.folder / "trainhop.db"

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.database}"

    @property
    def limits(self) -> Limits:
        """The limits of the services."""
        return Limits(
            max_upload_bytes=self.max_upload_bytes,
            lease_s=self.lease_s,
            report_every_s=self.report_every_s,
            start_grace_s=self.start_grace_s,
            stop_grace_s=self.stop_grace_s,
            mtbf_s=self.mtbf_s,
            trusted_models=frozenset(self.trusted_models),
        )

    def of_driver(self, name: str, schema: type[M]) -> M:
        """Settings of the provider or store `name`: from `drivers`, then from variables `TRAINHOP_NAME_KEY`.

        Raises `ValueError`, which names every variable that is wrong.
        """
        prefix = variable_prefix(name)
        reader: Any = create_model(schema.__name__, __base__=(schema, BaseSettings))
        try:
            found = reader(_env_prefix=prefix, _env_ignore_empty=True, **self.drivers.get(name, {}))
        except ValidationError as error:
            wrong = [f"{prefix}{'_'.join(map(str, e['loc'])).upper()}: {in_words(e)}" for e in error.errors()]
            raise ValueError("; ".join(wrong)) from None
        return schema.model_validate(found.model_dump())


def variable_prefix(name: str) -> str:
    """The prefix of the variables of a driver's settings, for example `TRAINHOP_LOCAL_`."""
    return f"TRAINHOP_{name.replace('-', '_').upper()}_"
