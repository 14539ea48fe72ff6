"""A store is tried out with the rights that its workers have, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.domain.errors import UnavailableError
from orchestrator.ports.stores import Grant, GrantKind, ObjectInfo
from orchestrator.services.stores import check_store
from orchestrator.testing import FixedStores
from orchestrator.testing.environments import store_env
from tests.helpers.upload_server import UploadServer
from tests.helpers.world import World


class Rented(LocalStore):
    """The server reads and writes it as it likes. Workers use addresses, without a sign-in."""

    def __init__(self, folder: Path, shop: UploadServer) -> None:
        super().__init__(store_env(folder))
        self.shop = shop

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        return Grant(key=key, kind=kind, url=f"{self.shop.url}/{key}?signed=s3cret")

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        return self.grant_upload(key, kind, shares_disk=shares_disk)

    def put(self, key: str, source: Path) -> ObjectInfo:
        self.shop.taken[f"/{key}?signed=s3cret"] = source.read_bytes()
        return super().put(key, source)

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        held = self.shop.taken.get(f"/{key}?signed=s3cret")
        return super().read(key, start) if held is None else iter([held[start:]])


@pytest.fixture
def shop() -> Iterator[UploadServer]:
    with UploadServer() as server:
        yield server


@pytest.mark.parametrize(
    ("private", "words"),
    [
        ({"PUT"}, "do not take a file from a worker"),
        ({"GET"}, "do not give a file to a worker"),
        ({"GET", "PUT"}, "do not give a file to a worker"),
    ],
)
def test_a_store_is_tried_out_with_the_rights_of_its_workers(
    world: World, shop: UploadServer, tmp_path: Path, private: set[str], words: str
) -> None:
    """Guard: with `store.put` for every plain grant, and `read` for every download, such a store was accepted.

    Nobody else can read for a worker, so a store that gives no file is refused in any case.
    """
    ctx = dataclasses.replace(world.ctx, stores=FixedStores(Rented(tmp_path / "rented", shop)))
    state = check_store(ctx, "local")
    assert (state.problem, state.note) == ("", "")
    shop.private |= private
    if private == {"PUT"}:
        told = check_store(ctx, "local").note
    else:
        with pytest.raises(UnavailableError) as refused:
            check_store(ctx, "local")
        told = str(refused.value)
    assert f"{words}, which has no sign-in" in told
    assert "s3cret" not in told
