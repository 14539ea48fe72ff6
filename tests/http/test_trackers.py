"""Experiment trackers over REST and on the pages: logins that are shown to nobody, and the runs of one's own jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.entrypoints.cli.main import app as cli
from orchestrator.services.reporting import report_due
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.helpers.page_server import page_server

KEY = "canary0123456789"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that has every library, as far as it is asked."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o700)
    return path


@pytest.fixture
def app(database_url, make_server, python):
    return make_server(database_url, trackers_python=python)


@pytest.fixture
def sqlite_app(make_server, empty_database, python):
    return make_server(empty_database("sqlite"), trackers_python=python)


def put(who: Any, tracker: str, **login: str) -> Any:
    return who.call("PUT", f"/trackers/{tracker}", json=login)


def test_a_login_is_kept_used_and_shown_to_nobody(api, people):
    """Guard: with the key in `Tracker`, it was in the answer."""
    ready = {"tracker": "tensorboard", "stored": False, "url": "", "project": "", "problem": ""}
    items = {each["tracker"]: each for each in people.ann.get("/trackers").json()["items"]}
    assert (set(items), items["tensorboard"]) == ({"wandb", "trackio", "tensorboard", "mlflow"}, ready)
    asked = {"report_to": ["wandb"]}
    refused = people.ann.post("/jobs", people.ann.job_file(**asked))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/report_to")
    assert "trainhop trackers set wandb" in refused.json()["detail"]
    kept = put(people.ann, "wandb", key=KEY, project="team/p")
    assert kept.json() == {"tracker": "wandb", "stored": True, "url": "", "project": "team/p", "problem": ""}
    job = people.ann.submit(**asked)
    assert job["spec"]["report_to"] == ["wandb"]
    (run,) = people.ann.get(f"/jobs/{job['id']}/trackers").json()["items"]
    assert (run["tracker"], run["written_step"], run["told"], run["reason"]) == ("wandb", None, "", "")
    assert KEY not in json.dumps([people.ann.get("/trackers").json(), job, run, kept.json()])
    assert people.bob.post("/jobs", people.bob.job_file(**asked)).status_code == 422
    assert people.bob.get(f"/jobs/{job['id']}/trackers").status_code == 404
    assert people.bob.get(f"/jobs/{job['id']}/tensorboard").status_code == 404
    assert people.ann.call("DELETE", "/trackers/wandb").status_code == 204
    assert people.ann.post("/jobs", people.ann.job_file(**asked)).status_code == 422


@pytest.mark.parametrize(
    ("tracker", "login", "words"),
    [
        ("wandb", {"key": "two words"}, "one word"),
        ("wandb", {"key": KEY, "url": "https://mine.example"}, "Only an admin"),
        ("mlflow", {"url": "file:///etc"}, "begins with https"),
        ("mlflow", {"url": "https://ann:secret@x.example"}, "no user"),
        ("tensorboard", {"key": KEY}, "needs no login"),
        ("mlflow", {"url": "https://x.example", "project": "p" * 101}, "project"),
        ("mlflow", {"url": "https://" + "x" * 500}, "url"),
    ],
)
def test_logins_that_cannot_be_are_refused_in_words(api1, people, tracker, login, words):
    refused = put(people.ann, tracker, **login)
    assert refused.status_code == 422
    assert words in refused.text
    assert put(people.ann, "comet", key=KEY).status_code == 404


def test_a_member_fills_in_the_form(api1, people):
    """Guard: without `trackers` among the page's values the page was a bug's."""
    log_in(api1, people.ann)
    page = api1.client.get("/accounts", headers=HTML).text
    assert 'action="/trackers"' in page
    assert "Remove login" not in page
    form = {"tracker": "mlflow", "url": "https://x.example/<b>", "key": KEY, "project": ""}
    refused = api1.client.post("/trackers", data=form | {"tracker": "comet"}, headers=ORIGIN | HTML)
    assert (refused.status_code, "There is no tracker comet" in refused.text) == (404, True)
    done = api1.client.post("/trackers", data=form, headers=ORIGIN, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/accounts")
    page = api1.client.get("/accounts", headers=HTML).text
    assert "https://x.example/&lt;b&gt;" in page
    assert KEY not in page
    removed = api1.client.post("/trackers/mlflow/remove", headers=ORIGIN, follow_redirects=False)
    assert removed.status_code == 303
    assert "Remove login" not in api1.client.get("/accounts", headers=HTML).text


def test_a_curve_is_written_shown_and_downloaded(tmp_path, monkeypatch):
    """The whole way, with the scheduler's own round, a real writer and the command line."""
    with page_server(tmp_path) as server:
        admin = server.api.admin
        job = admin.submit(report_to="tensorboard", max_steps=4)["id"]
        assert admin.get(f"/jobs/{job}/tensorboard").status_code == 404
        machine = server.machine()
        for step in range(1, 5):
            machine.report(step)
        assert machine.save(4, tmp_path).status_code == 200
        assert machine.finish(4).is_success
        server.provider.end(machine.lease)
        server.reconcile()
        reporting = server.app.reporting
        report_due(reporting)
        me = admin.get("/me").json()["id"]
        reporting.running.gather({f"{me}/tensorboard": lambda: None}, 60.0, lambda: None)
        (run,) = admin.get(f"/jobs/{job}/trackers").json()["items"]
        assert (run["written_step"], run["reason"]) == (4, "")
        file = admin.get(f"/jobs/{job}/tensorboard")
        assert file.headers["content-disposition"].startswith("attachment")
        assert file.content.count(b"loss") == 4
        monkeypatch.chdir(tmp_path)
        options = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}

        def typed(*words: str) -> str:
            done = CliRunner().invoke(cli, ["trackers", *words], env=options)
            assert done.exit_code == 0, done.output
            return done.output

        assert "tensorboard" in typed("show", job)
        assert json.loads(typed("show", job, "--json"))[0]["tracker"] == "tensorboard"
        typed("file", job, "--out", "board")
        (path,) = (tmp_path / "board").iterdir()
        assert (path.read_bytes(), "tfevents" in path.name) == (file.content, True)
        assert "ready" in typed("ls")
        typed("rm", "wandb")
        refused = CliRunner().invoke(cli, ["trackers", "set", "tensorboard"], env=options, input="k\n")
        assert refused.exit_code != 0
