"""What no page may have: axe violations and clipped elements. Tests and benchmarks share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

CLIPPED = """() => {
  const found = [], seen = new Set(), wide = document.documentElement.clientWidth;
  const hiddenFromSight = (e) => e.closest(".hidden, .skip, [hidden], thead") !== null;
  const tell = (e, why) => found.push(`${why}: ${e.outerHTML.slice(0, 140)}`);
  if (document.documentElement.scrollWidth > wide) tell(document.documentElement, "the page is wider than the window");
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg, .uplot") || hiddenFromSight(e) || !e.getClientRects().length) continue;
    if ([...seen].some((outer) => outer.contains(e))) continue;
    const before = found.length, style = getComputedStyle(e), box = e.getBoundingClientRect();
    const holds = e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && style.display !== "inline";
    if (holds && style.textOverflow !== "ellipsis" && !["INPUT", "SELECT", "PROGRESS"].includes(e.tagName)) {
      if (style.overflowX === "visible" && [...e.children].every((c) => getComputedStyle(c).position === "absolute")) {
        tell(e, "its text is wider than it");
      } else if (style.overflowX !== "visible") tell(e, "a part of it is out of sight");
    }
    if (holds && style.textOverflow === "ellipsis" && !e.title) tell(e, "cut without a title");
    const cut = ["hidden", "clip"].includes(style.overflowY) && e.tagName !== "PROGRESS";
    if (cut && e.scrollHeight > e.clientHeight + 1) tell(e, "its lower part is out of sight");
    if (box.width && (box.right > wide + 1 || box.left < -1)) tell(e, "beyond the window");
    const pressed = e.matches("a, button, input, select, textarea, summary") && style.opacity !== "0";
    if (pressed && Math.min(box.width, box.height) < 10) tell(e, "too small to be hit");
    if (found.length > before) seen.add(e);
  }
  return found;
}"""
"""An element whose content is wider than what is seen of it. The tests' browser has no scroll bars that would say so.

A field that a person types into, and a line that ends in an ellipsis and has the whole text as its title, are not
clipped. The chart and pictures draw by themselves.
"""


def axe(page: Page) -> list[str]:
    """The violations of accessibility rules, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {n['html'][:160]} {n.get('failureSummary', '')}" for v in found for n in v["nodes"]]


def clipped(page: Page) -> list[str]:
    """The elements that are wider than what is seen of them, one line each."""
    return page.evaluate(CLIPPED)
