"""The interface of what exports adapters on the server's own computer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.domain.exports import ExportSettings


class NotExported(Exception):
    """Why there is no export, in one sentence. Nothing was published."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """An export of the PEFT folder `adapter` into the new folder `out`.

    `base` is a folder or a pinned id on the hub. Commands in the report call the export `out_name` and the adapter
    `adapter_name`. `spare_bytes` stay free on the disk.
    """

    adapter: Path
    base: str
    out: Path
    settings: ExportSettings
    out_name: str
    adapter_name: str
    spare_bytes: int


class Exporter(Protocol):
    """Exports adapters, never inside a database transaction."""

    def missing(self) -> str:
        """What has to be installed first, as one sentence. Empty if nothing."""
        ...

    def export(
        self, request: ExportRequest, say: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        """Make and check an export. Returns its report. Raises `NotExported`, also soon after it is cancelled."""
        ...
