"""The cell that checks a Colab runtime, executed in a real kernel; its answer by itself and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from tests.emulators.hub import checked as checked_repo
from tests.notebook.test_through_drive import COLAB
from worker.doctor import outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ASKED = {outcome.TRAINING, outcome.EQUAL_BYTES, outcome.ALL_REDUCE, outcome.HUB, outcome.DRIVE_SIGN_IN}


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    with Drive(tmp_path / "drive") as emulator:
        yield emulator


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab", offline=True, local_slots=0) as running:
        yield running


def notebook(server: Lab, *probes: str, server_url: str = "", drive: str = "") -> dict[str, Any]:
    """The server's cell as a notebook, for these probes alone."""
    cell = server.post("/checks/colab")["cell"]
    before, _, rest = cell.partition("ORDER = json.loads(")
    text, _, after = rest.partition(")\n")
    order = json.loads(eval(text)) | {"probes": list(probes), "server": server_url, "drive": drive}
    source = f"{before}ORDER = json.loads({json.dumps(order)!r})\n{after}"
    code = {
        "cell_type": "code",
        "id": "check",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": source,
    }
    about = {"cell_type": "markdown", "id": "about", "metadata": {}, "source": ""}
    return {"notebook": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [about, code]}}


def answer(said: str) -> str:
    """The line that a person copies."""
    return next(line for line in said.splitlines() if line.startswith("@trainhop "))


def judged(server: Lab, line: str) -> dict[str, Any]:
    return {p["name"]: p for p in server.post("/checks/colab:answer", {"line": line})["probes"]}


def test_the_answer_comes_by_itself_or_by_hand(server: Lab, drive: Drive, tab: Any) -> None:
    with HubEmulator(checked_repo()) as hub:
        url = str(server.client.base_url).partition("/api/")[0]
        made = notebook(server, outcome.HUB, outcome.DRIVE_SIGN_IN, server_url=url, drive=drive.url)
        said = tab(made, COLAB.format(user=drive.authorized_user()), HF_ENDPOINT=hub.endpoint).said
    assert "The server has received the result" in said, said
    found = judged(server, answer(said))
    assert {name: p["status"] for name, p in found.items() if p["status"] != "not asked"} == {
        outcome.HUB: "ok",
        outcome.DRIVE_SIGN_IN: "ok",
    }, said
    altered = answer(said).replace('"status":"ok"', '"status":"failed"')
    refused = server.client.post("/checks/colab:answer", json={"line": altered})
    assert (refused.status_code, "not a check result" in refused.json()["detail"]) == (422, True)


def test_a_runtime_that_is_no_colab_and_cannot_reach_the_server(server: Lab, tab: Any) -> None:
    said = tab(notebook(server, outcome.DRIVE_SIGN_IN, server_url="http://127.0.0.1:9"), "").said
    assert "Could not reach the server" in said
    found = judged(server, answer(said))
    assert found[outcome.DRIVE_SIGN_IN]["status"] == "failed"
    assert "this is not a Colab runtime" in found[outcome.DRIVE_SIGN_IN]["words"]
    assert "cannot reach the server through Google Drive" in found[outcome.DRIVE_SIGN_IN]["remedy"]


def test_all_that_a_runtime_can_answer(server: Lab, drive: Drive, tab: Any) -> None:
    with HubEmulator(checked_repo()) as hub:
        before = COLAB.format(user=drive.authorized_user())
        made = notebook(server, *outcome.PROBES, drive=drive.url)
        opened = tab(made, before, elsewhere=True, HF_ENDPOINT=hub.endpoint, OMP_NUM_THREADS="1")
        said = opened.said
    found = judged(server, answer(said))
    assert {name for name, p in found.items() if p["status"] == "ok"} == ASKED, said
