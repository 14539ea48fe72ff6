"""What is missing in an installation, and the line that adds it."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from worker.shared.installation import Installation, install_line, missing_modules, missing_packages


def of(origin: dict, prefix: Path = Path("/venv"), *, has_pip: bool = True) -> Installation:
    return Installation(prefix=prefix, python=f"{prefix}/bin/python", has_pip=has_pip, origin=origin)


WHEEL = {"url": "file:///tmp/a%20b/trainhop-0.1.0-py3-none-any.whl", "archive_info": {}}
GIT = {
    "url": "https://example.org/trainhop",
    "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "v1"},
}
CHECKOUT = {"url": "file:///src/a%20b", "dir_info": {"editable": True}}


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ({}, ["trainhop[server,train]"]),
        (WHEEL, [f"trainhop[server,train] @ {WHEEL['url']}"]),
        (GIT, ["trainhop[server,train] @ git+https://example.org/trainhop@v1"]),
        (CHECKOUT, ["-e", "/src/a b[server,train]"]),
    ],
)
def test_the_line_installs_from_where_this_came_from(origin: dict, wanted: list[str]) -> None:
    """Guard: `trainhop[server]` alone asks the package index, also where a wheel or a repository was installed."""
    words = shlex.split(of(origin).line("train", "server", torch=True))
    assert words == ["/venv/bin/python", "-m", "pip", "install", "torch", *wanted]
    assert of(origin, has_pip=False).line("server").startswith("uv pip install --python /venv/bin/python ")


def test_a_tool_of_uv_keeps_what_it_was_installed_with(tmp_path: Path) -> None:
    """Guard: `uv tool install --force` forgets the extras that it is not told again."""
    receipt = '[tool]\nrequirements = [{ name = "trainhop", extras = ["kaggle"] }, { name = "torch" }]\n'
    (tmp_path / "uv-receipt.toml").write_text(receipt)
    tool = of({}, tmp_path)
    assert tool.line("server", torch=True) == "uv tool install --force --with torch 'trainhop[kaggle,server]'"
    (tmp_path / "uv-receipt.toml").write_text("damaged [")
    assert tool.line("server") == "uv tool install --force 'trainhop[server]'"
    run_once = of({}, tmp_path / "uv" / "archive-v0" / "xyz")
    assert run_once.line("server") == "uvx --from 'trainhop[server]' trainhop up"


def test_what_is_missing_is_found_without_an_import() -> None:
    assert missing_modules(("json", "no_such_module_here")) == ["no_such_module_here"]
    assert missing_packages("server") == []
    needs = ["pytest>=1; extra == 'a'", "nothing-such==2.0; extra == 'a'", "pytest==0.1; extra == 'a'", "other"]
    have = metadata.version("pytest")
    assert missing_packages("a", needs) == ["nothing-such (needs 2.0)", f"pytest {have} (needs 0.1)"]


def test_this_installation_is_known() -> None:
    assert shlex.split(install_line("server"))[0] in {sys.executable, "uv", "uvx"}
