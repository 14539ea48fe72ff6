"""Replaces secrets and personal data before a text is shown or logged."""

from __future__ import annotations

from worker.shared.data_checks.credentials import Span, credentials
from worker.shared.data_checks.personal import personal


def masked(text: str, begin: int = 0, length: int | None = None) -> str:
    """`length` characters of the text from `begin`. Secrets and personal data in the whole text are replaced."""
    end = len(text) if length is None else min(len(text), begin + length)
    parts: list[str] = []
    at = begin
    for span in _in_order([*credentials(text), *personal(text)]):
        if span.end <= at or span.begin >= end:
            continue
        parts += [text[at : max(at, span.begin)], f"[{span.kind}]"]
        at = span.end
    return "".join(parts) + text[at : max(at, end)]


def _in_order(spans: list[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.begin, -span.end))
