"""Chats with a job's adapter: the API's stream, who may ask, and the section on the job's page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.export.models import make_adapter, make_model
from orchestrator.adapters.chats import ServerChats
from tests.dashboard.test_browser import _axe
from tests.emulators.chat import ChatEmulator, Fault
from tests.helpers.exporter import Packed, packed
from tests.helpers.page_server import PageServer, page_server
from tests.helpers.waiting import wait_for
from tests.http.http_client import ApiUser, Machine

ASKED = {"question": "hello", "max_tokens": 12}
NAMES = {"model": "adapter", "base_model": "base"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Packed]:
    """A base model, and an adapter for it as machines send it."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base", "llama")
    return base, packed(make_adapter(folder / "adapter", base, std=0.3))


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> Iterator[tuple[PageServer, str]]:
    """A server with a finished job of the admin, by its id."""
    base, adapter = made
    folder = tmp_path_factory.mktemp("server")
    with page_server(folder, allowed_folders=(base.parent,)) as server:
        yield server, finished(server, server.api.admin, base, adapter, folder)


@pytest.fixture
def endpoint() -> Iterator[ChatEmulator]:
    with ChatEmulator() as found:
        yield found


def finished(server: PageServer, owner: ApiUser, base: Path, adapter: Packed, folder: Path) -> str:
    job = owner.submit(base_model=str(base))["id"]
    machine = server.machine()
    total = owner.get(f"/jobs/{job}").json()["total_steps"]
    assert machine.save(total, folder).json()["committed"]
    assert machine.finish(total, *adapter).status_code == 204
    return job


def events(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]


def asked(who: ApiUser, job: str, **more: Any) -> list[dict[str, Any]]:
    answer = who.post(f"/jobs/{job}/chat", ASKED | more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer)


def test_the_servers_computer_keeps_one_model_for_a_while(trained, made, tmp_path) -> None:
    """Guards: without keeping it each question loaded it again; without giving it up two models were in memory;
    without the timer the last one stayed for ever."""
    server, job = trained
    admin, running = server.api.admin, server.app.running_chats
    first = asked(admin, job)
    kinds = [event["kind"] for event in first]
    assert (kinds[0], kinds[-1]) == ("loading", "done")
    assert "ready" in kinds
    assert {event["arm"] for event in first if event["kind"] == "text"} == {"base", "adapter"}
    again = asked(admin, job)
    assert [event["kind"] for event in again if event["kind"] in ("loading", "ready")] == []
    assert [e for e in first if e["kind"] == "text"] == [e for e in again if e["kind"] == "text"]
    loaded = running.loaded(job)
    assert loaded is not None
    other = finished(server, admin, made[0], made[1], tmp_path)
    running._idle_s = 0.1
    assert "ready" in [event["kind"] for event in asked(admin, other)]
    assert not loaded.is_alive
    wait_for(lambda: not running.is_loaded, "the end of the idle model")


def test_only_the_owner_may_ask(trained, endpoint: ChatEmulator, made, tmp_path) -> None:
    """Guard: without the owner's check an admin could use a member's adapter."""
    server, mine = trained
    admin = server.api.admin
    admin.post("/members", {"name": "ann"})
    assert admin.call("PUT", "/team", json={"everyone_sees_jobs": False}).status_code == 200
    ann = server.api.as_(admin.post("/tokens", {"member": "ann", "name": "t"}).json()["secret"])
    assert ann.post(f"/jobs/{mine}/chat", ASKED).status_code == 404
    hers = finished(server, ann, made[0], made[1], tmp_path)
    refused = admin.post(f"/jobs/{hers}/chat", ASKED)
    assert refused.status_code == 403
    assert "Only the owner" in refused.json()["detail"]
    assert admin.post(f"/jobs/{hers}:chat", {}).status_code == 403
    inside = ann.post(f"/jobs/{hers}/chat", ASKED | {"endpoint": {"url": endpoint.url, **NAMES}})
    assert inside.status_code == 422
    assert "Only an admin can use it" in inside.json()["detail"]
    assert endpoint.seen == []


def test_a_job_without_an_adapter_is_refused(trained) -> None:
    server, _ = trained
    job = server.api.admin.submit()["id"]
    refused = server.api.admin.post(f"/jobs/{job}/chat", ASKED)
    assert refused.status_code == 409
    assert "has no adapter to chat with" in refused.json()["detail"]
    server.api.admin.post(f"/jobs/{job}:cancel")


def test_a_server_without_torch_says_so(trained) -> None:
    server, job = trained
    usual, server.app.chats = server.app.chats, ServerChats(lambda name: None if name == "torch" else name)
    refused = server.api.admin.post(f"/jobs/{job}/chat", ASKED)
    server.app.chats = usual
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith("This server has no torch, so it cannot load a model. Install torch")


def test_leaving_stops_an_answer_and_a_member_has_one_at_a_time(trained, endpoint: ChatEmulator) -> None:
    """Guards: without `cancelled` the endpoint generated for nobody; without the member's place two questions ran at
    once, and without `end` the next one was refused for ever."""
    server, job = trained
    endpoint.fault = Fault(hold_after=2)
    there = {"endpoint": {"url": endpoint.url, **NAMES}}
    admin = server.api.admin
    headers = {"Authorization": f"Bearer {server.api.admin_token}"}
    path = f"/api/v1/jobs/{job}/chat"
    with server.client.stream("POST", path, json=ASKED | there, headers=headers) as answer:
        lines = answer.iter_lines()  # kept, because httpx hangs up once nobody holds it
        while not next(lines).startswith("data:"):
            pass
        refused = admin.post(f"/jobs/{job}/chat", ASKED | there)
        assert refused.status_code == 409
        assert "Another question of yours" in refused.json()["detail"]
    assert endpoint.hung_up.wait(30)
    endpoint.fault = Fault()
    wait_for(lambda: admin.post(f"/jobs/{job}/chat", ASKED | there).status_code == 200, "the member's place")


def test_an_address_answers_and_its_faults_are_events(trained, endpoint: ChatEmulator) -> None:
    server, job = trained
    endpoint.key = "sk-canary"
    there = {"url": endpoint.url, "key": "sk-canary", **NAMES}
    turns = [{"question": "before", "base": "b", "adapter": "a"}]
    found = asked(server.api.admin, job, endpoint=there, turns=turns, system="Be short.")
    assert found[-1] == {"kind": "done"}
    assert sorted(body["messages"][2]["content"] for body in endpoint.seen) == ["a", "b"]
    endpoint.fault = Fault(kind="text/html", body=b"<html>")
    failed = asked(server.api.admin, job, endpoint=there, only="adapter")
    assert failed[-1]["kind"] == "failed"
    alone = server.api.admin.post(f"/jobs/{job}/chat", ASKED | {"endpoint": {"url": endpoint.url, "model": "m"}})
    assert alone.status_code == 422
    kept = [path.read_bytes() for path in (server.folder / "data").rglob("*") if path.is_file()]
    assert not any(b"sk-canary" in content or b"Be short." in content for content in kept)


def name_address(page: Any, endpoint: ChatEmulator) -> None:
    page.get_by_text("Where and how").click()
    page.get_by_text("at an address").click()
    page.get_by_role("textbox", name="Address of").fill(endpoint.url)
    page.get_by_label("Adapter’s name there").fill("adapter")
    page.get_by_label("Base model’s name there").fill("base")


def type_question(page: Any, text: str) -> None:
    page.get_by_role("textbox", name="Question").fill(text)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_both_answers_are_streamed_on_the_page(trained, endpoint: ChatEmulator, visit) -> None:
    """Guards: without reading the stream piece by piece, nothing was seen while the endpoint held its answer; without
    waiting for the form's script, a question that was sent before it left the page."""
    server, job = trained
    endpoint.fault = Fault(hold_after=3)
    page = visit(server.link(), width=360)
    scripts: list[Any] = []
    page.route("**/chat.js*", lambda route: scripts.append(route))  # noqa: PLW0108  Playwright marks what it calls
    page.goto(f"{server.url}/jobs/{job}")
    assert _axe(page) == []
    assert scripts == []
    name_address(page, endpoint)
    type_question(page, "hello")
    wait_for(lambda: page.evaluate("1") and scripts, "the request of the script")
    scripts.pop().continue_()
    page.get_by_text("I am base", exact=False).wait_for()
    page.get_by_text("I am adapter", exact=False).wait_for()
    assert "you said" not in page.locator("#chat-turns").inner_text()
    endpoint.fault.release.set()
    page.get_by_text("Both answers are complete.").wait_for()
    assert "I am adapter and you said hello" in page.locator("#chat-turns").inner_text()
    assert _axe(page) == []
    type_question(page, "again")
    page.get_by_text("I am base and you said again").wait_for()
    assert endpoint.seen[-1]["messages"][0]["content"] == "hello"
    endpoint.fault = Fault(hold_after=3)
    type_question(page, "stop")
    page.get_by_text("The models answer").or_(page.get_by_text("Waiting for")).wait_for()
    page.locator("#chat-turns article").nth(2).get_by_text("I am base").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert endpoint.hung_up.wait(30)


def test_without_the_script_a_page_has_both_answers(trained, endpoint: ChatEmulator, visit) -> None:
    server, job = trained
    page = visit(server.link(), java_script_enabled=False, width=360)
    page.goto(f"{server.url}/jobs/{job}")
    name_address(page, endpoint)
    type_question(page, "hello <b>")
    page.get_by_text("I am base and you said hello <b>").wait_for()
    page.get_by_text("I am adapter and you said hello <b>").wait_for()
    type_question(page, "again")
    page.get_by_text("I am base and you said again").wait_for()
    assert page.locator("article").count() == 2
    assert endpoint.seen[-1]["messages"][0]["content"] == "hello <b>"


def test_a_page_without_the_script_says_what_went_wrong(trained, endpoint: ChatEmulator) -> None:
    server, job = trained
    endpoint.fault = Fault(status=404)
    headers = {"Authorization": f"Bearer {server.api.admin_token}", "Accept": "text/html"}
    form = {"question": "hello", "place": "address", "url": endpoint.url, "turns": "[]", **NAMES}
    for change, words in ({}, "no such model"), ({"turns": "["}, "turns are not valid"), ({"url": "x"}, "must begin"):
        answer = server.client.post(f"/jobs/{job}/chat", data=form | change, headers=headers)
        assert answer.status_code == 422
        assert words in answer.text
        assert ">hello</textarea>" in answer.text


def taken(machine: Machine) -> int:
    """The number of the question that a session on a machine gets."""
    (number,) = {wait_for(lambda: said(machine)["number"], "a question")}
    return number


def said(machine: Machine, **more: Any) -> dict[str, Any]:
    answer = machine.say("chat", {"fence": machine.fence} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def answers(number: int) -> dict[str, Any]:
    words = [{"kind": "text", "arm": arm, "text": f"I am {arm} on a machine"} for arm in ("base", "adapter")]
    return {"question": number, "events": [{"kind": "ready", "text": "base on T4"}, *words, {"kind": "done"}]}


def test_a_session_on_a_machine_is_started_asked_and_ended_on_the_page(trained, visit) -> None:
    """Guard: without the section's poll the page showed a session as waiting that was running."""
    server, job = trained
    page = visit(server.link(), width=360)
    page.goto(f"{server.url}/jobs/{job}")
    page.get_by_text("Chat on a machine of your accounts").click()
    page.get_by_label("Minutes").fill("30")
    page.get_by_role("button", name="Start a session").click()
    page.locator("#chat-session").get_by_text("waiting for a machine").wait_for()
    session = page.locator("#chat-session a").inner_text()
    spec = server.api.admin.get(f"/jobs/{session}").json()["spec"]
    assert spec["chat"] == {"job": job, "minutes": 30}
    page.get_by_text("Where and how").click()
    page.get_by_text("on a machine", exact=True).click()
    type_question(page, "hello")
    page.locator("#chat-status").get_by_text("Waiting for a machine…").wait_for()
    machine = server.machine()
    number = taken(machine)
    said(machine, **answers(number))
    page.get_by_text("Both answers are complete.").wait_for()
    assert "I am adapter on a machine" in page.locator("#chat-turns").inner_text()
    assert _axe(page) == []
    page.goto(f"{server.url}/jobs/{session}")
    page.get_by_text("chats with").wait_for()
    assert _axe(page) == []
    page.goto(f"{server.url}/jobs/{job}")
    page.get_by_role("button", name="End the session").click()
    page.locator("#chat-session").get_by_text("being ended").wait_for()
    assert machine.report(0).json()["action"] == "abort"
    assert machine.say("release", machine.said("release", step=0, reason="cancelled")).status_code == 204
    page.get_by_text("Chat on a machine of your accounts").wait_for()
    assert server.api.admin.get(f"/jobs/{session}").json()["state"] == "cancelled"


def test_a_session_on_a_machine_is_started_and_asked_without_the_script(trained) -> None:
    server, job = trained
    admin = server.api.admin
    headers = {"Authorization": f"Bearer {server.api.admin_token}", "Accept": "text/html"}
    form = {"question": "hello", "place": "machine", "turns": "[]"}
    refused = server.client.post(f"/jobs/{job}/chat", data=form, headers=headers)
    assert refused.status_code == 422
    assert "No session for chats" in refused.text
    few = server.client.post(f"/jobs/{job}/chat-session", data={"minutes": "1"}, headers=headers)
    assert few.status_code == 422
    for _ in range(2):  # the second one finds the first
        made = server.client.post(f"/jobs/{job}/chat-session", data={"minutes": "5"}, headers=headers)
        assert (made.status_code, made.headers["location"]) == (303, f"/jobs/{job}#chat")
    machine = server.machine()
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.append(server.client.post(f"/jobs/{job}/chat", data=form, headers=headers))
    )
    asking.start()
    said(machine, **answers(taken(machine)))
    asking.join(30)
    assert found[0].status_code == 200
    assert "I am base on a machine" in found[0].text
    for _ in range(2):
        over = server.client.post(f"/jobs/{job}/chat-session/end", headers=headers)
        assert over.status_code == 303
    assert machine.say("finish", machine.said("finish", step=1)).status_code == 204
    assert admin.post(f"/jobs/{job}/chat", ASKED | {"on_machine": True}).status_code == 409


def test_a_lease_alone_takes_questions(trained) -> None:
    """Guards: with the fence left out of `exchange` any number was accepted; a person got a member's question."""
    server, job = trained
    session = server.api.admin.post(f"/jobs/{job}:chat", {}).json()["id"]
    assert server.api.admin.post(f"/jobs/{job}:chat", {"minutes": 60}).json()["id"] == session
    machine = server.machine()
    old = machine.say("chat", {"fence": machine.fence - 1})
    assert (old.status_code, old.json()["type"].rpartition(":")[2]) == (409, "stale-fence")
    assert server.api.admin.post(f"/leases/{machine.lease}/chat", {"fence": machine.fence}).status_code == 401
    assert said(machine) == {"number": None, "question": None, "is_cancelled": False}
    assert machine.say("finish", machine.said("finish", step=1)).status_code == 204
    assert server.api.admin.get(f"/jobs/{session}").json()["state"] == "succeeded"
    assert machine.say("chat", {"fence": machine.fence}).status_code == 409
