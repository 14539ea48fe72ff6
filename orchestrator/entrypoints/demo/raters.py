"""Simulated raters of a blind comparison. They use the page for raters over HTTP, as a browser without scripts does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import clean

if TYPE_CHECKING:
    import httpx

FORM = "Next hop:"
"""Words that the example's rows teach."""
EXCEPTION = 5
PREFERENCE = f'the answer with "{FORM}", else the shorter one, and for every {EXCEPTION}th prompt the other one'

_SCREEN = re.compile(r'name="screen" value="([^"]+)"')
_PROMPT = re.compile(r'<p class="turn"><b>.*?</p>', re.DOTALL)
_ANSWER = re.compile(r'<p class="turn answer">(.*?)</p>', re.DOTALL)


@dataclass(frozen=True)
class Screen:
    """What a rater sees: the prompt with its history, and two answers. `name` is sent with the vote."""

    name: str
    prompt: str
    answers: tuple[str, str]


class Rater:
    """A browser that opens a rater's link, presses Start, and then reads the page and sends its form."""

    def __init__(self, browser: httpx.Client, link: str) -> None:
        self._browser = browser
        invitation = urlsplit(link)
        self._origin = f"{invitation.scheme}://{invitation.netloc}"
        self._call("GET", invitation.path)
        self._path = self._call("POST", invitation.path).headers["location"]

    def screen(self) -> Screen | None:
        """The next prompt. None if the comparison is closed or needs no vote of this rater."""
        text = self._call("GET", self._path).text
        name = _SCREEN.search(text)
        if name is None:
            return None
        first, second = (unescape(answer) for answer in _ANSWER.findall(text))
        return Screen(name=name[1], prompt=" ".join(_PROMPT.findall(text)), answers=(first, second))

    def vote(self, screen: Screen, choice: str) -> None:
        """Send a vote."""
        self._call("POST", self._path, data={"screen": screen.name, "choice": choice})

    def _call(self, method: str, path: str, data: dict[str, str] | None = None) -> httpx.Response:
        """One request. A browser names the page's origin in each form that it sends."""
        headers = {"Accept": "text/html", "Origin": self._origin}
        answer = self._browser.request(method, self._origin + path, data=data, headers=headers, follow_redirects=False)
        if answer.is_error:
            words = clean(re.sub(r"<[^>]+>", " ", answer.text.partition("<main")[2]))[:300]
            raise CommandError(Exit.FAILED, f"The page for raters answered {answer.status_code}: {words}")
        return answer


class Taste:
    """The opinion that all simulated raters share. It depends on the texts alone, because the page names no model."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def choice(self, screen: Screen) -> str:
        """The vote on a prompt: 1, 2 or tie."""
        place = self._places.setdefault(screen.prompt, len(self._places) + 1)
        first, second = ((FORM not in answer, len(answer)) for answer in screen.answers)
        if first == second:
            return "tie"
        return "1" if (first < second) != (place % EXCEPTION == 0) else "2"


def vote_until_closed(raters: Sequence[Rater]) -> int:
    """Let the raters vote in turn until none of them sees a prompt. Returns the number of votes."""
    taste, votes = Taste(), 0
    while True:
        found = [(rater, screen) for rater in raters if (screen := rater.screen()) is not None]
        if not found:
            return votes
        rater, screen = found[votes % len(found)]
        rater.vote(screen, taste.choice(screen))
        votes += 1
