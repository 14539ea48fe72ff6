"""Names of a model's weights and modules, from the beginning of its files. The weights themselves are not read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MAX_BYTES = 4 << 20
"""Limit of an index or a header from the hub. Only models with hundreds of experts have longer ones."""


def modules_of_index(chunks: Iterable[bytes]) -> frozenset[str]:
    """Modules that own a parameter in `model.safetensors.index.json`.

    Raises `ValueError`, `KeyError` or `TypeError` for one that is not valid or too long.
    """
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) >= MAX_BYTES:
            raise ValueError("the index is too long")
    return _owners(dict(json.loads(data)["weight_map"]))


def modules_of_file(chunks: Iterable[bytes]) -> frozenset[str]:
    """Modules that own a parameter in a file of safetensors. Reads no more of it than its header.

    Raises `ValueError` or `TypeError` for a header that is not valid or too long.
    """
    return _owners(header_of_file(chunks, MAX_BYTES))


def header_of_file(chunks: Iterable[bytes], most_bytes: int) -> dict[str, Any]:
    """The header's entry of each weight in a file of safetensors, without its metadata. Reads no more of the file.

    Raises `ValueError` or `TypeError` for a header that is not valid, or longer than `most_bytes` with its length.
    """
    data, end = bytearray(), 8
    for chunk in chunks:
        data += chunk
        if len(data) >= 8:
            end = 8 + int.from_bytes(data[:8], "little")
            if len(data) >= end or end > most_bytes:
                break
    if not 8 < end <= min(most_bytes, len(data)):
        raise ValueError("the header is too long or cut off")
    header = dict(json.loads(data[8:end]))
    header.pop("__metadata__", None)
    return header


def _owners(names: Iterable[str]) -> frozenset[str]:
    return frozenset(owner for name in names if (owner := name.rpartition(".")[0]))
