"""Everything that raters and the owner of a blind comparison can get before its end, searched for the models' names.

The same crawl must find each of several leaks that are planted in the product, or it would prove nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.adversity.http_server import watched
from benchmarks.report import Figure
from orchestrator.domain.blind_votes import first_arm
from orchestrator.entrypoints.dashboard import rating
from orchestrator.entrypoints.http import auth
from orchestrator.services import comparison_export, comparison_rating, comparisons
from tests.helpers.blind_crawl import VOTES, Crawl, leaks
from tests.helpers.blind_crawl import crawl as crawl_all
from tests.http.http_client import Api

Leak = Callable[[Api], AbstractContextManager[Any]]


def crawl(folder: Path) -> Iterator[Figure]:
    """Crawl the product as it is, then with each leak."""
    found = _crawled(folder / "none", lambda _: nullcontext())
    answers = len(found.seen) + len(found.elsewhere)
    yield Figure(name="answers searched before the end", value=answers, bar="> 200", ok=answers > 200)
    name = f"names or keys of models in them, with {VOTES} votes and two raters"
    named = leaks(found)
    yield Figure(name=name, value=[text[:200] for text in named[:3]] or 0, bar="0", ok=not named)
    for what, planted in LEAKS.items():
        hits = len(leaks(_crawled(folder / hashlib.sha256(what.encode()).hexdigest()[:8], planted)))
        yield Figure(
            name=f"control, a leak planted in {what}: answers that show it", value=hits, bar="> 0", ok=hits > 0
        )


def _crawled(folder: Path, planted: Leak) -> Crawl:
    with watched(folder) as server, planted(server.api):
        return crawl_all(server.api, server.api.admin)


def _in_a_form(_: Api) -> AbstractContextManager[Any]:
    name = comparison_rating.screen_name

    def telling(key: str, number: int, rater_id: str) -> str:
        return f"{first_arm(key, number, rater_id)}-{name(key, number, rater_id)}"

    return mock.patch.object(comparison_rating, "screen_name", telling)


def _in_an_answer_to_the_browser(add: Callable[[Any], object]) -> AbstractContextManager[Any]:
    page = rating.page

    def telling(*given: Any, **more: Any) -> Any:
        answer = page(*given, **more)
        add(answer)
        return answer

    return mock.patch.object(rating, "page", telling)


def _in_the_counts(_: Api) -> AbstractContextManager[Any]:
    return _closed_already(comparisons)


def _in_an_export(_: Api) -> AbstractContextManager[Any]:
    return _closed_already(comparison_export)


def _closed_already(module: Any) -> AbstractContextManager[Any]:
    """A module that takes an open comparison for a closed one where it reads it."""
    comparison_of = module.comparison_of

    def telling(*given: Any, **more: Any) -> Any:
        found = comparison_of(*given, **more)
        return found if more.get("lock") else replace(found, closed_at=1.0)

    return mock.patch.object(module, "comparison_of", telling)


def _everywhere(api: Api) -> AbstractContextManager[Any]:
    """A browser without a log-in, such as a rater's, counts as the admin's."""
    return mock.patch.object(auth, "cookie_token", return_value=api.admin_token)


LEAKS: dict[str, Leak] = {
    "the rater's form": _in_a_form,
    "a header": lambda _: _in_an_answer_to_the_browser(lambda a: a.headers.update({"X-First": "adapter"})),
    "a cookie": lambda _: _in_an_answer_to_the_browser(lambda a: a.set_cookie("first", "base")),
    "the owner's counts": _in_the_counts,
    "the owner's export": _in_an_export,
    "the log-in": _everywhere,
}
"""What the product would do wrong, by where it could be seen."""
