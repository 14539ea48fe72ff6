"""Tiny models of every architecture with an adapter each, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.export.run import Form, Kind, Request, export
from worker.export.sources import Sources, open_sources


@dataclass(frozen=True)
class Pairing:
    """A base model and an adapter for it."""

    base: Path
    adapter: Path

    def request(self, out: Path, form: Form, kind: Kind | None = None, **more) -> Request:
        return Request(adapter=self.adapter, out=out, form=form, kind=kind, base=str(self.base), **more)

    def export(self, out: Path, form: Form, kind: Kind | None = None, **more) -> dict:
        return export(self.request(out, form, kind, **more), said)

    def sources(self) -> Sources:
        return open_sources(self.adapter, str(self.base), said)


def said(_: str) -> None:
    pass


@pytest.fixture(scope="session")
def pairing(tmp_path_factory) -> Callable[[str], Pairing]:
    from benchmarks.export.models import make_adapter, make_model

    made: dict[str, Pairing] = {}

    def make(family: str) -> Pairing:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            base = make_model(folder / "base", family)
            made[family] = Pairing(base, make_adapter(folder / "adapter", base))
        return made[family]

    return make


@pytest.fixture
def llama(pairing) -> Pairing:
    return pairing("llama")
