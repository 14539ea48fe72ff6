"""Messages that arrive: a real receiver, the real verifying library, and what happens when nobody answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from orchestrator.adapters.carrier import signed
from orchestrator.domain.model import Account
from orchestrator.notice_ports import Topic
from orchestrator.services import notifications
from orchestrator.services.notifications import DIGEST_S, RETRY_S, STALLED_S, look_around, tell
from tests.http.play import Machine


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent and answers what it is told to."""

    url: str
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found: Receiver

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(url=f"http://127.0.0.1:{server.server_address[1]}/hook?key=my-secret-key")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def listen(caller, receiver: Receiver, **more) -> tuple[str, str]:
    answer = caller.post("/notifications", {"url": receiver.url, **more})
    assert answer.status_code == 201, answer.text
    assert "my-secret-key" not in answer.text
    return answer.json()["channel"]["id"], answer.json()["secret"]


def titles(receiver: Receiver) -> list[str]:
    return [json.loads(body)["data"]["title"] for _, body in receiver.got]


def test_a_job_is_told_from_start_to_end_signed(api, people, provider, clock, tmp_path, receiver):
    """Guards: with the timestamp left out of the signed text the library refused it; without the unique key a second round
    told everything again; without joining, the second hand-off came as a message of its own."""
    _, secret = listen(people.ann, receiver)
    people.ann.submit(name="anns")
    mine = Machine.launched(api, provider)
    mine.start()
    people.bob.submit(name="not-anns")
    Machine.launched(api, provider).start()
    mine.save(4, tmp_path)
    mine.say("release", mine.said("release", step=4, reason="deadline"))
    office = api.app.office
    assert tell(office) == 1
    assert titles(receiver) == ["Training: anns"]
    second = Machine.launched(api, provider)
    second.start()
    second.save(6, tmp_path)
    second.say("release", second.said("release", step=6, reason="deadline"))
    third = Machine.launched(api, provider)
    third.start()
    assert tell(office) == 0
    third.save(10, tmp_path)
    third.finish(10)
    clock.tick(1)
    assert tell(office) == 1
    assert titles(receiver)[1:] == ["Done: anns"]
    clock.tick(DIGEST_S)
    assert tell(office) == 1
    assert tell(office) == 0
    digest = json.loads(receiver.got[-1][1])["data"]
    assert (digest["title"], digest["count"]) == ("Handed over: anns", 2)
    assert "At step 4" in digest["text"]
    assert "At step 6" in digest["text"]
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
    channel, _ = listen(people.ann, receiver, topics=["started"])
    receiver.status = 503
    people.ann.submit()
    Machine.launched(api, provider).start()
    for tries, pause in enumerate(RETRY_S, 1):
        assert tell(api.app.office) == 0
        assert tell(api.app.office) == 0
        assert len(receiver.got) == tries
        clock.tick(pause + 1)
    (log,) = people.ann.get(f"/notifications/{channel}/deliveries").json()["items"]
    assert (log["state"], log["attempts"], log["detail"]) == ("pending", len(RETRY_S), "it answered 503")
    receiver.status = 200
    assert tell(api.app.office) == 1
    (log,) = people.ann.get(f"/notifications/{channel}/deliveries").json()["items"]
    assert log["state"] == "sent"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    receiver.status = 410
    assert people.ann.post(f"/notifications/{channel}:test").json()["state"] == "failed"
    assert people.ann.get("/notifications").json()["items"][0]["active"] is False
    receiver.status = 200
    assert people.ann.post(f"/notifications/{channel}:test").json()["state"] == "sent"
    assert people.ann.get("/notifications").json()["items"][0]["active"] is True


def test_apprise_carries_messages_too(api, people, receiver):
    url = receiver.url.replace("http://", "json://")
    made = people.ann.post("/notifications", {"url": url}).json()
    assert (made["channel"]["kind"], made["channel"]["label"], made["secret"]) == ("apprise", "json://…", None)
    assert people.ann.post(f"/notifications/{made['channel']['id']}:test").json()["state"] == "sent"
    assert json.loads(receiver.got[0][1])["title"] == "Trainhop: test"
    receiver.status = 500
    refused = people.ann.post(f"/notifications/{made['channel']['id']}:test").json()
    assert refused["state"] == "failed"
    assert "did not take" in refused["detail"]


def test_addresses_lie_nowhere_in_clear(api, people, receiver):
    """Guard: with the address itself in `sealed`, the dump below held it."""
    listen(people.ann, receiver)
    with api.app.engine.connect() as connection:
        dump = str([tuple(row) for row in connection.execute(text("SELECT * FROM channels"))])
    assert "my-secret-key" not in dump
    assert "127.0.0.1" in dump
    assert "my-secret-key" not in people.ann.get("/notifications").text


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "dbus://", "syslog://", "unknownservice://x", "http://[", "ftp://x/y"]
)
def test_addresses_that_cannot_be_used_are_refused_in_words(api1_people, url):
    answer = api1_people.ann.post("/notifications", {"url": url})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/url"


@pytest.fixture
def api1_people(sqlite_app):
    from starlette.testclient import TestClient

    from orchestrator.entrypoints.http import make_app
    from tests.http.play import Api, People

    with TestClient(make_app(sqlite_app), base_url="http://127.0.0.1") as client:
        yield People.of(Api(app=sqlite_app, client=client))


def test_channels_are_their_owners_alone(api, people, receiver):
    channel, _ = listen(people.ann, receiver)
    assert people.bob.get("/notifications").json()["items"] == []
    for answer in (
        people.bob.post(f"/notifications/{channel}:test"),
        people.bob.call("DELETE", f"/notifications/{channel}"),
        people.admin.get(f"/notifications/{channel}/deliveries"),
    ):
        assert answer.status_code == 404
    job = people.ann.submit()["id"]
    assert people.bob.post("/notifications", {"url": receiver.url, "job": job}).status_code == 404
    assert people.ann.call("DELETE", f"/notifications/{channel}").status_code == 204
    assert people.ann.get("/notifications").json()["items"] == []


def test_what_nobody_announces_is_noticed_once(api, people, provider, clock, receiver):
    """Guards: without `STALLED_S` counted from the last safe point a fresh session was told of; without the key, each look
    told it again."""
    listen(people.ann, receiver, topics=["stalled", "quota_low", "needs_person"])
    people.ann.submit(name="slow")
    machine = Machine.launched(api, provider)
    machine.start()
    look_around(api.app.office)
    assert tell(api.app.office) == 0
    for _ in range(2):
        clock.tick(STALLED_S + 60)
        look_around(api.app.office)
    assert tell(api.app.office) == 1
    assert titles(receiver) == ["Stalled: slow"]
    ann = people.ann.get("/me").json()["id"]
    with api.app.context.uow() as tx:
        account = Account(
            id="account-1", provider="fake", member_id=ann, name="ann-fake", config={}, created_at=clock.now()
        )
        account.problem = "the token was revoked"
        tx.add_account(account)
    look_around(api.app.office)
    look_around(api.app.office)
    assert tell(api.app.office) == 1
    assert titles(receiver)[1:] == ["You are needed: ann-fake"]


def test_every_topic_has_its_words():
    assert set(notifications._WORDS) == set(Topic)
