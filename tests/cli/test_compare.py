"""`trainhop compare`: an owner starts, watches, closes and exports a blind comparison from the command line."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner, Result

from orchestrator.entrypoints.cli.main import app
from tests.helpers.evaluations import add_evaluation
from tests.helpers.page_server import PageServer, page_server
from trainhop.errors import Error


@pytest.fixture
def server(tmp_path):
    with page_server(tmp_path) as running:
        yield running


@pytest.fixture
def trainhop(server: PageServer):
    """Types a command, as the admin. A refusal is the command's error."""

    def typed(*words: str) -> Result:
        options = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}
        result = CliRunner().invoke(app, ["compare", *words], env=options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return typed


@pytest.fixture
def job(server: PageServer) -> str:
    """An evaluation with answers, by its name."""
    admin = server.api.admin
    made = admin.submit(name="evaluated")["id"]
    add_evaluation(server.app.context.uow, made, 40, owner=admin.get("/me").json()["id"], same=3)
    return "evaluated"


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


def test_a_comparison_from_the_command_line(server: PageServer, trainhop, job: str, tmp_path) -> None:
    with pytest.raises(Error, match="evaluated has no blind comparison"):
        trainhop("status", job)
    page = trainhop("start", job, "--plan", "small", "--question", "Kinder?").stdout
    assert page.startswith(f"{server.url}/evaluations/job-")
    links = [trainhop("link", job, name).stdout.strip() for name in ("Ann", "Ben", "Ann")]
    assert len(set(links)) == 3
    found = trainhop("status", job).stdout
    assert "0, and 3 prompts with identical answers" in found
    assert "more ratings" in found
    with pytest.raises(Error, match="after the comparison was closed"):
        trainhop("export", job)
    for link in links[1:]:
        rate(server, link, "Another")
    found = trainhop("status", job).stdout
    assert "People prefer the adapter to its base model" in found
    assert "prefer the adapter" in found
    assert json.loads(trainhop("status", job, "--json").stdout)["result"]["quality"] == "better"
    out = tmp_path / "votes.csv"
    assert trainhop("export", job, "--format", "csv", "--out", str(out)).stdout.strip() == str(out)
    assert out.read_text().startswith("place,prompt,rater,choice,first,outcome,result,note,at")
    with pytest.raises(Error, match="already exists"):
        trainhop("export", job, "--out", str(out))
    assert len(trainhop("export", job).stdout.splitlines()) >= 16


def test_a_comparison_is_closed_early(trainhop, job: str) -> None:
    trainhop("start", job, "--margin", "0.1", "--json")
    assert "Not enough evidence" in trainhop("close", job).stderr
    assert "no decisive prompt" in trainhop("status", job).stdout
