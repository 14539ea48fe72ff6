"""Prints what the data checks have found."""

from __future__ import annotations

from typing import Any

from orchestrator.entrypoints.cli.output import clean, put

SHOWN_LINES = 12
_WORDS = {"stop": "STOP", "warn": "warning", "list": "note"}


def show_report(report: dict[str, Any]) -> None:
    """Print a report: each finding with its lines, samples and what to do, and what was not checked."""
    counts = {level: sum(f["level"] == level for f in report["findings"]) for level in _WORDS}
    rows = _counted(report["checked"], "row")
    if report["checked"] != report["rows"]:
        rows = f"a sample of {report['checked']} of about {report['rows']} rows"
    put(f"Checked {rows}: {', '.join(_counted(counts[level], word.lower()) for level, word in _WORDS.items())}.")
    for finding in report["findings"]:
        show_finding(finding)
    for name, value in report["figures"]:
        put(f"{name}: {value}")
    for missing in report["not_checked"]:
        put(f"not checked: {missing['check']} ({clean(missing['reason'])})")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def show_finding(finding: dict[str, Any]) -> None:
    """Print one finding."""
    accepted = " (accepted)" if finding.get("accepted") else ""
    put(f"{_WORDS[finding['level']]} {finding['check']}{accepted}: {clean(finding['words'])}")
    if finding["lines"]:
        put(f"    {clean(lines(finding))}")
    for sample in finding["samples"]:
        put(f"    line {sample['line']}: {clean(sample['text'])}")
    put(f"    {clean(finding['advice'])}")


def lines(finding: dict[str, Any]) -> str:
    """The lines of a finding in one text, with those that they are copies of."""
    others = finding["other_lines"]
    shown = finding["lines"][:SHOWN_LINES]
    named = [f"{line} (like {others[place]})" if others else str(line) for place, line in enumerate(shown)]
    more = ", …" if max(finding["count"], len(finding["lines"])) > len(shown) else ""
    return f"line{'s' if len(shown) > 1 else ''} {', '.join(named)}{more}"
