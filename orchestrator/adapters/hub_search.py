"""Searches the Hugging Face hub for base models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.adapters.hub import HUB, Hub
from orchestrator.adapters.hub_errors import SEARCH, HubRequest
from orchestrator.ports.catalog import FoundModel

MAX_FOUND = 12
MAX_TEXT = 100
_TOLD = ("downloads", "gated", "private", "safetensors", "tags")
_LICENCE = "license:"


def search_models(hub: Hub, words: str, token: str | None) -> list[FoundModel]:
    """Models that write text, most downloaded first. Raises `InvalidError` offline, `UnavailableError`."""
    request = HubRequest(name="a search", page=f"{HUB}/models", pointer=SEARCH, signed_in=token is not None)
    query = {"search": words, "pipeline_tag": "text-generation", "sort": "downloads", "limit": MAX_FOUND}
    found = hub.ask("/api/models", token, request, **query, expand=list(_TOLD))
    entries = found if isinstance(found, list) else []
    return [_model(each) for each in entries[:MAX_FOUND] if isinstance(each, Mapping) and _is_id(each.get("id"))]


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _model(each: Mapping[str, Any]) -> FoundModel:
    tags = [tag for tag in each.get("tags") or () if isinstance(tag, str)]
    weights = each.get("safetensors")
    total = weights.get("total") if isinstance(weights, Mapping) else None
    downloads = each.get("downloads")
    return FoundModel(
        id=each["id"],
        parameters=total if isinstance(total, int) and total > 0 else None,
        licence=next((t.removeprefix(_LICENCE)[:MAX_TEXT] for t in tags if t.startswith(_LICENCE)), ""),
        gated=bool(each.get("gated")),
        private=bool(each.get("private")),
        downloads=downloads if isinstance(downloads, int) else 0,
    )
