"""The store contract over every store we ship, and over the fake that stands in for them."""

import pytest

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.ports import StoreError
from orchestrator.testing import MemoryStore, StoreContract


class TestLocal(StoreContract):
    def make(self, folder):
        return LocalStore(folder / "store", lambda key: f"http://127.0.0.1/blobs/{key}", b"key")

    @pytest.mark.parametrize("key", ["../a", "/etc/passwd", "a/../b", "A/b", "", "a//b", "a/.hidden", "a\0b"])
    def test_keys_that_the_server_would_not_make_are_refused(self, tmp_path, key):
        with pytest.raises(StoreError):
            self.make(tmp_path).path(key)

    def test_a_broken_write_leaves_nothing(self, tmp_path):
        def broken():
            yield b"first"
            raise RuntimeError("the line went dead")

        store = self.make(tmp_path)
        with pytest.raises(RuntimeError):
            store.put_stream("a/b", broken())
        assert [p for p in store.folder.rglob("*") if p.is_file()] == []

    def test_signatures_differ_by_key_and_direction(self, tmp_path):
        store = self.make(tmp_path)
        assert len({store.signature(d, k) for d in ("get", "put") for k in ("a/b", "a/c")}) == 4


class TestMemory(StoreContract):
    def make(self, folder):
        return MemoryStore()
