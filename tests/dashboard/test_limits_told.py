"""What cannot be done is said: machines that cannot be called, steps that are not saved, accounts that fail."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import update

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.dashboard_queries import DashboardQueries
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.entrypoints.dashboard.job_view import progress_of_request
from orchestrator.services.context import first_id
from tests.dashboard.test_pages import HTML, log_in
from tests.http.http_client import Api, Machine


def _as_one_way(api: Api, lease: str) -> None:
    """As if this machine could not be called: it prints, and its output is read."""
    with api.app.engine.begin() as connection:
        connection.execute(update(tables.leases).where(tables.leases.c.id == lease).values(offline=True))


def test_a_machine_that_cannot_be_called_says_when_it_leaves(site, provider, clock):
    """Guard: the button asked for a hand-over that never happened, and each later report acknowledged it."""
    job = site.admin.submit()["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    machine.report(335)
    page = _page(site, job)
    assert f'hx-post="/jobs/{job}/handover"' in page
    _as_one_way(site, machine.lease)
    page = _page(site, job)
    assert re.search(r"<button class=\"button\" disabled[^>]*>.*Hand over</button>", page)
    assert re.search(r"Leaves at <time[^>]*>\d\d:\d\d UTC</time>, cannot be interrupted", page)
    assert "the first one comes when the session ends" in page
    assert re.search(r"At risk: <b>335 steps</b>.* until the session ends", page)
    refused = site.admin.post(f"/jobs/{job}:handover")
    assert refused.status_code == 409
    assert re.search(r"cannot be interrupted.*leaves by itself at \d\d:\d\d UTC", refused.json()["detail"])


def _page(site: Api, job: str) -> str:
    log_in(site)
    return site.client.get(f"/jobs/{job}", headers=HTML).text


def _event(kind: str, at: float, number: int) -> dict[str, Any]:
    return {"id": number, "kind": kind, "at": at, "lease_id": None}


def test_a_report_of_an_offline_session_acknowledges_nothing():
    """Guard: without `one_way` a report that was printed before the request counted as its acknowledgement."""
    live = {"id": "lease-1", "one_way": False, "last_seen_at": 20.0}
    asked = [_event("job.pause_requested", 10.0, 1)]
    assert progress_of_request(live, asked, 30.0) == [("pause requested", 10.0), ("acknowledged", 20.0), ("done", None)]
    assert progress_of_request(live | {"one_way": True}, asked, 30.0) == [("pause requested", 10.0), ("done", None)]


def test_steps_at_risk_have_no_green_shield(site, provider):
    job = site.admin.submit()["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    machine.report(0)
    assert 'class="risk"' in _page(site, job)
    machine.report(335)
    page = _page(site, job)
    assert 'class="risk some"' in page
    (risk,) = re.findall(r'<p class="risk some">(.*?)At risk', page, re.DOTALL)
    assert "shield" not in risk


def test_a_machine_that_was_lost_before_its_first_report_counts(site, provider, clock):
    """Guard: with `started_at` alone the fleet page says that none was lost."""
    site.admin.submit()
    machine = Machine.launched(site, provider)
    _end(site, machine.lease, EndReason.LOST)
    now = clock.now()
    found = DashboardQueries(site.app.engine).day(None, first_id=first_id("lease", now - 86_400.0), now=now)
    assert (found.lost, found.hours) == (1, 0.0)


def _end(site: Api, lease: str, reason: EndReason, detail: str = "") -> None:
    with site.app.context.uow() as tx:
        found = tx.leases.get(lease)
        assert found is not None
        found.state, found.end_reason, found.detail = LeaseState.EXPIRED, reason, detail
        found.ended_at = site.app.context.clock.now()
        tx.leases.save(found)


def test_an_account_is_as_good_as_its_last_sessions(site, provider, clock):
    """Guard: an account whose sessions all fail was green as long as a check of its sign-in went well."""
    site.admin.submit()
    machine = Machine.launched(site, provider)
    log_in(site)
    assert "The last session here failed" not in site.client.get("/accounts", headers=HTML).text
    _end(site, machine.lease, EndReason.LOST, "the machine ended without a message")
    page = site.client.get("/accounts", headers=HTML).text
    assert "The last session here failed" in page
    assert "without a message" not in page, "a pool's sessions are other members' too"
    _end(site, machine.lease, EndReason.COMPLETED)
    assert "The last session here failed" not in site.client.get("/accounts", headers=HTML).text
