"""Rows token by token on the submit page, in a real browser."""

from __future__ import annotations

import json

import pytest

from benchmarks.tiny_model import byte_tokenizer
from tests.dashboard.test_browser import XSS, _axe
from tests.helpers.page_server import page_server


@pytest.fixture
def model(tmp_path):
    """A folder with a tokenizer whose chat template writes markup around every turn."""
    folder = tmp_path / "models" / "tiny"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<script>alert(1)</script>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_rows_are_shown_by_token_with_the_models_own_template(visit, tmp_path, model):
    """What is trained on is marked, what is cut is struck out, and everything is only text; without the tokenizer the
    page says that it shows turns. Guard: without `again` on the fields the old model's rows stayed."""
    answer = "The 8:40 train. " + " ".join(XSS)
    turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": answer}]
    rows = json.dumps({"messages": turns}).encode() + b"\n"
    with page_server(tmp_path, allowed_folders=[str(model.parent)]) as show:
        page = visit(show.link(), bypass_csp=True)
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(show.url + "/submit?preset=chat")
        page.set_input_files("#file", {"name": "rows.jsonl", "mimeType": "text/plain", "buffer": rows})
        page.locator("#preview").get_by_text("by turn (the model's tokenizer is not on this computer)").wait_for()
        page.get_by_label("Base model").fill(str(model))
        page.get_by_label("Maximum sequence length (tokens)").fill("100")
        page.get_by_label("Maximum sequence length (tokens)").press("Tab")
        page.locator("#preview").get_by_text("exceeds the maximum length").wait_for()
        shown = page.locator("#preview .tokens")
        marked = "".join(shown.locator("mark").all_inner_texts())
        assert answer.startswith(marked)
        assert shown.inner_text().startswith("<script>alert(1)</script><|im_start|>user")
        assert "".join(shown.locator("s").all_inner_texts()).replace("\n", "").endswith("<|im_end|>")
        page.get_by_text("1 truncated").wait_for()
        assert page.evaluate("document.querySelectorAll('#preview script, #preview img').length") == 0
        assert _axe(page) == []
        page.close()  # before its server, to which the plan may still be on the way
