"""`trainhop notebook` as people use it."""

from __future__ import annotations

import json
import stat

from tests.cli.conftest import Shell


def test_a_notebook_is_written_and_never_over_another_one(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file(name="a.yaml")).stdout.strip()
    done = trainhop("notebook", job)
    first = trainhop.folder / done.stdout.strip()
    assert first.name == "tiny.ipynb"
    assert json.loads(first.read_text())["nbformat"] == 4
    assert stat.S_IMODE(first.stat().st_mode) == 0o600, "it holds a code"
    assert "It works once, until" in done.stderr
    assert "TRAINHOP_PUBLIC_URL" in done.stderr
    before = first.read_text()
    assert trainhop.json("notebook", job)["path"] == "tiny-2.ipynb"
    assert first.read_text() == before
    assert "already exists. Choose another file" in trainhop("notebook", job, "--out", first.name, code=2).stderr
    trainhop("notebook", job, "--out", "mine.ipynb")
    assert (trainhop.folder / "mine.ipynb").exists()


def test_what_cannot_be_is_said(trainhop: Shell) -> None:
    job = trainhop("submit", trainhop.job_file(name="b.yaml")).stdout.strip()
    assert "Could not write" in trainhop("notebook", job, "--out", "no/such/folder.ipynb", code=2).stderr
    assert "trainhop store use drive" in trainhop("notebook", job, "--reach", "drive", code=1).stderr
    trainhop("cancel", job)
    assert f"trainhop retry {job}" in trainhop("notebook", job, code=1).stderr


def test_paid_colab_without_its_client_says_what_to_install(trainhop: Shell) -> None:
    (trainhop.folder / "token.json").write_text(
        '{"client_id": "a", "client_secret": "SECRET", "refresh_token": "SECRET"}'
    )
    refused = trainhop("accounts", "add", "colab", "--set", "mode=cli", "--token-file", "token.json", code=5)
    assert "pip install 'google-colab-cli" in refused.stderr
    assert "TRAINHOP_COLAB_PYTHON" in refused.stderr
    assert "SECRET" not in refused.stderr
    assert not [a for a in trainhop.json("accounts", "ls") if a["has_credentials"]], "nothing is stored"
    listed = trainhop("accounts", "providers", COLUMNS="200").stdout
    assert "--set mode=cli" in listed, "how machines of paid Colab are turned on"
    assert "--set mode=VALUE  `cli`: machines of paid Colab" in listed
    assert "None" not in listed, "a setting without a default"
