"""Small writes that arrive together are made together: one transaction and one trip to a thread for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.domain.errors import TrainhopError
from orchestrator.ports.providers import Context
from orchestrator.ports.repository import Transaction

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
    """Collects what comes in while the previous batch is written. Nobody is answered before the commit.

    A piece of work may be done twice (once more alone, if a neighbour broke the transaction) and refuses with a
    `TrainhopError` only before it writes.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, order: tuple[str, int], piece: Piece[T]) -> T:
        """Do this piece and return its answer once that is on disk; `order` begins with the id of what it locks."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(order, piece, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            # By id, so that two servers' batches never wait for each other in a circle.
            batch.sort(key=lambda one: one.order)
            answers = await asyncio.to_thread(self._together, [one.piece for one in batch])
            for one, answer in zip(batch, answers, strict=True):
                if one.future.cancelled():
                    continue
                if isinstance(answer, _Refused):
                    one.future.set_exception(answer.error)
                else:
                    one.future.set_result(answer)

    def _together(self, pieces: list[Piece[Any]]) -> list[Any]:
        try:
            with self._ctx.uow() as tx:
                return [_answer(tx, piece) for piece in pieces]
        except Exception:  # noqa: BLE001  one that cannot be stored must not fail its neighbours: each alone
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
