"""The pages of models, and the verdict with which the page of a finished job begins."""

from __future__ import annotations

import pytest

from orchestrator.domain.trust.sign_test import Outcome
from tests.dashboard.test_browser import XSS, _axe
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.http.http_client import People
from tests.http.test_models import BETTER, WORSE, rated, trained

TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def people(site) -> People:
    return People.of(site)


def test_a_finished_job_leads_with_its_verdict(site, people, provider, tmp_path):
    """Guard: without `judged` in `job_status.html` the page led with a green "succeeded"."""
    job = trained(site, people.ann, provider, tmp_path)
    log_in(site, people.ann)
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    status = page[page.index('id="status"') :]
    assert status.index("Not evaluated yet") < status.index("succeeded")
    assert "Evaluate it, and let people compare the answers." in status
    assert "not audited" in status
    assert 'class="tile safe"' not in page
    rated(site, people.ann, job, WORSE)
    assert "Verdict: do not promote" in site.client.get(f"/jobs/{job}", headers=HTML).text
    queued = people.ann.submit()["id"]
    assert "evaluated yet" not in site.client.get(f"/jobs/{queued}", headers=HTML).text


def test_a_model_is_promoted_and_rolled_back_with_forms(site, people, provider, tmp_path):
    job = trained(site, people.ann, provider, tmp_path, name=f"first {XSS[0]}")
    rated(site, people.ann, job, BETTER)
    log_in(site, people.ann)
    assert "Add and promote" in site.client.get(f"/models?job={job}", headers=HTML).text
    form = {"name": "guide", "job": job}
    assert site.client.post("/models", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
    assert site.client.post("/models", data=form, headers=ORIGIN).headers["location"] == "/models/guide"
    text = site.client.get("/models/guide", headers=HTML).text
    assert XSS[0] not in text
    assert "Nothing is promoted." in text
    sent = {"job": job, "after": "0"}
    assert site.client.post("/models/guide/promote", data=sent, headers=ORIGIN).headers["location"] == "/models/guide"
    text = site.client.get("/models/guide", headers=HTML).text
    assert 'href="/api/v1/models/guide/card"' in text
    assert "18 won by the adapter, 2 by its base" in text
    late = site.client.post("/models/guide/rollback", data={"after": "0"}, headers=ORIGIN | HTML)
    assert (late.status_code, "in the meantime" in late.text) == (409, True)
    assert site.client.post("/models/guide/rollback", data={"after": "1"}, headers=ORIGIN).status_code == 303
    assert "Nothing is promoted." in site.client.get("/models/guide", headers=HTML).text
    assert "guide" in site.client.get("/models", headers=HTML).text


def test_only_an_admin_sees_the_way_around_a_verdict(site, people, provider, tmp_path):
    job = trained(site, people.ann, provider, tmp_path)
    rated(site, people.ann, job, WORSE)
    log_in(site, people.ann)
    form = {"name": "guide", "job": job}
    refused = site.client.post("/models", data=form | {"promote": "true"}, headers=ORIGIN | HTML)
    assert (refused.status_code, "People prefer the base model" in refused.text) == (409, True)
    text = site.client.get("/models/guide", headers=HTML).text
    assert "Verdict: do not promote" in text
    assert "against the verdict" not in text + site.client.get(f"/models?job={job}", headers=HTML).text
    sent = {"job": job, "force": "true"}
    assert site.client.post("/models/guide/promote", data=sent, headers=ORIGIN | HTML).status_code == 403
    log_in(site)
    assert "Promote against the verdict" in site.client.get(f"/models?job={job}", headers=HTML).text
    answer = site.client.post("/models/guide/promote", data=sent, headers=ORIGIN)
    assert answer.headers["location"].startswith("/models/guide?member=")
    shown = site.client.get(answer.headers["location"], headers=HTML).text
    assert "Promoted against the verdict</b> by admin" in shown
    assert "promoted against the verdict" in site.client.get("/models", headers=HTML).text


def test_members_see_only_their_own_models(site, people, provider, tmp_path):
    job = trained(site, people.ann, provider, tmp_path)
    assert people.ann.post("/models/guide/candidates", {"job": job}).status_code == 201
    log_in(site, people.bob)
    for path in ("/models/guide", "/models/guide?member=ann", f"/models?job={job}"):
        assert site.client.get(path, headers=HTML).status_code == 404, path
    assert "guide" not in site.client.get("/models", headers=HTML).text
    assert site.client.post("/models", data={"name": "guide", "job": job}, headers=ORIGIN).status_code == 404


def test_the_pages_of_models_are_accessible_fit_and_need_no_script(show, visit, tmp_path):
    """Two candidates with long names, one of which is promoted against the verdict, and then rolled back."""
    admin = show.api.admin
    bad, good = (
        trained(show.api, admin, show.provider, tmp_path, name=name) for name in ("x" * 90, "the one that people like")
    )
    rated(show.api, admin, bad, WORSE, vetoes=["It forgot general text."])
    rated(show.api, admin, good, [Outcome.TIE] * 20 + BETTER)
    pages = ("/models", f"/models?job={bad}", "/models/guide", f"/jobs/{good}")
    page = visit(show.link(), java_script_enabled=False, width=360)
    page.goto(f"{show.url}/jobs/{bad}")
    page.get_by_role("link", name="Add to a model").click()
    page.get_by_role("combobox", name="Model").fill("guide")
    page.get_by_role("button", name="Promote against the verdict").click()
    page.get_by_text("Promoted against the verdict by admin").wait_for()
    page.goto(f"{show.url}/models?job={good}")
    page.get_by_role("combobox", name="Model").fill("guide")
    page.get_by_role("button", name="Add and promote").click()
    page.get_by_text("A rollback promotes xxx").wait_for()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Promoted against the verdict by admin").wait_for()
    for scheme, width in (("light", 1280), ("dark", 360)):
        page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
        for path in pages:
            page.goto(show.url + path)
            page.wait_for_load_state("load")
            assert _axe(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, (
                path
            )
    assert [move["against_verdict"] for move in admin.get("/models/guide").json()["history"]] == [True, False, True]
