"""API responses for the installed providers and stores."""

from __future__ import annotations

from typing import Any

from orchestrator.entrypoints.api.responses import ResponseModel


class Provider(ResponseModel):
    """A provider. `settings` is the JSON schema of an account's settings. `problem` is the reason why it is unusable.

    `page` is where the credentials of an account are made, and `steps` are what to click there.

    `account_check` and `cell_check` tell whether its machines can be checked on an account, or by a notebook's cell.
    """

    name: str
    title: str
    problem: str
    personal: bool
    machines: str
    credentials: str
    connect: str
    terms: str
    page: str
    steps: list[str]
    settings: dict[str, Any]
    account_check: bool
    cell_check: bool


class StoreKind(ResponseModel):
    """A kind of store. `settings` is the JSON schema of its settings. `set_up` tells whether it was set up.

    An empty `credentials` means that it needs none.
    """

    name: str
    title: str
    credentials: str
    settings: dict[str, Any]
    set_up: bool
