"""The plain way in the place of an accelerator, in the process of a benchmark; the product itself has no such
switch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from orchestrator import bootstrap
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.transaction import SqlTransaction
from orchestrator.entrypoints.background import server
from orchestrator.entrypoints.http.write_batcher import WriteBatcher


def leave_out(accelerator: str) -> None:
    """Put the plain way in the place of this one, for the rest of this process; `KeyError` for a name that is not
    known."""
    PLAIN_WAYS[accelerator]()


def _fastapi_alone() -> None:
    """Every call takes the route that FastAPI documents."""
    made = server.make_app

    def make_app(*arguments: Any, **options: Any) -> FastAPI:
        api = made(*arguments, **options)
        quick = [route for route in api.router.routes if _is_quick(route)]
        assert quick, "the quick routes are registered in another way"
        for route in quick:
            api.router.routes.remove(route)
        return api

    server.make_app = make_app


def _is_quick(route: Any) -> bool:
    return isinstance(route, Route) and not isinstance(route, APIRoute) and route.path.startswith("/api/v1/")


def _one_transaction_a_write() -> None:
    """Each write is a transaction of its own on a thread of the pool."""

    async def write(self: Any, order: tuple[str, int], piece: Callable[[Any], Any]) -> Any:
        del order
        return await run_in_threadpool(_alone, self._ctx, piece)

    WriteBatcher.write = write


def _alone(ctx: Any, piece: Callable[[Any], Any]) -> Any:
    with ctx.uow() as tx:
        return piece(tx)


def _one_commit_a_transaction() -> None:
    """One writer at a time, which begins, writes and commits."""
    made = bootstrap.make_unit_of_work

    def make(engine: Engine) -> Callable[[], AbstractContextManager[SqlTransaction]]:
        return _OneByOne(engine).transaction if engine.dialect.name == "sqlite" else made(engine)

    bootstrap.make_unit_of_work = make


class _OneByOne:
    """The shortest writer that SQLite works well with: a lock, one connection, a commit for each transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._connection: Connection | None = None

    @contextmanager
    def transaction(self) -> Generator[SqlTransaction]:
        with self._turn:
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = self._connection.connection.driver_connection
            driver.execute("BEGIN IMMEDIATE")
            try:
                transaction = SqlTransaction(self._connection)
                yield transaction
                transaction.flush()
            except BaseException:
                driver.execute("ROLLBACK")
                raise
            driver.execute("COMMIT")


def _sqlalchemy_executes() -> None:
    """SQLAlchemy Core runs the same statements in its own way."""

    def rows(self: Any, connection: Connection, values: Any = None) -> list[Any]:
        return [tuple(row) for row in connection.execute(self._statement, values or {})]

    def run(self: Any, connection: Connection, *values: Any) -> None:
        for each in values:
            connection.execute(self._statement, each)

    Statement.rows, Statement.run = rows, run


PLAIN_WAYS: dict[str, Callable[[], None]] = {
    "quick_route": _fastapi_alone,
    "write_batcher": _one_transaction_a_write,
    "group_commit": _one_commit_a_transaction,
    "compiled_statements": _sqlalchemy_executes,
}
