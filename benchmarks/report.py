"""What benchmarks with bars share: a figure, the choice of items, and the result as the last line of stdout."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import commit
from benchmarks.tiny_job import say
from worker.agent.hardware import cpu_name, versions


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number or text, its expected value, and whether it matches."""

    name: str
    value: Any
    bar: str
    ok: bool


Item = Callable[[Path], Iterator[Figure]]
"""Measures in a temporary folder and yields its figures."""


def items_of(package: str, modules: Sequence[str]) -> dict[str, Item]:
    """An item for each of these modules of the package, which have a function `figures`."""

    def item(module: str) -> Item:
        def figures(folder: Path) -> Iterator[Figure]:
            """Libraries of a module that is not asked for are not imported."""
            yield from importlib.import_module(f"{package}.{module}").figures(folder)

        return figures

    return {module: item(module) for module in modules}


def report(description: str | None, items: Mapping[str, Item]) -> int:
    """Run the items that the command line selects and print their figures. Returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated items: " + ", ".join(items))
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(items)
    if unknown := [item for item in wanted if item not in items]:
        parser.error(f"there is no item {', '.join(unknown)}, but {', '.join(items)}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="trainhop-bench-", ignore_cleanup_errors=True) as temporary:
        for item in wanted:
            folder = Path(temporary) / item
            folder.mkdir()
            figures += map(shown, items[item](folder))
    return finish(figures, as_json=options.json)


def shown(figure: Figure) -> Figure:
    """Print a figure as soon as it is known."""
    say(f"  {'ok ' if figure.ok else 'NOT'} {figure.name}: {figure.value} (bar: {figure.bar})")
    return figure


def finish(figures: Sequence[Figure], *, as_json: bool) -> int:
    """Print the result as the last line, or on several lines. Returns the exit code."""
    result = {"figures": [asdict(figure) for figure in figures], **about()}
    print(json.dumps(result, indent=None if as_json else 1))
    return int(not all(figure.ok for figure in figures))


def about() -> dict[str, Any]:
    """The machine, the versions and the commit that figures belong to."""
    machine = {"processor": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()}
    return {"machine": machine, "versions": versions(), "commit": commit()}
