"""Batches concurrent small writes into one transaction and one thread call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.from_thread

from orchestrator.domain.errors import TrainhopError, UnavailableError
from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context

MAX_BATCH = 128
T = TypeVar("T")
Piece = Callable[[Transaction], T]


@dataclass(frozen=True)
class _Waiting:
    order: tuple[str, int]
    piece: Piece[Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True)
class _Refused:
    error: Exception


class WriteBatcher:
    """Collects writes while the previous batch is committed. A caller gets its answer after the commit.

    A write can run twice (again alone, if another one broke the transaction). It raises a `TrainhopError` only before
    it writes.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, order: tuple[str, int], piece: Piece[T]) -> T:
        """Run this write and return its answer after the commit. `order` starts with the id of the row it locks."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(order, piece, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await future

    def write_from_thread(self, order: tuple[str, int], piece: Piece[T]) -> T:
        """The same for work in a thread of Starlette's pool, which waits."""
        return anyio.from_thread.run(self.write, order, piece)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            # Sorted by id, so that batches of two servers cannot deadlock.
            batch.sort(key=lambda one: one.order)
            try:
                answers = await asyncio.to_thread(self._together, [one.piece for one in batch])
            except Exception as error:  # noqa: BLE001  no thread could be started, and every caller must hear of it
                answers = [_Refused(error)] * len(batch)
            if isinstance(answers, _Refused):
                batch, self._waiting = batch + self._waiting, []
                answers = [answers] * len(batch)
            for one, answer in zip(batch, answers, strict=True):
                if one.future.cancelled():
                    continue
                if isinstance(answer, _Refused):
                    one.future.set_exception(answer.error)
                else:
                    one.future.set_result(answer)

    def _together(self, pieces: list[Piece[Any]]) -> list[Any] | _Refused:
        """The answers, or one refusal for all that wait: each alone would wait for the database as long again."""
        try:
            with self._ctx.uow() as tx:
                return [_answer(tx, piece) for piece in pieces]
        except UnavailableError as error:
            return _Refused(error)
        except Exception:  # noqa: BLE001  one bad write must not fail the others, so each is retried alone
            return [self._alone(piece) for piece in pieces]

    def _alone(self, piece: Piece[Any]) -> Any:
        try:
            with self._ctx.uow() as tx:
                return piece(tx)
        except Exception as error:  # noqa: BLE001  the error belongs to the request that caused it
            return _Refused(error)


def _answer(tx: Transaction, piece: Piece[Any]) -> Any:
    try:
        return piece(tx)
    except TrainhopError as error:
        return _Refused(error)
