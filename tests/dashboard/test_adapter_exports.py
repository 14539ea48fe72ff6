"""Exports on a job's page: the form, what is being done, the files, and the commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.entrypoints.dashboard.job_view import SECTIONS
from tests.dashboard.test_browser import _axe
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.helpers.exporter import HeldExporter, finish_export, small_adapter
from tests.helpers.waiting import wait_for
from tests.http.http_client import Machine, People

SCRIPT = {"hx-request": "true"}


@pytest.fixture
def people(site) -> People:
    return People.of(site)


@pytest.fixture
def exporter(site) -> HeldExporter:
    site.app.context.exports.exporter = held = HeldExporter()
    return held


def trained(site, people, provider, tmp_path, **changes) -> str:
    job = people.ann.submit(**changes)["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10, *small_adapter()).status_code == 204
    return job


def test_a_form_starts_an_export_and_the_page_shows_it(site, people, provider, tmp_path, exporter):
    job = trained(site, people, provider, tmp_path)
    log_in(site, people.ann)
    home = f"/jobs/{job}/exports"
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert f'<form method="post" action="{home}"' in page
    assert "NF4, as trained" not in page
    # The type that the form has for the other formats is not one of a GGUF adapter.
    made = site.client.post(home, data={"format": "gguf-adapter", "type": "q8_0", "onto": "nf4"}, headers=ORIGIN)
    assert (made.status_code, made.headers["location"]) == (303, f"/jobs/{job}#exports")
    exporter.begun.acquire()
    section = site.client.get(home, headers=SCRIPT).text
    assert f"writing {job}/gguf-adapter…" in section
    assert 'hx-trigger="every 2s"' in section
    refused = site.client.post(home, data={"format": "gguf", "type": "fp16"}, headers=ORIGIN | SCRIPT).text
    assert "is still running. Wait until it has ended." in refused
    exporter.go_on.release()
    wait_for(lambda: "every 2s" not in site.client.get(home, headers=SCRIPT).text, "the export")
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert f'href="/api/v1{home}/gguf-adapter/files/adapter.gguf" download="adapter.gguf"' in page
    assert f"--lora {job}-gguf-adapter/adapter.gguf" in page
    assert "logits differ by 0.10 %" in page
    assert "The &lt;b&gt; is escaped." in page
    assert '<option value="gguf-adapter">' not in page
    gone = site.client.post(f"{home}/gguf-adapter/remove", headers=ORIGIN | SCRIPT).text
    assert '<option value="gguf-adapter">' in gone
    log_in(site, people.bob)
    assert site.client.get(home, headers=SCRIPT).status_code == 404
    assert site.client.post(home, data={"format": "gguf"}, headers=ORIGIN).status_code == 404


def test_a_page_says_why_there_are_no_exports(site, people, provider, tmp_path, exporter):
    exporter.absent = "This server cannot export, because torch is not installed there."
    job = trained(site, people, provider, tmp_path, adapter="qlora")
    log_in(site, people.ann)
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert exporter.absent in page
    assert f'action="/jobs/{job}/exports"' not in page
    exporter.absent = ""
    assert "NF4, as trained" in site.client.get(f"/jobs/{job}", headers=HTML).text


def test_a_job_without_an_adapter_offers_no_export(site, people):
    job = people.ann.submit()["id"]
    log_in(site, people.ann)
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert "Once the job has succeeded" in page
    assert f'action="/jobs/{job}/exports"' not in page


def test_an_export_on_a_machine_is_started_and_shown_on_both_pages(site, people, provider, tmp_path, exporter):
    """Also where the server cannot export."""
    exporter.absent = "This server cannot export."
    job = trained(site, people, provider, tmp_path)
    provider.rooms = replace(provider.rooms, slots=2)
    log_in(site, people.ann)
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    home = f"/jobs/{job}/machine-exports"
    assert f'<form method="post" action="{home}"' in page
    refused = site.client.post(home, data={"format": "merged", "type": "q8_0"}, headers=ORIGIN | SCRIPT).text
    assert "q8_0 is a type of GGUF models." in refused
    assert site.client.post(home, data={"format": "gguf", "type": "fp16"}, headers=ORIGIN).status_code == 303
    (made,) = people.ann.get(home).json()["items"]
    section = site.client.get(f"/jobs/{job}/exports", headers=SCRIPT).text
    assert f'<a href="/jobs/{made["id"]}">' in section
    assert '<p role="status">Queued…</p>' in section
    assert 'hx-trigger="every 5s"' in section
    own = site.client.get(f"/jobs/{made['id']}", headers=HTML).text
    assert f'exports <a href="/jobs/{job}">' in own
    assert f"trainhop export {job} --format gguf --on-machine" in own
    machine = Machine.launched(site, provider)
    machine.start()
    assert finish_export(machine).status_code == 204
    for shown in (job, made["id"]):
        page = site.client.get(f"/jobs/{shown}", headers=HTML).text
        assert f'href="/api/v1/jobs/{made["id"]}/machine-exports/files/Modelfile" download="Modelfile"' in page
        assert "ollama create out -f out/Modelfile" in page
        assert "The &lt;b&gt; is escaped." in page
    assert "Clones:" not in page
    log_in(site, people.bob)
    assert site.client.post(home, data={"format": "gguf"}, headers=ORIGIN).status_code == 404


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_an_export_appears_on_the_open_page(show, visit, tmp_path, scheme, width):
    show.api.app.context.exports.exporter = exporter = HeldExporter()
    people = People(admin=show.api.admin, ann=show.api.admin, bob=show.api.admin)
    job = trained(show.api, people, show.provider, tmp_path)
    page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
    page.goto(f"{show.url}/jobs/{job}")
    page.get_by_label("Export as").select_option("gguf-adapter")
    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_role("status").filter(has_text="writing").wait_for()
    assert _axe(page) == []
    exporter.go_on.release()
    page.get_by_role("link", name="adapter.gguf").wait_for()
    assert _axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Remove the export").click()
    page.get_by_role("link", name="adapter.gguf").wait_for(state="detached")


def test_exports_are_no_part_of_the_live_stream():
    """Guard: the stream renders a job when the job changes, so the next viewer of an open page saw older exports."""
    assert "exports" not in SECTIONS
