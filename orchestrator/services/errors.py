"""Errors of the outside in the words of the domain."""

from __future__ import annotations

from orchestrator.domain.errors import NotFoundError, TrainhopError, UnavailableError
from orchestrator.ports.providers import ObjectMissing, StoreError, StoreFull


def from_store(error: StoreError) -> TrainhopError:
    """What a store's failure means to the caller."""
    if isinstance(error, StoreFull):
        return UnavailableError(f"the store is full: {error}")  # a worker keeps what it has and tries again
    if isinstance(error, ObjectMissing):
        return NotFoundError(str(error))
    return UnavailableError(f"the store does not answer: {error}")
