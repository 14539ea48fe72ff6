"""Every Python snippet of the README and the docs is run against a real server, in a folder like its reader's."""

from __future__ import annotations

import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs.snippets import PAGES, ROOT, blocks
from tests.helpers.page_server import PageServer, page_server
from tests.helpers.waiting import wait_for
from tests.trainhop.conftest import TENSORS, Person, finish
from trainhop.download import WEIGHTS

SNIPPETS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks("python", page))
    if "trainhop" in text
]
EXAMPLE = "https://trainhop.example"


@pytest.fixture
def server(tmp_path: Path):
    """One for each: a snippet's job is the only one."""
    with page_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def reader(mine: Path, server: PageServer) -> Person:
    """Somebody whose folder holds what the snippets name."""
    shutil.copytree(ROOT / "examples", mine / "examples")
    (mine / "job.yaml").write_text("{base_model: org/small, max_steps: 10, datasets: [{path: rows.jsonl}]}")
    return Person(mine, ROOT, server.url, server.api.admin_token)


def played(server: PageServer, folder: Path, stop: threading.Event) -> None:
    """A machine that finishes the job which the snippet submits, if it submits one."""

    def queued():
        return stop.is_set() or server.api.admin.get("/jobs").json()["items"]

    if (jobs := wait_for(queued, "a job")) and not stop.is_set():
        finish(server, folder, jobs[0]["total_steps"])


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_runs(text: str, reader: Person, server: PageServer, tmp_path: Path) -> None:
    of_a_notebook, without_server = "notebook.run" in text, "trainhop.run(" in text
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        machine = pool.submit(played, server, tmp_path, stop)
        try:
            program = text.replace(EXAMPLE, server.url).replace("sleep(30)", "sleep(0.1)")
            said = reader("-c", program, code=1 if of_a_notebook or without_server else 0)
        finally:
            stop.set()
        machine.result()
    if of_a_notebook:
        assert "NotebookError: " in said
        assert "code" in said.rpartition("NotebookError: ")[2]
    elif without_server:  # tests/e2e/test_without_server.py has a place and trains
        assert "There is no Hugging Face token here" in said
    elif "import OpenAI" in text:
        assert zipfile.ZipFile(reader.folder / "my-adapter.zip").read(WEIGHTS) == TENSORS
    elif "download_adapter" in text:
        assert (reader.folder / "my-adapter" / WEIGHTS).read_bytes() == TENSORS
    elif ".watch(" in text:
        assert ("async Event(" if "asyncio" in text else "event job.succeeded") in said
    elif "except" in text:
        assert said.startswith("not_found None There is no job")
    else:
        assert said.startswith("local")


def test_the_pages_have_snippets() -> None:
    assert len(SNIPPETS) >= 6
