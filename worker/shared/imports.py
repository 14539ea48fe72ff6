"""Imports of large libraries."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from importlib import metadata


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import within it without work that is for nothing.

    Garbage collections find nothing in imports and take a sixth of the time. Later ones skip everything that exists at
    the end. transformers and trl would each list all installed packages, at 2 ms a package. Here trl
    gets the list of transformers.
    """
    listed, metadata.packages_distributions = (
        metadata.packages_distributions,
        functools.cache(metadata.packages_distributions),
    )
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        metadata.packages_distributions = listed
