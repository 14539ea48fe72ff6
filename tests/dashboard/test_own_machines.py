"""Own machines in the browser: a command for a new one, its readings on the fleet page, and a drain."""

import re

from orchestrator.services.joined_machines import join
from orchestrator.services.joined_machines import report as take_report
from tests.dashboard.test_pages import ORIGIN, log_in
from worker.shared.joined_messages import Gpu, JoinRequest, MachineOffer, MachineReadings, MachineReport

OFFER = MachineOffer(hostname="attic<b>", python="3.12.1", slots=2, memory_bytes=24 << 30, gpu=True)


def test_a_machine_is_added_seen_and_drained(site):
    """Guard: with `owned` left out of `drain` a member paused the machine of another."""
    log_in(site)
    assert "Own machines" not in site.client.get("/fleet").text
    page = site.client.post("/machine-codes", headers=ORIGIN).text
    code = re.search(r"trainhop join http://127\.0\.0\.1 (thm_[\w-]+)", page)
    assert code
    ctx = site.app.context
    place = join(ctx, JoinRequest(protocol=1, code=code[1], nonce="n" * 16, offer=OFFER))
    assert "silent" in site.client.get("/fleet").text
    with ctx.uow() as tx:
        account = tx.accounts.get(place.account)
    gpu = Gpu(name="RTX <i>", total_bytes=24 << 30, used_bytes=6 << 30, percent=87.0)
    readings = MachineReadings(gpus=(gpu,), processors=16, load=3.5, ram_bytes=64 << 30, ram_free_bytes=32 << 30)
    take_report(ctx, account, MachineReport(protocol=1, offer=OFFER, readings=readings, clock=ctx.clock.now() - 7200))
    page = site.client.get("/fleet").text
    for words in ("attic&lt;b&gt;", "RTX &lt;i&gt; 87 %", "ready", "load, 16 processors", "120 minutes behind"):
        assert words in page
    assert "Drain" in site.client.get("/accounts").text
    assert site.client.post(f"/accounts/{place.account}/drain", headers=ORIGIN).status_code == 303
    assert ">paused" in site.client.get("/fleet").text
    assert "Paused: no new sessions start here" in site.client.get("/accounts").text
