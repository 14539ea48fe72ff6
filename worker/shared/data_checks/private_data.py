"""Findings about keys and passwords, and about personal data."""

from __future__ import annotations

from collections import Counter

from worker.shared.data_checks.credentials import credentials
from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.personal import personal
from worker.shared.data_checks.texts import Seen


class PrivateData:
    """Looks at every turn of each row."""

    def __init__(self) -> None:
        self._live, self._rest, self._personal = Found("secrets"), Found("secrets"), Found("personal_data")
        self._kinds: dict[str, Counter[str]] = {name: Counter() for name in ("live", "rest", "personal")}
        self._rows = 0

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        self._rows += 1
        kinds: dict[str, set[str]] = {name: set() for name in self._kinds}
        for turn in seen.all_turns:
            for span in credentials(turn.said):
                (self._live if span.is_live else self._rest).add(seen, turn.said, span.begin, span.end)
                kinds["live" if span.is_live else "rest"].add(span.kind)
            for span in personal(turn.said):
                self._personal.add(seen, turn.said, span.begin, span.end)
                kinds["personal"].add(span.kind)
        for name, found in kinds.items():
            self._kinds[name].update(found)

    def findings(self) -> tuple[RowsFound, ...]:
        """What was found."""
        rest = self._words("have a password, a test key or a placeholder", "rest")
        return (
            self._live.finding(self._words("have a key that looks real", "live"), total=self._rows)
            + self._rest.finding(rest, total=self._rows, level="warn")
            + self._personal.finding(self._words("have personal data", "personal"), total=self._rows)
        )

    def _words(self, what: str, name: str) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self._kinds[name].most_common(8))
        return f"{{count}} of {{total}} rows ({{share}}) {what} ({kinds})"
