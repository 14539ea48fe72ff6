"""Settings of the server, from `TRAINHOP_*` variables and the options of `trainhop up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.ports.providers import Limits


def _loopback(url: str) -> str:
    """An address on this computer: credentials go to their provider, or to an emulator of it here, and nowhere else."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError("must be an http address on this computer, for example http://127.0.0.1:8700")
    return url.rstrip("/")


def _address(url: str) -> str:
    """Paths are put behind it, so it ends without a slash."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "must be an address that begins with https:// or http://, for example https://trainhop.example"
        )
    return url.rstrip("/")


def _database(url: str) -> str:
    """An address of a kind that is known; a password in it is not repeated."""
    if url.partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql"):
        raise ValueError("must begin with postgresql:// or sqlite:///")
    return url


Loopback = Annotated[str, AfterValidator(_loopback)]


class Settings(BaseSettings):
    """Every setting there is. Lists are written as JSON; durations are seconds; an empty variable is one that is not set."""

    model_config = SettingsConfigDict(env_prefix="TRAINHOP_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Path("~/.local/share/trainhop")
    host: str = "127.0.0.1"
    port: int = Field(default=8642, ge=0, le=65_535)
    allowed_hosts: tuple[str, ...] = ()
    public_url: Annotated[str, AfterValidator(_address)] | None = None
    database_url: Annotated[str, AfterValidator(_database)] | None = None
    vault_key: SecretStr | None = None
    allowed_folders: tuple[Path, ...] = ()
    trusted_models: tuple[str, ...] = ()
    offline: bool = False
    drive_endpoint: Loopback | None = None
    kaggle_endpoint: Loopback | None = None
    colab_endpoint: Loopback | None = None
    hub_endpoint: Loopback | None = None
    colab_python: str | None = None
    max_upload_bytes: int = 4 << 30

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
        return self.data_dir.expanduser().resolve()

    @property
    def models(self) -> Path:
        """Where the server keeps base models that it fetched itself; jobs may always name them."""
        return self.folder / "models"

    @property
    def hub_cache(self) -> Path | None:
        """Where the hub's client keeps files, if not where it always does: what an emulator gives is nobody else's."""
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
        """What the services go by."""
        return Limits(
            lease_s=self.lease_s,
            report_every_s=self.report_every_s,
            start_grace_s=self.start_grace_s,
            stop_grace_s=self.stop_grace_s,
            mtbf_s=self.mtbf_s,
            trusted_models=frozenset(self.trusted_models),
        )
