"""The client for asyncio. Each call runs the method of `Client` in a thread, so everything is written once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from trainhop import polling, watching
from trainhop.client import Client, Datasets, Jobs, named
from trainhop.connection import find_job
from trainhop.records import Event, Job, Step

P = ParamSpec("P")
T = TypeVar("T")


class _Threaded:
    """Has the methods of `plain`, to be awaited."""

    def __init__(self, client: Client, plain: object) -> None:
        self.client, self.plain = client, plain


def _in_thread(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[_Threaded, P], Awaitable[T]]:
    @wraps(method)
    async def call(threaded: _Threaded, *args: P.args, **options: P.kwargs) -> T:
        return await asyncio.to_thread(method, threaded.plain, *args, **options)

    return call


class AsyncJobs(_Threaded):
    """`client.jobs` with the methods of `Jobs`."""

    submit = _in_thread(Jobs.submit)
    evaluate = _in_thread(Jobs.evaluate)
    evaluations = _in_thread(Jobs.evaluations)
    list = _in_thread(Jobs.list)
    get = _in_thread(Jobs.get)
    pause = _in_thread(Jobs.pause)
    resume = _in_thread(Jobs.resume)
    cancel = _in_thread(Jobs.cancel)
    curve = _in_thread(Jobs.curve)
    sessions = _in_thread(Jobs.sessions)
    output = _in_thread(Jobs.output)
    download_adapter = _in_thread(Jobs.download_adapter)

    async def wait(
        self, job: Job | str, *, timeout_s: float | None = None, on_change: Callable[[Job], object] = lambda _job: None
    ) -> Job:
        """As `Jobs.wait`. It can be cancelled at any time."""
        ident = await self._id(job)
        now: Job | None = None
        async for now in _paced(watching.changes(self.client.connection, ident, timeout_s)):
            on_change(now)
        assert now is not None
        return now

    async def watch(self, job: Job | str) -> AsyncIterator[Event | Step]:
        """As `Jobs.watch`. It can be cancelled at any time."""
        async for found in _paced(watching.updates(self.client.connection, await self._id(job))):
            yield found

    async def _id(self, job: Job | str) -> str:
        return (await asyncio.to_thread(find_job, self.client.connection, named(job)))["id"]


async def _paced(found: Iterator[T | None]) -> AsyncGenerator[T]:
    """The items of a generator that yields None where it is to be left alone for a second."""
    end = object()
    while True:
        item = await asyncio.to_thread(next, found, end)
        if item is end:
            return
        if item is None:
            await asyncio.sleep(polling.PERIOD_S)
        else:
            yield item  # pyright: ignore[reportReturnType]  `end` is no item


class AsyncDatasets(_Threaded):
    """`client.datasets` with the methods of `Datasets`."""

    upload = _in_thread(Datasets.upload)
    upload_rows = _in_thread(Datasets.upload_rows)


class AsyncClient(_Threaded):
    """`Client` for asyncio: the same arguments, and the same methods to be awaited. Use it with `async with`."""

    plan = _in_thread(Client.plan)
    close = _in_thread(Client.close)

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        folders: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        client = Client(url, token=token, folders=folders)
        super().__init__(client, client)
        self.jobs = AsyncJobs(client, client.jobs)
        self.datasets = AsyncDatasets(client, client.datasets)

    @property
    def url(self) -> str:
        """The server's address."""
        return self.client.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
