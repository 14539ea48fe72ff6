"""The whole story in a browser, with real worker processes: bring data, submit, watch a hand-off, take the adapter
home."""

from __future__ import annotations

import json
import zipfile

import pytest
from safetensors.numpy import load as load_tensors

from benchmarks.lab import lab
from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.dashboard.test_browser import CURVE, MARKS, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_submit_watch_a_hand_off_take_the_adapter(visit, tmp_path):
    model, rows = make_tiny_llama(tmp_path / "models" / "tiny"), write_rows(tmp_path / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path / "lab", **settings, reconcile_s=0.5) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        server.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        page = visit(server.post("/login-links")["url"])
        page.context.set_default_timeout(180_000)
        page.get_by_role("link", name="submit your own job").click()
        page.set_input_files("#file", str(rows))
        page.get_by_text("by the model's tokenizer").or_(page.get_by_text("estimated")).wait_for()
        page.get_by_label("Name", exact=True).fill("a whole story")
        page.get_by_label("Base model").fill(str(model))
        page.get_by_label("Steps (instead of epochs)").fill("160")
        page.locator("#plan").get_by_text("fits this-computer").wait_for()
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("heading", name="a whole story").wait_for()
        ident = page.url.rpartition("/")[2]

        server.wait_for(lambda: page.evaluate(CURVE) >= 10, "ten steps on the curve", 180, 0.2)
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Hand over").click()
        page.get_by_text("hand-off requested").first.wait_for()
        server.wait_for(lambda: len(page.evaluate(MARKS)) == 1, "the mark on the curve", 180, 0.2)
        (mark,) = page.evaluate(MARKS)
        page.locator("#status .pill.succeeded").wait_for()
        until(page, f"({CURVE}) === 160")

        sessions = server.get(f"/jobs/{ident}/sessions")["items"]
        assert [s["outcome"] for s in sessions] == ["handed_off", "completed"]
        assert sessions[1]["first_step"] == mark
        assert sessions[1]["fidelity"] == "exact"
        with page.expect_download() as arriving:
            page.get_by_role("link", name="Adapter").click()
        archive = zipfile.ZipFile(arriving.value.path())
        assert load_tensors(archive.read("adapter_model.safetensors"))
        page.get_by_role("link", name="output of session 2").click()
        page.get_by_text("step 160 loss").wait_for()
