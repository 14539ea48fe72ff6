"""`trainhop store` as people type it: signing in with a browser here, with one elsewhere, and with a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Shell, environment, start_server
from tests.emulators.drive import Drive

BROWSER = """#!{python}
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(sys.argv[1]).read()
"""


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    with Drive(tmp_path_factory.mktemp("drive")) as drive:
        yield drive


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def home(google: Drive, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("server") / "data"
    process = start_server(data, "--slots", "0", "--allow-folder", str(models), TRAINHOP_DRIVE_ENDPOINT=google.url)
    yield data
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def shell(google: Drive, home: Path, models: Path, tmp_path: Path) -> Shell:
    (tmp_path / "client.json").write_text(json.dumps(google.tokens.client_secrets(google.url)))
    (tmp_path / "user.json").write_text(json.dumps(google.authorized_user()))
    (tmp_path / "browser").write_text(BROWSER.format(python=sys.executable))
    (tmp_path / "browser").chmod(0o700)
    return Shell(tmp_path, home, models)


def secrets_of(google: Drive) -> set[str]:
    return {google.tokens.client_secret, *google.tokens.refresh_tokens}


def test_with_a_file(shell: Shell, google: Drive) -> None:
    said = shell("store", "use", "drive", "--authorized-user", "user.json")
    assert "new files are stored in drive (somebody@example.com)" in said.stdout
    assert "15.0 GiB free" in said.stdout
    assert [s["current"] for s in shell.json("store", "ls")] == [False, True]
    assert "works" in shell("store", "check").stderr
    assert not any(secret in said.stdout + said.stderr for secret in secrets_of(google))
    assert "new files are stored in local" in shell("store", "use", "local").stdout
    assert "drive  -          somebody@example.com" in shell("store", "ls").stdout
    assert shell.json("store", "use", "drive")["current"], "the credentials are known"
    assert (
        "not credentials for Google Drive"
        in shell("store", "use", "drive", "--authorized-user", "browser", code=2).stderr
    )
    assert "No such file" in shell("store", "use", "drive", "--authorized-user", "nowhere.json", code=2).stderr


def test_a_notebook_goes_into_the_drive(shell: Shell) -> None:
    shell("store", "use", "drive", "--authorized-user", "user.json")
    job = shell("submit", shell.job_file()).stdout.strip()
    done = shell("notebook", job, "--drive")
    assert done.stdout.startswith("https://colab.research.google.com/drive/")
    assert "Open the link and run its cell. It works once, until" in done.stderr
    assert "Sign in to Google as somebody@example.com" in done.stderr
    assert not list(shell.folder.glob("*.ipynb")), "its only copy is in the Drive"
    assert shell.json("notebook", job, "--drive")["url"] == done.stdout.strip()
    assert "--out and --drive" in shell("notebook", job, "--drive", "--out", "a.ipynb", code=2).stderr
    shell("cancel", job)


def test_with_a_browser_here(shell: Shell, google: Drive) -> None:
    """The redirect comes back to this computer; PKCE is checked by the other side."""
    before = set(google.tokens.refresh_tokens)
    browser, url = f"{shell.folder / 'browser'} %s", google.url

    def sign_in(file: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = ("store", "use", "drive", "--client-secrets", file)
        return shell(*command, code=code, BROWSER=browser, TRAINHOP_DRIVE_ENDPOINT=url)

    said = sign_in("client.json")
    assert "new files are stored in drive" in said.stdout
    assert len(google.tokens.refresh_tokens - before) == 1
    assert not any(secret in said.stdout + said.stderr for secret in secrets_of(google))
    google.tokens.consent = False
    refused = sign_in("client.json", code=1)
    google.tokens.consent = True
    assert "access_denied" in refused.stderr
    assert "console.cloud.google.com" in sign_in("user.json", code=2).stderr


@pytest.mark.parametrize("tampered", [False, True])
def test_with_a_browser_elsewhere(shell: Shell, google: Drive, tampered: bool) -> None:
    """Guard: without the comparison of `state` a foreign code was exchanged."""
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "store", "use", "drive", "--no-browser"]
    with subprocess.Popen(
        [*command, "--client-secrets", "client.json"],
        cwd=shell.folder,
        env=environment(TRAINHOP_DATA_DIR=str(shell.data_dir), TRAINHOP_DRIVE_ENDPOINT=google.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        page = [process.stderr.readline(), process.stderr.readline()][1].strip()
        address = httpx.get(page, trust_env=False).headers["location"]
        if tampered:
            address = address.replace("state=", "state=x")
        out, err = process.communicate(address + "\n", timeout=60)
    assert ("new files are stored in drive" in out) is not tampered, err
    assert ("belongs to another sign-in" in err) is tampered


def test_a_store_that_stops_working_is_explained(shell: Shell, google: Drive) -> None:
    shell("store", "use", "drive", "--authorized-user", "user.json")
    google.tokens.revoke()
    assert "sign in again: trainhop store use drive" in shell("store", "check", code=5).stderr
    assert "sign in again" in shell("store", "ls").stdout
    google.tokens.refresh_tokens.add("emulated-refresh-token")


def test_a_drive_that_refuses_workers_is_used_with_a_warning(shell: Shell, google: Drive) -> None:
    """Guard: without `_say_note` nobody was told that all files go through the server."""
    for account in shell.json("accounts", "ls"):
        if account["provider"] != "local":  # of a notebook that another test has made
            shell("accounts", "rm", account["id"])
    google.anonymous = False
    said = shell("store", "use", "drive", "--authorized-user", "user.json")
    google.anonymous = True
    assert "new files are stored in drive" in said.stdout
    assert said.stderr.startswith("warning: its upload addresses do not take a file from a worker")
