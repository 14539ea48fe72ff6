"""Grants for the files of a gated or private model, a base model or a judge. The token stays on this server.

Large files are read at a temporary address of the hub that needs no sign-in. Small files are kept in the server's own
store for as long as the lease lasts. The machine itself fetches a model that is public.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path

from orchestrator.domain.errors import ConflictError, InvalidError, UnavailableError
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.ports.catalog import ModelFile
from orchestrator.ports.stores import Store
from orchestrator.services.context import Context
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.read_grants import bound
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Grant, GrantKind

PATIENCE_S = 300.0
"""How long a machine that can call waits for a hub that does not answer. One that cannot call is not started."""
REST_S = 300.0
"""Delay of the job's next try after the hub did not answer."""

Inputs = MutableMapping[str, Callable[[], Iterator[bytes]]]
Grants = dict[str, tuple[Grant, ...]]
"""By the field of the assignment, which is also the folder of their keys."""


def granted(ctx: Context, lease: Lease, spec: JobSpec) -> Grants:
    """Grants for a machine that can call.

    Raises `StoreError`, `UnavailableError` while the hub does not answer, and `ConflictError` once the lease was ended
    for it, with the reason on its job. A refusal by the hub fails the job. Silence of the hub does not count against
    the job.
    """
    try:
        found = _look_up(ctx, lease, spec)
    except UnavailableError as error:
        if ctx.clock.now() - (lease.started_at or lease.created_at) < PATIENCE_S:
            raise
        raise _not_now(ctx, lease, error) from error
    shares_disk = ctx.providers.get(lease.provider).capabilities.shares_disk
    store = ctx.stores.local()
    return {
        folder: tuple(_grant(store, lease, folder, file, shares_disk=shares_disk) for file in files)
        for folder, files in found.items()
    }


def staged(ctx: Context, lease: Lease, spec: JobSpec, inputs: Inputs) -> Grants:
    """Grants for a machine that cannot call. Adds the files that must be copied to the machine to `inputs`.

    Raises `ConflictError` as `granted` does.
    """
    try:
        found = _look_up(ctx, lease, spec)
    except UnavailableError as error:
        raise _not_now(ctx, lease, error) from error
    for folder, files in found.items():
        data = {_key(folder, file): file.data for file in files if file.data is not None}
        inputs.update({key: lambda content=content: iter((content,)) for key, content in data.items()})
    return {folder: tuple(_plain(folder, file) for file in files) for folder, files in found.items()}


def _look_up(ctx: Context, lease: Lease, spec: JobSpec) -> dict[str, Sequence[ModelFile]]:
    names = {"model": spec.base_model}
    if spec.evaluation is not None and spec.evaluation.judge is not None:
        names["judge"] = spec.evaluation.judge.model
    try:
        token = token_of(ctx, lease.member_id)
        return {} if token is None else {folder: ctx.catalog.files(name, token) for folder, name in names.items()}
    except InvalidError as error:
        _end(ctx, lease, str(error), retry_at=None)
        raise ConflictError(str(error)) from error


def _key(folder: str, file: ModelFile) -> str:
    return f"{folder}/{file.name}"


def _plain(folder: str, file: ModelFile) -> Grant:
    return Grant(key=_key(folder, file), kind=GrantKind.MODEL, url=file.url, sha256=file.sha256, size=file.size)


def _grant(store: Store, lease: Lease, folder: str, file: ModelFile, *, shares_disk: bool) -> Grant:
    """A grant at an address of the hub, or at a place in the server's own store from which any machine can read."""
    if file.data is None:
        return _plain(folder, file)
    key = f"{prefix(lease)}{file.sha256}"
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(file.data)
        copy.flush()
        store.put(key, Path(copy.name))
    found = store.grant_download(key, GrantKind.MODEL, sha256=file.sha256, size=file.size, shares_disk=shares_disk)
    return bound(found, lease).model_copy(update={"key": _key(folder, file)})


def prefix(lease: Lease) -> str:
    """The folder of the small files of a lease's model. It is separate from the files that its machine may write."""
    return f"jobs/{lease.job_id}/model-f{lease.fence}/"


def sweep(ctx: Context, lease: Lease) -> None:
    """Delete the files that were staged for an ended lease. Raises `StoreError`."""
    store = ctx.stores.local()
    for key in store.keys(prefix(lease)):
        store.delete(key)


def _not_now(ctx: Context, lease: Lease, error: UnavailableError) -> ConflictError:
    _end(ctx, lease, str(error), retry_at=ctx.clock.now() + max(REST_S, error.retry_after_s or 0.0))
    return ConflictError(str(error))


def _end(ctx: Context, lease: Lease, why: str, *, retry_at: float | None) -> None:
    """Close the lease with this reason.

    Its job fails with the reason too, or waits until `retry_at` without counting the lease.
    """
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current, job = tx.leases.get(lease.id), tx.jobs.get(lease.job_id)
        if current is None or job is None or not current.state.is_live:
            return
        end = EndReason.FAILED if retry_at is None else EndReason.LAUNCH_FAILED
        if current.started_at is None:
            current.collected_at = now  # nothing was launched
        current.end(LeaseState.EXPIRED, end, at=now, detail=why)
        tx.leases.save(current)
        if retry_at is None:
            job.fail(why, at=now, actor="server", lease_id=lease.id)
        else:
            job.release(end, detail=why, at=now, actor="server", lease_id=lease.id, retry_at=retry_at, counts=False)
        tx.jobs.save(job)
