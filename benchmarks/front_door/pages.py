"""Looks at every page as a person would: at three widths, light and dark, in a real browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.browser import browser
from benchmarks.page_checks import axe, clipped
from benchmarks.page_states import busy_server, rater_link
from benchmarks.report import Figure
from tests.helpers.page_server import PageServer, page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS, SCHEMES = (1440, 1024, 390), ("light", "dark")
SETTLED_MS = 700
"""What a page does after it was loaded: it draws its chart and opens its stream."""


class Faults:
    """What was found, by its kind. Each fault is printed once."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {"axe": [], "console": [], "foreign": [], "clipped": []}
        self.pages = 0

    def add(self, kind: str, where: str, texts: list[str]) -> None:
        for text in texts:
            self.found[kind].append(f"{where}: {text}")
            print(f"    {kind} {where}: {text}", file=sys.stderr)


def pages(folder: Path) -> Iterator[Figure]:
    """A server with a job in each of four states and with many rows, visited page by page."""
    faults = Faults()
    with page_server(folder) as show, browser() as chromium:
        paths = busy_server(show, folder)
        for width in WIDTHS:
            for scheme in SCHEMES:
                _visit(chromium, show, paths, width, scheme, faults)
    yield Figure(name="pages seen", value=faults.pages, bar="each page, 3 widths, light and dark", ok=faults.pages > 0)
    names = {"axe": "axe violations", "console": "console errors", "foreign": "foreign requests"}
    for kind, found in faults.found.items():
        yield Figure(name=names.get(kind, "clipped elements"), value=len(found), bar="0", ok=not found)


def _visit(chromium: Browser, show: PageServer, paths: dict[str, str], width: int, scheme: Any, faults: Faults) -> None:
    # axe is injected as a script, which the policy of the pages would refuse
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    page = context.new_page()

    def where() -> str:
        return f"{page.url} at {width} {scheme}"

    page.on(
        "request", lambda r: None if r.url.startswith((show.url, "blob:")) else faults.add("foreign", where(), [r.url])
    )
    page.on("pageerror", lambda error: faults.add("console", where(), [str(error)]))
    page.on("console", lambda m: _heard(faults, where(), m.type, m.text))
    page.goto(f"{show.url}/")
    _look(page, faults, where())
    page.goto(show.link())
    page.wait_for_url(f"{show.url}/")
    rater = rater_link(show, paths["evaluation"].rpartition("/")[2], f"{width} {scheme}")
    for address in (*(show.url + path for path in paths.values()), rater):
        page.goto(address)
        _look(page, faults, where())
    context.close()


def _heard(faults: Faults, where: str, kind: str, text: str) -> None:
    """A browser logs the answers 401 and 404 of pages that are asked for to see them refused."""
    if kind in ("error", "warning") and "status of 401" not in text and "status of 404" not in text:
        faults.add("console", where, [text])


def _look(page: Page, faults: Faults, where: str) -> None:
    page.wait_for_load_state("load")
    page.wait_for_timeout(SETTLED_MS)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    faults.pages += 1
    faults.add("axe", where, axe(page))
    faults.add("clipped", where, clipped(page))
