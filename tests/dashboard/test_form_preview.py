"""The preview of a data file on the page for a new job: it shows what the job of the form would train on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ports.catalog import TokenLook
from orchestrator.services import data_reading
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from worker.shared.dataset_spec import TaughtTurns
from worker.shared.own_template import CHATML

CHAT = [{"role": role, "content": said} for role, said in (("user", "Hello"), ("assistant", "Hi"))] * 2
FORM = {"name": "a", "base_model": "org/m", "sequence_len": "16", "max_steps": "3", "prompts": ""}


class Asked:
    """Looks that keep what they were asked for."""

    def __init__(self, look: TokenLook) -> None:
        self.look, self.text = look, ""
        self.more: dict[str, Any] = {}

    def has(self, model: str) -> bool:
        return False

    def of(self, model: str, file: Path, *given: Any, **more: Any) -> TokenLook:
        self.more, self.text = more, file.read_text()
        return self.look


@pytest.fixture
def looks(site) -> Asked:
    asked = Asked(TokenLook(away="not here"))
    state = site.client.app.state
    state.server = dataclasses.replace(state.server, ctx=dataclasses.replace(state.server.ctx, looks=asked))
    log_in(site)
    return asked


def shown(site, row: dict[str, Any], more: str) -> str:
    sha256 = site.admin.upload(json.dumps(row).encode() + b"\n").json()["sha256"]
    form = FORM | {"data": sha256, "more": more.replace("SHA", sha256)}
    return site.client.post(f"/submit/data/{sha256}", data=form, headers=ORIGIN | HTML).text


def test_the_template_and_the_turns_of_the_yaml_count(site, looks) -> None:
    """Guard: without the job of the form, the model's own template was shown, and both answers as trained on."""
    keys = "chat_template: chatml\ndatasets: [{path: 'sha256:SHA', mask_history: true}]"
    text = shown(site, {"messages": CHAT}, keys)
    assert text.count("<mark>") - text.count("<mark>Highlighted") == 1
    assert looks.more["chat_template"] == CHATML
    assert looks.more["taught"] == TaughtTurns(mask_history=True)
    assert looks.more["sequence_len"] == 16
    plain = shown(site, {"messages": CHAT}, "")
    assert plain.count("<mark>") - plain.count("<mark>Highlighted") == 2
    assert looks.more["chat_template"] is None


def test_a_large_file_is_read_as_the_yaml_says(site, looks) -> None:
    """It is read in a process of its own."""
    large = [{"role": "system", "content": "x" * data_reading.SMALL_BYTES}, *CHAT]
    text = shown(site, {"messages": large}, "datasets: [{path: 'sha256:SHA', mask_history: true}]")
    assert text.count("<mark>") - text.count("<mark>Highlighted") == 1


def test_columns_and_long_texts_of_the_yaml_count(site, looks) -> None:
    looks.look = TokenLook(lengths=[46])
    row = {"text": "a title", "body": "a long text"}
    assert "1 text split into 3 pieces" in shown(site, row, "")
    assert json.loads(looks.text)["text"] == "a title"
    keys = "excess_length_strategy: truncate\ndatasets: [{path: 'sha256:SHA', field: body}]"
    assert "1 truncated" in shown(site, row, keys)
    assert json.loads(looks.text)["text"] == "a long text"
    assert looks.more["split_texts"] is False


@pytest.mark.parametrize("more", ["learning_rate: [", "lora_r: zero", "datasets: [{path: 'sha256:" + "0" * 64 + "'}]"])
def test_a_form_that_is_not_finished_shows_the_file(site, looks, more: str) -> None:
    assert "Highlighted" in shown(site, {"messages": CHAT}, more)
    assert looks.more["sequence_len"] == 16
