"""Repositories of stores, of the objects in them, and of datasets."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.storage import DataReport, Dataset, StoreConfig, Upload


class StoreRepository(Protocol):
    """Configurations of stores."""

    def all(self) -> list[StoreConfig]:
        """All configurations, oldest first."""
        ...

    def put(self, config: StoreConfig) -> None:
        """Add or replace the store of this name. A current one replaces the one that was current before."""
        ...

    def count_kept(self, store: str) -> int:
        """Number of checkpoints and adapters in the store that may still be needed."""
        ...


class StoreObjectRepository(Protocol):
    """Ids that a store has given to keys, for stores that find objects by an id of their own."""

    def get(self, store: str, key: str) -> str | None:
        """The id of the key."""
        ...

    def get_or_add(self, store: str, key: str, external_id: str) -> str:
        """The id of the key. If it has none, this id becomes its id."""
        ...

    def delete(self, store: str, key: str, external_id: str) -> None:
        """Delete the key if this is its id."""
        ...

    def keys(self, store: str, prefix: str) -> list[str]:
        """Keys with this prefix that have an id in the store."""
        ...

    def delete_folders(self, store: str) -> None:
        """Delete the ids of folders (keys that end in a slash). The store then creates its folders again."""
        ...


class DatasetRepository(Protocol):
    """Datasets by SHA-256, who uploaded them, and keys of their deleted objects."""

    def get(self, sha256: str) -> Dataset | None: ...
    def get_of(self, sha256: str, member_id: str) -> Dataset | None:
        """The dataset if this member uploaded its bytes, with the name and time of their own upload."""
        ...

    def get_for_share(self, sha256: str) -> Dataset | None:
        """The dataset, locked so that no other transaction can delete it before this one ends."""
        ...

    def get_for_update(self, sha256: str) -> Dataset | None:
        """The dataset, locked against all others until the transaction ends."""
        ...

    def add(self, dataset: Dataset) -> Dataset:
        """Add the dataset unless its bytes are stored already. Returns the stored one, locked as by `get_for_share`."""
        ...

    def delete(self, dataset: Dataset) -> None:
        """Delete the dataset, and discard its key."""
        ...

    def add_upload(self, upload: Upload) -> None:
        """Record who uploaded these bytes. A second upload by the same member changes nothing."""
        ...

    def delete_upload(self, sha256: str, member_id: str) -> None: ...
    def uploaders(self, sha256: str) -> set[str]:
        """Ids of the members who have uploaded these bytes."""
        ...

    def get_report(self, sha256: str, row_format: str, tokenizer: str, version: int) -> DataReport | None: ...
    def add_report(self, report: DataReport) -> None:
        """Add the report of a file that is still there. A report that was added meanwhile stays."""
        ...

    def discard(self, key: str, store: str | None = None) -> None:
        """Record that the object under this key is to be deleted: from `store`, or from all that have this dataset."""
        ...

    def discarded(self, limit: int) -> list[tuple[str, str | None]]:
        """Keys and stores of objects that are still to be deleted, as given to `discard`."""
        ...

    def delete_discarded(self, key: str) -> None:
        """Delete the key, because its object is deleted."""
        ...
