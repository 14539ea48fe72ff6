"""Messages that arrive: a real receiver, the real verifying library, and what happens when nobody answers."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from orchestrator.adapters.notifier import signed
from orchestrator.domain.accounts import Account
from orchestrator.domain.notifications import Topic
from orchestrator.services import notifications
from orchestrator.services.notifications import DIGEST_S, RETRY_S, STALLED_S, check_alerts, deliver_due
from tests.dashboard.receivers import Receiver
from tests.http.http_client import Machine

OUTSIDE = "https://93.184.215.14/hook"
"""A public address, to which nothing is sent here."""


def listen(caller, receiver: Receiver, **more) -> tuple[str, str]:
    answer = caller.post("/notifications", {"url": receiver.url, **more})
    assert answer.status_code == 201, answer.text
    assert "my-secret-key" not in answer.text
    return answer.json()["channel"]["id"], answer.json()["secret"]


def titles(receiver: Receiver) -> list[str]:
    return [json.loads(body)["data"]["title"] for _, body in receiver.got]


def test_a_job_is_told_from_start_to_end_signed(api, people, provider, clock, tmp_path, receiver):
    """Guards: with the timestamp left out of the signed text the library refused it; without the unique key a second
    round told everything again; without joining, the second hand-off came as a message of its own."""
    _, secret = listen(people.admin, receiver)
    people.admin.submit(name="mine")
    mine = Machine.launched(api, provider)
    mine.start()
    people.bob.submit(name="not-mine")
    Machine.launched(api, provider).start()
    mine.save(4, tmp_path)
    mine.say("release", mine.said("release", step=4, reason="deadline"))
    context = api.app.notifications
    assert deliver_due(context) == 1
    assert titles(receiver) == ["Running: mine"]
    second = Machine.launched(api, provider)
    second.start()
    second.save(6, tmp_path)
    second.say("release", second.said("release", step=6, reason="deadline"))
    third = Machine.launched(api, provider)
    third.start()
    assert deliver_due(context) == 0
    third.save(10, tmp_path)
    third.finish(10)
    clock.tick(1)
    assert deliver_due(context) == 1
    assert titles(receiver)[1:] == ["Succeeded: mine"]
    clock.tick(DIGEST_S)
    assert deliver_due(context) == 1
    assert deliver_due(context) == 0
    digest = json.loads(receiver.got[-1][1])["data"]
    assert (digest["title"], digest["count"]) == ("Handed off: mine", 2)
    assert "Handed off at step 4" in digest["text"]
    assert "Handed off at step 6" in digest["text"]
    assert len(receiver.got) == 3
    for headers, body in receiver.got:
        when = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        as_the_library_signs = Webhook(secret).sign(headers["webhook-id"], when, body.decode())
        assert headers["webhook-signature"] == as_the_library_signs


def test_a_receiver_believes_a_message_of_now():
    """With the clock of today the library's own verification takes the message, and no other."""
    secret = "whsec_" + "c2VjcmV0" * 4
    body = b'{"type": "trainhop.test"}'
    headers = signed(secret, "message-1", time.time(), body)
    assert Webhook(secret).verify(body, headers) == {"type": "trainhop.test"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)


def test_what_does_not_arrive_is_tried_again_and_logged(api, people, provider, clock, receiver):
    """Guard: without `next_at` moving on, the second round tried again at once."""
    channel, _ = listen(people.admin, receiver, topics=["started"])
    receiver.status = 503
    people.admin.submit()
    Machine.launched(api, provider).start()
    for tries, pause in enumerate(RETRY_S, 1):
        assert deliver_due(api.app.notifications) == 0
        assert deliver_due(api.app.notifications) == 0
        assert len(receiver.got) == tries
        clock.tick(pause + 1)
    (log,) = people.admin.get(f"/notifications/{channel}/deliveries").json()["items"]
    assert (log["state"], log["attempts"], log["detail"]) == ("pending", len(RETRY_S), "it answered 503")
    receiver.status = 200
    assert deliver_due(api.app.notifications) == 1
    (log,) = people.admin.get(f"/notifications/{channel}/deliveries").json()["items"]
    assert log["state"] == "sent"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    receiver.status = 410
    assert people.admin.post(f"/notifications/{channel}:test").json()["state"] == "failed"
    assert people.admin.get("/notifications").json()["items"][0]["active"] is False
    receiver.status = 200
    assert people.admin.post(f"/notifications/{channel}:test").json()["state"] == "sent"
    assert people.admin.get("/notifications").json()["items"][0]["active"] is True


def test_apprise_carries_messages_too(api, people, receiver):
    url = receiver.url.replace("http://", "json://")
    made = people.admin.post("/notifications", {"url": url}).json()
    assert (made["channel"]["kind"], made["channel"]["label"], made["secret"]) == ("apprise", "json://…", None)
    assert people.admin.post(f"/notifications/{made['channel']['id']}:test").json()["state"] == "sent"
    assert json.loads(receiver.got[0][1])["title"] == "Trainhop: test"
    receiver.status = 500
    refused = people.admin.post(f"/notifications/{made['channel']['id']}:test").json()
    assert refused["state"] == "failed"
    assert "did not accept" in refused["detail"]


def test_addresses_lie_nowhere_in_clear(api, people, receiver):
    """Guard: with the address itself in `sealed`, the dump below held it."""
    listen(people.admin, receiver)
    with api.app.engine.connect() as connection:
        dump = str([tuple(row) for row in connection.execute(text("SELECT * FROM channels"))])
    assert "my-secret-key" not in dump
    assert "127.0.0.1" in dump
    assert "my-secret-key" not in people.admin.get("/notifications").text


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "http://",
        "dbus://",
        "syslog://",
        "unknownservice://x",
        "http://[",
        "ftp://x/y",
        "json://a, syslog://",
    ],
)
def test_addresses_that_cannot_be_used_are_refused_in_words(api1, people, url):
    """Guard: with Apprise's `add` in place of `instantiate`, what stood after a comma was a second service."""
    answer = people.ann.post("/notifications", {"url": url})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/url"


def test_channels_are_their_owners_alone(api, people):
    channel = people.ann.post("/notifications", {"url": OUTSIDE}).json()["channel"]["id"]
    assert people.bob.get("/notifications").json()["items"] == []
    for answer in (
        people.bob.post(f"/notifications/{channel}:test"),
        people.bob.call("DELETE", f"/notifications/{channel}"),
        people.admin.get(f"/notifications/{channel}/deliveries"),
    ):
        assert answer.status_code == 404
    job = people.ann.submit()["id"]
    assert people.bob.post("/notifications", {"url": OUTSIDE, "job": job}).status_code == 404
    assert people.ann.call("DELETE", f"/notifications/{channel}").status_code == 204
    assert people.ann.get("/notifications").json()["items"] == []


def test_what_nobody_announces_is_noticed_once(api, people, provider, clock, receiver):
    """Guards: without `STALLED_S` counted from the last safe point a fresh session was told of; without the key, each
    look told it again."""
    listen(people.admin, receiver, topics=["stalled", "quota_low", "needs_person"])
    people.admin.submit(name="slow")
    machine = Machine.launched(api, provider)
    machine.start()
    check_alerts(api.app.notifications)
    assert deliver_due(api.app.notifications) == 0
    for _ in range(2):
        clock.tick(STALLED_S + 60)
        check_alerts(api.app.notifications)
    assert deliver_due(api.app.notifications) == 1
    assert titles(receiver) == ["Stalled: slow"]
    me = people.admin.get("/me").json()["id"]
    with api.app.context.uow() as tx:
        account = Account(
            id="account-1", provider="fake", member_id=me, name="admin-fake", config={}, created_at=clock.now()
        )
        account.problem = "the token was revoked"
        tx.accounts.add(account)
    check_alerts(api.app.notifications)
    check_alerts(api.app.notifications)
    assert deliver_due(api.app.notifications) == 1
    assert titles(receiver)[1:] == ["Action needed: admin-fake"]


def test_every_topic_has_its_words():
    assert set(notifications._WORDS) == set(Topic)
