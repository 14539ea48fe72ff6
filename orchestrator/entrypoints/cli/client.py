"""A small HTTP client for the command line. It maps each failure of a call to an exit code."""

from __future__ import annotations

from enum import IntEnum

import typer

from trainhop.connection import Connection, data_folder
from trainhop.errors import Error, Reason


class Exit(IntEnum):
    """Exit codes of the process."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5


_REASONS: dict[Exit, Reason] = {
    Exit.USAGE: "usage",
    Exit.NOT_FOUND: "not_found",
    Exit.NOT_ALLOWED: "not_allowed",
    Exit.UNREACHABLE: "unreachable",
}
_EXITS = {reason: code for code, reason in _REASONS.items()}


class CommandError(Error):
    """Ends a command with `code`. Each of `lines` is printed on stderr."""

    def __init__(self, code: Exit, *lines: str) -> None:
        super().__init__(*lines, reason=_REASONS.get(code, "failed"))


class Client(Connection):
    """A connection of the command line."""

    NAMED_BY = "--server"


def exit_code(error: Error) -> Exit:
    """The exit code of the process."""
    return _EXITS.get(error.reason, Exit.FAILED)


def connect(context: typer.Context) -> Client:
    """A client for the selected server. The token comes from the environment or the data folder, not from an option.

    Its connections are closed at the end of the command.
    """
    options = context.find_root().params
    client = Client.find(options.get("server"), folder=data_folder(options.get("data_dir")))
    context.call_on_close(client.close)
    return client
