"""The installed providers: what each offers, what an account needs, and how it can be checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.ports.providers import ProviderEntry, ProviderTexts, SupportsDiagnosis
from orchestrator.services.context import Context


@dataclass(frozen=True, kw_only=True)
class ProviderState:
    """One driver in words.

    `problem` says why it cannot be used. `settings` is the JSON schema of an account's settings. `account_check`: a
    check runs on a machine of an account. `cell_check`: a person runs the check in a notebook.
    """

    name: str
    title: str
    problem: str
    personal: bool = False
    texts: ProviderTexts = field(default_factory=ProviderTexts)
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    account_check: bool = False
    cell_check: bool = False


def list_providers(ctx: Context) -> list[ProviderState]:
    """All installed drivers by name, including those that cannot be used."""
    return [_state(entry) for entry in sorted(ctx.providers.entries(), key=lambda entry: entry.name)]


def _state(entry: ProviderEntry) -> ProviderState:
    driver = entry.provider
    if driver is None:
        return ProviderState(name=entry.name, title=entry.name.capitalize(), problem=entry.problem)
    return ProviderState(
        name=entry.name,
        title=driver.texts.title or entry.name.capitalize(),
        problem="",
        personal=driver.capabilities.personal,
        texts=driver.texts,
        settings=driver.account_settings.model_json_schema(),
        account_check=isinstance(driver, SupportsDiagnosis),
        cell_check=driver.capabilities.notebooks,
    )
