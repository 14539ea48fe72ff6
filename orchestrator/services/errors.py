"""Errors of the outside in the words of the domain."""

from __future__ import annotations

from orchestrator.domain.errors import ConflictError, NotFoundError, TrainhopError, UnavailableError
from orchestrator.ports import ObjectMissing, StoreError, StoreFull


def from_store(error: StoreError) -> TrainhopError:
    """What a store's failure means to the caller."""
    if isinstance(error, StoreFull):
        return ConflictError(f"the store is full: {error}")
    if isinstance(error, ObjectMissing):
        return NotFoundError(str(error))
    return UnavailableError(f"the store does not answer: {error}")
