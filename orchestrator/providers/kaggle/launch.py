"""Starts a session: stages its files and pushes its script.

If the response to a push was lost, it finds out whether the push succeeded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.ports.providers import Account, LaunchRejected, LaunchRequest, ProviderUnavailable
from orchestrator.providers.kaggle.client import Connection, Push, UnknownKernelError
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.kernel import kernel_source
from orchestrator.providers.kaggle.records import KernelRecord
from orchestrator.providers.kaggle.staging import Desk, stage

MAX_SESSION_S = 12 * 3600
TIMEOUT_OVER_S = 300
"""Kaggle's own limit exceeds the worker's budget by this much. It only counts if the worker's limit fails."""
UNSURE_S = 180.0
"""How long a pushed kernel may be missing, and the files of an ended one may be missing from the list."""
GPU_SHAPE = "NvidiaTeslaT4"
"""Two T4 cards. Set explicitly, because Kaggle has changed its default before."""


@dataclass(frozen=True, kw_only=True)
class KernelPlace:
    """A session's kernel at Kaggle, and the connection to it."""

    connection: Connection
    owner: str
    slug: str

    def state(self) -> str | None:
        """The name of the kernel's state. None if the kernel does not exist."""
        try:
            return self.connection.state(self.owner, self.slug)[0]
        except KaggleError as refusal:
            if refusal.status in (403, 404):  # Kaggle also returns 403 for a name that does not exist
                return None
            raise


def wants_gpu(account: Account) -> bool:
    """Whether sessions of this account get the T4 machine."""
    return account.config.get("accelerator", "gpu") != "none"


def takes_gpu(request: LaunchRequest) -> bool:
    """Whether this session gets the T4 machine."""
    return wants_gpu(request.account) and not request.exports


def plain(text: str) -> str:
    """The text with only letters, digits and hyphens, as in Kaggle's addresses."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def slug_of(lease_id: str) -> str:
    """The kernel's name. Every lease has its own, and it can be derived from the lease."""
    return f"trainhop-{plain(lease_id)}"[:50]


def exists(place: KernelPlace) -> bool:
    """Whether this session was started."""
    return place.state() is not None


def start(
    place: KernelPlace,
    request: LaunchRequest,
    desk: Desk,
    record: KernelRecord,
    *,
    kernels: tuple[str, ...],
    about_to_push: Callable[[], None],
) -> None:
    """Stage the files and push the script. A refused launch leaves nothing behind at Kaggle.

    `kernels` are `owner/slug`. The session gets the output of those that still exist.
    """
    try:
        datasets = stage(desk, request, checkpoint=record.checkpoint)
        about_to_push()
        _push(place, request, datasets, kernels)
    except (KaggleError, LaunchRejected):
        with contextlib.suppress(ProviderUnavailable):
            remove(place, record)
        raise


def remove(place: KernelPlace, record: KernelRecord) -> None:
    """Delete what exists for this session only."""
    place.connection.delete_kernel(place.owner, place.slug)
    if record.checkpoint:
        place.connection.delete_dataset(place.owner, record.checkpoint)


def _push(place: KernelPlace, request: LaunchRequest, datasets: tuple[str, ...], kernels: tuple[str, ...]) -> None:
    push = Push(
        slug=place.slug,
        source=kernel_source(request),
        machine_shape=GPU_SHAPE if takes_gpu(request) else "",
        internet=_needs_internet(request),
        datasets=datasets,
        kernels=kernels,
        timeout_s=_timeout_s(place.connection, request),
    )
    try:
        try:
            place.connection.push(place.owner, push)
        except UnknownKernelError:
            # a kernel that was started runs without it, and a second push would run beside the first
            if not exists(place):
                place.connection.push(place.owner, replace(push, kernels=()))
    except KaggleError:
        raise
    except ProviderUnavailable:
        if not exists(place):
            raise  # the kernel may still appear


def _timeout_s(connection: Connection, request: LaunchRequest) -> int:
    """The time limit, at most what is left of the week's GPU hours. Kaggle reserves the whole limit at the start."""
    longest = min(request.budget_s + TIMEOUT_OVER_S, MAX_SESSION_S)
    if takes_gpu(request):
        with contextlib.suppress(ProviderUnavailable):
            left_s = connection.quota().left_s
            # with nothing left, Kaggle returns its own refusal
            longest = min(longest, left_s) if left_s >= 1 else longest
    return int(longest)


def _needs_internet(request: LaunchRequest) -> bool:
    """Whether the worker calls the server, has grants with a URL, or needs a model from the hub."""
    given = request.assignment
    if given is None or request.server_url is not None:
        return True
    grants = (*given.datasets, *given.uploads, *([given.resume] if given.resume else []))
    return any(g.url for g in grants) or not all(model.startswith("/") for model in given.spec.models)
