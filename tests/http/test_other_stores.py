"""Stores of other distributions: found by their entry point, made with their settings and options, used like ours."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from orchestrator.adapters.stores.registry import StoreRegistry
from orchestrator.domain.errors import NotFoundError
from orchestrator.ports.stores import StoreUnavailable

SHELF = """
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.ports.stores import StoreOptions, StoreSettings, StoreTexts


class Settings(StoreSettings):
    root: Path = Path("/nowhere")


class Options(StoreOptions):
    room: str = Field(description="Which room of the cellar.", max_length=20)


class ShelfStore(LocalStore):
    name, settings, options, texts = "shelf", Settings, Options, StoreTexts(title="Shelf")

    def __init__(self, env):
        super().__init__(replace(env, folder=env.settings.root / env.config["room"]))
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another distribution on the path; returns the folder that its operator has set."""
    site = tmp_path / "site"
    (site / "shelf-1.dist-info").mkdir(parents=True)
    (site / "shelf-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1\n")
    (site / "shelf-1.dist-info" / "entry_points.txt").write_text("[trainhop.stores]\nshelf = test_shelf:ShelfStore\n")
    (site / "test_shelf.py").write_text(SHELF)
    monkeypatch.syspath_prepend(str(site))
    return tmp_path / "cellar"


@pytest.fixture
def sqlite_app(make_server, tmp_path, shelf):
    return make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", drivers={"shelf": {"root": str(shelf)}})


def test_a_store_of_another_distribution_is_set_up_and_used(api1, people, shelf):
    """Guard: made without the operator's settings or the admin's options, its files lay elsewhere."""
    kind = people.admin.get("/stores/shelf/kind").json()
    assert (kind["title"], kind["credentials"], kind["set_up"]) == ("Shelf", "", False)
    assert kind["settings"]["required"] == ["room"]
    refused = people.admin.call("PUT", "/stores/shelf", json={})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/config/room")
    used = people.admin.call("PUT", "/stores/shelf", json={"config": {"room": "left"}})
    assert (used.status_code, used.json()["current"]) == (200, True)
    assert (shelf / "left" / "checks").is_dir()
    assert people.admin.post("/stores/shelf:check").status_code == 200
    assert people.admin.get("/stores/shelf/kind").json()["set_up"]
    people.admin.call("PUT", "/stores/local", json={})
    assert people.admin.call("PUT", "/stores/shelf", json={}).json()["current"], "its options are known"


def test_a_kind_that_is_not_installed_is_said_with_those_that_are(api1, people):
    refused = people.admin.get("/stores/tape/kind")
    assert (refused.status_code, "known are drive, local, shelf" in refused.text) == (404, True)


def test_a_broken_store_is_unavailable_with_its_reason() -> None:
    broken = EntryPoint(name="broken", value="no_such_package.store:Store", group="trainhop.stores")
    registry = StoreRegistry([broken])
    with pytest.raises(StoreUnavailable, match="broken is not available: No module named 'no_such_package'"):
        registry.kind("broken")
    with pytest.raises(NotFoundError, match="known are broken"):
        registry.kind("tape")
