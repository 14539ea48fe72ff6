"""Checks of an account's machines: who may ask, what is kept, what it closes, and that nothing of it stays behind."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import Examined, ProviderUnavailable
from orchestrator.services import diagnosis
from orchestrator.services.capacity import list_capacity
from orchestrator.services.dispatch import dispatch
from orchestrator.testing import FakePersonalProvider
from tests.http.http_client import Machine
from worker.doctor.outcome import FAILED, OK, PROBES, Outcome
from worker.shared import causes

IMAGE = "image-of-november"


class CheckedProvider(FakePersonalProvider):
    """Machines that can be checked: `broken` are probes that fail, `left` what was not cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, dict[str, Any]] = {}
        self.left: set[str] = set()
        self.orders: list[Any] = []
        self.unreachable = False
        self.crash: BaseException | None = None
        self.meanwhile: Any = lambda: None

    def capacity(self, account: Account) -> Any:
        return dataclasses.replace(super().capacity(account), gpu=True)

    def diagnose(self, account: Account, order: Any, tell: Any) -> Examined:
        self._reach("diagnose", account, order)
        self.orders.append(order)
        self.left.add(order.id)
        words = "broken for ann1 at http://some.host.example/x and ann1@example.com in /home/ann/x"
        found = [
            Outcome(
                name=name, status=FAILED if name in self.broken else OK, words=words, data=self.broken.get(name, {})
            )
            for name in PROBES
        ]
        tell(found[0])
        self.meanwhile()
        if self.crash is not None:
            raise self.crash
        return Examined(image=IMAGE, versions={"torch": "2.10.0"}, outcomes=tuple(found))

    def clear_check(self, account: Account, check_id: str) -> None:
        if self.unreachable:
            raise ProviderUnavailable("no answer")
        self.left.discard(check_id)


@pytest.fixture
def cloud() -> CheckedProvider:
    return CheckedProvider()


@pytest.fixture
def account(people) -> str:
    asked = {"provider": "cloud", "credentials": "KGAT_ann", "config": {"username": "ann1"}}
    return people.ann.post("/accounts", asked).json()["id"]


def diagnose(who: Any, account: str, **asked: Any) -> Any:
    return who.post(f"/accounts/{account}:diagnose", asked)


def closed_reason(app: Any) -> str:
    """Why nothing starts on the one cloud account."""
    with app.context.uow() as tx:
        return list_capacity(app.context, [a for a in tx.accounts.all() if a.provider == "cloud"])[0].closed_reason


def test_a_check_is_kept_judged_and_cleared(api, people, cloud, account) -> None:
    answer = diagnose(people.ann, account)
    assert answer.status_code == 202, answer.text
    found = people.ann.get(f"/accounts/{account}/diagnosis").json()
    assert (found["running"], found["problem"]) == (None, "")
    (check,) = found["checks"]
    assert (check["machine"], check["image"], check["versions"]) == ("cpu", IMAGE, {"torch": "2.10.0"})
    assert [p["name"] for p in check["probes"]] == list(PROBES)
    assert "10 of 10 probes ok" in found["summary"]
    assert found["summary"] in json.dumps(people.ann.get("/accounts").json())
    assert cloud.left == set()
    assert cloud.orders[0].token != cloud.orders[0].id
    assert cloud.orders[0].token not in json.dumps(found)


def test_only_its_owner_and_admins_may_check_an_account(api, people, cloud, account) -> None:
    """Guard: without `owned` in `diagnosis.start` Bob's request was carried out."""
    assert diagnose(people.bob, account).status_code == 404
    assert people.bob.get(f"/accounts/{account}/diagnosis").status_code == 404
    assert cloud.orders == []
    assert diagnose(people.admin, account).status_code == 202
    assert people.admin.get(f"/accounts/{account}/diagnosis").json()["checks"]


def test_nothing_runs_for_a_check_without_the_owners_consent(api, people, cloud) -> None:
    """Guard: without the consent's line in `diagnosis.start` the check ran on Ann's account at once."""
    asked = {"provider": "cloud", "owner": "ann", "credentials": "KGAT_ann"}
    made = people.admin.post("/accounts", asked).json()["id"]
    answer = diagnose(people.admin, made)
    assert (answer.status_code, "has not allowed sessions yet" in answer.json()["detail"]) == (409, True)
    assert cloud.orders == []


def test_machines_that_have_no_check_say_so(api1, people) -> None:
    pool = people.admin.get("/accounts").json()["items"][0]["id"]
    answer = diagnose(people.admin, pool)
    assert (answer.status_code, "cannot check machines" in answer.json()["detail"]) == (422, True)


def test_what_is_posted_names_nobody(api1, people, cloud, account) -> None:
    """Guard: with `_hidden` returning its value all four names were in the answer."""
    cloud.broken["hub"] = {"host": "http://some.host.example/x"}
    diagnose(people.ann, account)
    said = json.dumps(people.ann.get(f"/accounts/{account}/diagnosis").json()["checks"])
    for secret in ("ann1", "some.host", "example.com", "/home/ann", "KGAT", "ann's"):
        assert secret not in said, secret


def test_one_check_at_a_time(api1, people, cloud, account) -> None:
    """Guard: without `_is_running` in `diagnosis.start` the second check began."""
    seen: list[Any] = []

    def ask_again() -> None:
        cloud.meanwhile = lambda: None
        seen.append((diagnose(people.ann, account), people.ann.get(f"/accounts/{account}/diagnosis")))

    cloud.meanwhile = ask_again
    diagnose(people.ann, account)
    ((second, running),) = seen
    assert (second.status_code, "is already running" in second.json()["detail"]) == (409, True)
    assert [p["name"] for p in running.json()["running"]["seen"]] == [PROBES[0]]
    assert len(cloud.orders) == 1


def test_no_gpu_session_starts_while_the_set_does_not_train(api, people, cloud, account) -> None:
    """Until a check is ok. Guard: without `diagnosis.closed` in `dispatch._room` the job was launched."""
    cloud.broken["training"] = {"cause": causes.SMOKE}
    diagnose(people.ann, account)
    job = people.ann.submit(placement={"providers": ["cloud"]})["id"]
    assert dispatch(api.app.context) == 0
    assert "failed" in closed_reason(api.app)
    assert "trainhop doctor" in people.ann.get(f"/jobs/{job}").json()["waiting"]["reason"]
    cloud.broken.clear()
    diagnose(people.ann, account)
    assert closed_reason(api.app) == ""
    assert dispatch(api.app.context) == 1


def test_packages_that_could_not_be_fetched_close_nothing(api1, people, cloud, account) -> None:
    cloud.broken["training"] = {"cause": causes.INSTALL}
    diagnose(people.ann, account)
    assert closed_reason(api1.app) == ""


def test_another_image_is_noticed_and_opens_the_account(api, people, cloud, account) -> None:
    """Guard: without `note_image` in `leases` nobody was told, and the account stayed closed."""
    diagnose(people.ann, account)
    job = people.ann.submit(placement={"providers": ["cloud"]})["id"]
    machine = Machine.launched(api, cloud)
    hardware = {"device": "cpu", "name": "test"}
    assert machine.say("start", {"protocol": 1, "nonce": "n", "hardware": hardware, "image": IMAGE}).is_success
    assert people.ann.get(f"/accounts/{account}/diagnosis").json()["changed"] == ""
    machine.say("release", machine.said("release", step=0, reason="drained"))
    cloud.broken["training"] = {"cause": causes.SMOKE}
    again = Machine.launched(api, cloud)
    diagnose(people.ann, account)
    assert "failed" in closed_reason(api.app)
    assert again.say(
        "start", {"protocol": 1, "nonce": "n", "hardware": hardware, "image": "image-of-december"}
    ).is_success
    found = people.ann.get(f"/accounts/{account}/diagnosis").json()
    assert found["changed"].startswith("Cloud's image changed since the last check on ")
    assert found["changed"].endswith("run `trainhop doctor --cloud`")
    assert closed_reason(api.app) == ""
    events = people.ann.get(f"/jobs/{job}/events").json()["items"]
    assert found["changed"] in [e["reason"] for e in events if e["kind"] == "image.changed"]


def test_a_check_that_cannot_be_made_says_why_and_closes_nothing(api, people, cloud, account) -> None:
    cloud.crash = ProviderUnavailable("Kaggle is away")
    diagnose(people.ann, account)
    found = people.ann.get(f"/accounts/{account}/diagnosis").json()
    assert (found["running"], found["checks"]) == (None, [])
    assert found["problem"] == "The check could not be started: Kaggle is away"
    assert cloud.left == set()


def test_what_could_not_be_deleted_is_deleted_later(api, people, cloud, account) -> None:
    """Guard: without `left` in the account the check's kernels stayed for ever."""
    cloud.unreachable = True
    diagnose(people.ann, account)
    assert len(cloud.left) == 1
    diagnosis.clear_left(api.app.context)
    assert len(cloud.left) == 1
    cloud.unreachable = False
    diagnosis.clear_left(api.app.context)
    assert cloud.left == set()


def test_what_a_stopped_server_left_is_deleted_when_it_comes_up(api, people, cloud, account, clock) -> None:
    """Guard: without `running` in `clear_left` the kernels of a check whose server was killed stayed for ever."""
    ctx = dataclasses.replace(api.app.context, spawn=lambda work: None)
    with ctx.uow() as tx:
        owner = next(m for m in tx.members.all() if m.name == "ann")
    actor = diagnosis.Actor(member_id=owner.id, name="ann", role=owner.role)
    started = diagnosis.start(ctx, actor, account, gpu=False)
    cloud.left.add(started.image["running"]["check"])
    clock.tick(60)
    later = dataclasses.replace(ctx, started_at=clock.now())
    assert "The server stopped" in diagnosis.read(later, actor, account).image["problem"]
    diagnosis.clear_left(ctx)  # the server that is at it leaves it alone
    assert len(cloud.left) == 1
    diagnosis.clear_left(later)
    assert cloud.left == set()
    assert "running" not in diagnosis.read(later, actor, account).image
