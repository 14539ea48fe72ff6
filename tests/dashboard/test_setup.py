"""The path from an empty server to a job, over plain HTTP: what is refused, and that it is taken up again."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http.app import make_app
from orchestrator.entrypoints.http.sign_ins import LIVES_S, MAX_PENDING
from orchestrator.ports.providers import ProviderUnavailable
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator, Repo
from tests.http.http_client import Api, People

SECRET = "canary-of-a-token"


@pytest.fixture
def site(make_server, empty_database, drive: Drive, hub: HubEmulator) -> Iterator[Api]:
    emulators = {"drivers": {"drive": {"endpoint": drive.url}}, "hub_endpoint": hub.endpoint, "offline": False}
    app = make_server(empty_database("sqlite"), **emulators)
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield Api(app=app, client=client)


def connect(site: Api, where: str = "/setup", **more: str):
    form = {"provider": "cloud", "credentials": SECRET, **more}
    return site.client.post(where, data=form, headers=ORIGIN | HTML)


def client_file(drive: Drive, kind: str = "installed") -> str:
    return json.dumps({kind: drive.tokens.client_secrets(drive.url)["installed"]})


def begin(site: Api, content: str, **more: str):
    files = {"client": ("client.json", content, "application/json")}
    return site.client.post("/stores/drive", data=more, files=files, headers=ORIGIN | HTML)


def agree(page: str) -> str:
    """The address that the browser is sent to after the person has agreed."""
    (address,) = re.findall(r'href="(http://127\.0\.0\.1:\d+/auth[^"]*)"', page)
    return httpx.get(html.unescape(address), trust_env=False).headers["location"]


def current(site: Api) -> str:
    return next(s["name"] for s in site.admin.get("/stores").json()["items"] if s["current"])


def test_an_empty_server_shows_four_steps(site, cloud):
    log_in(site)
    for path in ("/", "/setup"):
        page = site.client.get(path, headers=HTML).text
        for title in ("1. Connect machines", "2. Where checkpoints are kept", "3. Choose a model", "4. Bring data"):
            assert title in page
    assert "Or try it on this computer first" in site.client.get("/", headers=HTML).text


@pytest.mark.parametrize("where", ["/setup", "/accounts"])
def test_an_account_is_connected_with_what_the_provider_says(site, cloud, where):
    """Settings get the schema's types. Guard: left as texts, `slots` was stored as "2"."""
    log_in(site)
    assert "Connect Cloud" in site.client.get(where, headers=HTML).text
    answer = connect(site, where, **{"set-username": "ann1", "set-slots": "2"})
    assert answer.status_code == 200
    assert "signed in as ann1" in answer.text
    assert "Connect Cloud" not in answer.text, "one account per person"
    assert SECRET not in answer.text
    (account,) = [a for a in site.admin.get("/accounts").json()["items"] if a["provider"] == "cloud"]
    assert (account["config"], bool(account["consented_at"])) == ({"username": "ann1", "slots": 2}, True)
    page = site.client.get("/setup", headers=HTML).text
    assert "cannot reach it, so they deliver only when a session ends" in page


def test_what_is_wrong_with_an_account_is_one_sentence(site, cloud):
    """Guard: without `_try_credentials` the refused token was stored and shown as a problem."""
    log_in(site)
    misspelt = connect(site, **{"set-usrname": "x"})
    assert (misspelt.status_code, "did you mean &#39;username&#39;?" in misspelt.text) == (422, True)
    assert "slots" in connect(site, **{"set-slots": "many"}).text
    cloud.refusal = "this token was <b>revoked</b>"
    refused = connect(site)
    assert refused.status_code == 422
    assert "nothing was stored: this token was &lt;b&gt;revoked&lt;/b&gt;" in refused.text
    cloud.refusal, cloud.failure = "", ProviderUnavailable("no route")
    assert "could not be tried" in connect(site).text
    cloud.failure = None
    assert "nowhere" in connect(site, provider="nowhere").text
    assert [a["provider"] for a in site.admin.get("/accounts").json()["items"]] == ["local"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Choose the file of your OAuth client"),
        ("no JSON", "not the JSON file that Google"),
        ('{"type": "service_account"}', "a service account"),
        ('{"refresh_token": "r"}', "a sign-in that was already made"),
        ("web", "of the type Web application"),
        ('{"installed": {"client_id": "i"}}', "client_secret is missing"),
        ("[" * 30_000, "not the JSON file that Google"),
    ],
)
def test_a_wrong_oauth_client_is_refused_in_words(site, drive, content, words):
    log_in(site)
    answer = begin(site, client_file(drive, "web") if content == "web" else content)
    assert answer.status_code == 422
    assert words in html.unescape(answer.text)
    assert drive.tokens.client_secret not in answer.text
    assert current(site) == "local"


def test_a_sign_in_by_redirect(site, drive):
    """The browser brings no strict cookie from Google's page, so the address is opened once more from ours."""
    log_in(site)
    page = begin(site, client_file(drive))
    assert page.status_code == 200
    assert drive.tokens.client_secret not in page.text
    address = agree(page.text)
    assert address.startswith("http://127.0.0.1/stores/signed-in?")
    cookies = dict(site.client.cookies)
    site.client.cookies.clear()
    strange = site.client.get(address, headers=HTML)
    assert strange.status_code == 200
    (again,) = re.findall(r'content="0; url=([^"]+)"', strange.text)
    again = html.unescape(again)
    assert site.client.get(again, headers=HTML).status_code == 401, "without a cookie it is not opened for ever"
    assert current(site) == "local"
    site.client.cookies.update(cookies)
    done = site.client.get(again, headers=HTML)
    assert (done.status_code, done.headers["location"]) == (303, "/setup")
    assert current(site) == "drive"
    assert drive.files() == [], "the trial files are deleted"
    page = site.client.get("/setup", headers=HTML).text
    assert "somebody" not in page
    assert "Google Drive" in page


def test_a_sign_in_works_once_for_its_own_browser_and_not_for_ever(site, drive, clock):
    """Guards, each removed once: without `pop` in `finish` the second request went to Google; without the comparison of
    `session` another browser's; without `until` one of yesterday."""
    log_in(site)
    address = agree(begin(site, client_file(drive)).text)
    mine = dict(site.client.cookies)
    site.client.cookies.clear()
    log_in(site)
    foreign = site.client.get(address, headers=HTML)
    assert (foreign.status_code, "This browser has no such sign-in" in foreign.text) == (422, True)
    site.client.cookies.clear()
    site.client.cookies.update(mine)
    assert site.client.get(address, headers=HTML).status_code == 303
    site.admin.call("PUT", "/stores/local", json={})
    second = site.client.get(address, headers=HTML)
    assert (second.status_code, "This browser has no such sign-in" in second.text) == (422, True)
    late = agree(begin(site, client_file(drive)).text)
    clock.tick(LIVES_S + 1)
    assert site.client.get(late, headers=HTML).status_code == 422
    assert current(site) == "local"


def test_a_browser_keeps_few_sign_ins_open(site, drive):
    """Guard: without `MAX_PENDING` an admin's script could fill the server's memory."""
    log_in(site)
    addresses = [agree(begin(site, client_file(drive)).text) for _ in range(MAX_PENDING + 1)]
    assert site.client.get(addresses[0], headers=HTML).status_code == 422
    assert site.client.get(addresses[-1], headers=HTML).status_code == 303


def test_a_sign_in_by_a_pasted_address(site, drive):
    log_in(site)
    address = agree(begin(site, client_file(drive)).text)

    def paste(text: str):
        return site.client.post("/stores/sign-in", data={"answer": text}, headers=ORIGIN | HTML)

    assert "no such sign-in" in paste("http://127.0.0.1/").text
    assert "no such sign-in" in paste(address.replace("state=", "state=x")).text
    assert paste(f"  {address}\n").status_code == 303
    assert current(site) == "drive"
    drive.tokens.consent = False
    refused = paste(agree(begin(site, client_file(drive)).text))
    assert (refused.status_code, "Google answered access_denied" in refused.text) == (422, True)
    drive.tokens.consent = True
    no_code = agree(begin(site, client_file(drive)).text)
    assert "has no code" in paste(re.sub(r"&code=[^&]+", "", no_code)).text


def test_a_store_is_switched_back_and_to_again(site, drive):
    log_in(site)
    user = {"credentials": json.dumps(drive.authorized_user())}
    assert site.client.post("/stores/drive", data=user, headers=ORIGIN | HTML).status_code == 303
    assert current(site) == "drive"
    assert site.client.post("/stores/local", headers=ORIGIN | HTML).status_code == 303
    assert current(site) == "local"
    assert site.client.post("/stores/drive", data={"again": "yes"}, headers=ORIGIN | HTML).status_code == 303
    assert current(site) == "drive"
    drive.tokens.revoke()
    page = site.client.post("/stores/drive", data={"again": "yes"}, headers=ORIGIN | HTML)
    assert (page.status_code, "sign in again" in page.text) == (422, True)


def test_only_an_admin_chooses_the_store(site, drive):
    people = People.of(site)
    log_in(site, people.ann)
    assert "An admin can choose another place" in site.client.get("/setup", headers=HTML).text
    assert begin(site, client_file(drive)).status_code == 403
    assert site.client.post("/stores/sign-in", data={"answer": "state=x"}, headers=ORIGIN).status_code == 403


def test_models_are_searched_with_what_decides(site, hub, provider):
    """Size, licence, gated or not, and where it fits; then the form has the model and the preset for its size."""
    log_in(site)
    hub.add(Repo(id="org/Small-1B", files={}, parameters=1_000_000_000, licence="mit", downloads=5))
    hub.add(Repo(id="org/Large-7B", files={}, parameters=7_600_000_000, licence="apache-2.0", gated=True, downloads=9))
    hub.add(Repo(id="org/secret-7B", files={}, private=True))
    hub.add(Repo(id="org/Huge-70B", files={}, parameters=70_000_000_000))
    provider.rooms = dataclasses.replace(provider.rooms, memory_bytes=16 << 30, gpu=True)
    found = site.admin.get("/base-models", params={"search": "B"}).json()["items"]
    assert [m["id"] for m in found] == ["org/Large-7B", "org/Small-1B", "org/Huge-70B"]
    assert [m["adapter"] for m in found] == ["qlora", "lora", "qlora"]
    assert [m["fits"] for m in found] == [["this-computer"], ["this-computer"], []]
    assert [(m["gated"], m["licence"]) for m in found] == [(True, "apache-2.0"), (False, "mit"), (False, "")]
    page = site.client.get("/setup", params={"search": "B"}, headers=HTML).text
    for words in ("7600.0 M parameters", "apache-2.0", "gated", "fits this-computer", "fits on no connected machine"):
        assert words in page
    assert "no text model with" in site.client.get("/setup", params={"search": "nothing"}, headers=HTML).text
    form = site.client.get("/submit", params={"preset": "chat", "model": "org/Large-7B"}, headers=HTML).text
    assert 'value="org/Large-7B"' in form
    assert 'value="large-7b"' in form


def test_a_search_offline_says_what_to_do_instead(make_server, empty_database):
    app = make_server(empty_database("sqlite"))
    with TestClient(make_app(app), base_url="http://127.0.0.1", follow_redirects=False) as client:
        site = Api(app=app, client=client)
        log_in(site)
        page = client.get("/setup", params={"search": "x"}, headers=HTML)
        assert (page.status_code, "stay offline" in page.text) == (200, True)
        assert site.admin.get("/base-models", params={"search": "x"}).status_code == 422
