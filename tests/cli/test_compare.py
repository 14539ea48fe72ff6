"""`trainhop compare`: an owner starts, watches, closes and exports a blind comparison from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

import pytest
from typer.testing import Result

from tests.helpers.page_server import PageServer
from trainhop.errors import Error


@pytest.fixture
def compare(typed: Callable[..., Result]) -> Callable[..., Result]:
    return partial(typed, "compare")


def rate(server: PageServer, link: str, liked: str) -> None:
    """Open the link and vote for what begins with this word, until there is no prompt left."""
    headers = {"Origin": server.url}
    opened = server.client.post(link, headers=headers)
    cookie, path = opened.headers["set-cookie"].partition(";")[0], opened.headers["location"]
    server.client.cookies.clear()
    while True:
        text = server.client.get(path, headers={"Cookie": cookie}).text
        screen = re.search(r'name="screen" value="([^"]+)"', text)
        if screen is None:
            return
        answers = re.findall(r'<p class="turn answer">((?:One|Another)[^<]*)<', text)
        body = {"screen": screen[1], "choice": "1" if answers[0].startswith(liked) else "2"}
        server.client.post(path, data=body, headers=headers | {"Cookie": cookie})


def test_a_comparison_from_the_command_line(server: PageServer, compare, evaluated: str, tmp_path) -> None:
    with pytest.raises(Error, match="evaluated has no blind comparison"):
        compare("status", evaluated)
    page = compare("start", evaluated, "--plan", "small", "--question", "Kinder?").stdout
    assert page.startswith(f"{server.url}/evaluations/job-")
    links = [compare("link", evaluated, name).stdout.strip() for name in ("Ann", "Ben", "Ann")]
    assert len(set(links)) == 3
    found = compare("status", evaluated).stdout
    assert "0, and 3 prompts with identical answers" in found
    assert "more ratings" in found
    with pytest.raises(Error, match="after the comparison was closed"):
        compare("export", evaluated)
    for link in links[1:]:
        rate(server, link, "Another")
    found = compare("status", evaluated).stdout
    assert "People prefer the adapter to its base model" in found
    assert "prefer the adapter" in found
    assert json.loads(compare("status", evaluated, "--json").stdout)["result"]["quality"] == "better"
    out = tmp_path / "votes.csv"
    assert compare("export", evaluated, "--format", "csv", "--out", str(out)).stdout.strip() == str(out)
    assert out.read_text().startswith("place,prompt,rater,choice,first,outcome,result,note,at")
    with pytest.raises(Error, match="already exists"):
        compare("export", evaluated, "--out", str(out))
    assert len(compare("export", evaluated).stdout.splitlines()) >= 16


def test_a_comparison_is_closed_early(compare, evaluated: str) -> None:
    compare("start", evaluated, "--margin", "0.1", "--gain", "tasks", "--json")
    found = " ".join(compare("status", evaluated).stdout.split())
    assert "not worse by more than 10 % declared gain tasks" in found
    assert "Not enough evidence" in compare("close", evaluated).stderr
    assert "no decisive prompt" in compare("status", evaluated).stdout
