"""Starting one session: bring its files, push its script, and find out whether a push whose answer was lost went through."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.domain.model import Account
from orchestrator.ports.providers import LaunchRejected, LaunchRequest, ProviderUnavailable
from orchestrator.providers.kaggle.client import Connection, Push, UnknownKernelError
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.kernel import kernel_source
from orchestrator.providers.kaggle.records import Session
from orchestrator.providers.kaggle.staging import Desk, stage

MAX_SESSION_S = 12 * 3600
TIMEOUT_OVER_S = 300
"""Kaggle's own limit is set this much above the worker's budget: a second pair of eyes, not the first."""
UNSURE_S = 180.0
"""For so long a pushed kernel may not show up yet, and the files of an ended one may not be listed yet."""
GPU_SHAPE = "NvidiaTeslaT4"
"""Two T4 cards; named outright, because Kaggle's default has changed before."""


@dataclass(frozen=True, kw_only=True)
class KernelPlace:
    """Where a session is at Kaggle, and with whom to speak about it."""

    connection: Connection
    owner: str
    slug: str

    def state(self) -> str | None:
        """The kernel's state by its name at Kaggle, None if there is no such kernel."""
        try:
            return self.connection.state(self.owner, self.slug)[0]
        except KaggleError as refusal:
            if refusal.status in (403, 404):  # 403 is also what a name that nobody has is answered with
                return None
            raise


def wants_gpu(account: Account) -> bool:
    """Whether sessions of this account get the T4 machine."""
    return account.config.get("accelerator", "gpu") != "none"


def plain(text: str) -> str:
    """Letters, digits and hyphens, as in Kaggle's addresses."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def slug_of(lease_id: str) -> str:
    """The name of a lease's kernel: fresh for every lease, and found again by the lease alone."""
    return f"trainhop-{plain(lease_id)}"[:50]


def exists(place: KernelPlace) -> bool:
    """Whether this session was started."""
    return place.state() is not None


def start(
    place: KernelPlace,
    request: LaunchRequest,
    desk: Desk,
    noted: Session,
    *,
    kernels: tuple[str, ...],
    about_to_push: Callable[[], None],
) -> None:
    """Stage and push; a refused launch leaves nothing behind at Kaggle.

    `kernels` are `owner/slug` of those whose output the session gets, if it is still there.
    """
    try:
        datasets = stage(desk, request, checkpoint=noted.checkpoint)
        about_to_push()
        _push(place, request, datasets, kernels)
    except (KaggleError, LaunchRejected):
        with contextlib.suppress(ProviderUnavailable):
            remove(place, noted)
        raise


def remove(place: KernelPlace, noted: Session) -> None:
    """Delete what is there for this session alone."""
    place.connection.delete_kernel(place.owner, place.slug)
    if noted.checkpoint:
        place.connection.delete_dataset(place.owner, noted.checkpoint)


def _push(place: KernelPlace, request: LaunchRequest, datasets: tuple[str, ...], kernels: tuple[str, ...]) -> None:
    push = Push(
        slug=place.slug,
        source=kernel_source(request),
        machine_shape=GPU_SHAPE if wants_gpu(request.account) else "",
        internet=_needs_internet(request),
        datasets=datasets,
        kernels=kernels,
        timeout_s=_timeout_s(place.connection, request),
    )
    try:
        try:
            place.connection.push(place.owner, push)
        except UnknownKernelError:
            if not exists(place):  # one that was started runs without it: a second push would run beside the first
                place.connection.push(place.owner, replace(push, kernels=()))
    except KaggleError:
        raise
    except ProviderUnavailable:
        if not exists(place):
            raise  # it may still appear


def _timeout_s(connection: Connection, request: LaunchRequest) -> int:
    """No more than is left of the week's GPU hours: what a session may take is set aside when it starts."""
    longest = min(request.budget_s + TIMEOUT_OVER_S, MAX_SESSION_S)
    if wants_gpu(request.account):
        with contextlib.suppress(ProviderUnavailable):
            left_s = connection.quota().left_s
            longest = min(longest, left_s) if left_s >= 1 else longest  # where nothing is left Kaggle says so itself
    return int(longest)


def _needs_internet(request: LaunchRequest) -> bool:
    """For a server to call, grants with an address, or a base model on the hub."""
    given = request.assignment
    if given is None or request.server_url is not None:
        return True
    grants = (*given.datasets, *given.uploads, *([given.resume] if given.resume else []))
    return any(g.url for g in grants) or not given.spec.base_model.startswith("/")
