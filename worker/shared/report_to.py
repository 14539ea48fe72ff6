"""The key `report_to`: the experiment trackers that a job's curve is written to. The server writes it, not a worker."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from worker.shared.plain_errors import MAX_KEY, nearest
from worker.shared.wire import excerpt

TRACKERS = ("wandb", "trackio", "tensorboard", "mlflow")
NONE = "none"


def _names(given: Any) -> Any:
    """A name or a list of them, as in transformers. `none` is an empty list."""
    names = [given] if isinstance(given, str) else given
    if names is None or names == [NONE]:
        return ()
    if not isinstance(names, list | tuple):
        return names
    for name in names:
        if name not in TRACKERS:
            shown = excerpt(str(name), MAX_KEY)
            raise ValueError(f"there is no tracker '{shown}'{nearest(str(name), TRACKERS) or _ALL}")
    return tuple(name for name in TRACKERS if name in names)


_ALL = f"; there are {', '.join(TRACKERS)}, or {NONE} alone"
ReportTo = Annotated[tuple[str, ...], BeforeValidator(_names), Field(max_length=len(TRACKERS))]
