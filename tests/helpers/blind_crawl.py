"""Raters and the owner of an open blind comparison, and a crawl of everything that they can get before its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Route

from tests.helpers.evaluations import add_evaluation
from tests.http.http_client import Api, ApiUser

HTML = {"Accept": "text/html"}
ORIGIN = {"Origin": "http://127.0.0.1"}
ARMS = re.compile(r"adapter|\bbase\b|\barms?\b|canary|\ba{64}\b|\bc{64}\b", re.IGNORECASE)
"""Names of both models, and of the files and the model of `evaluated`."""
POLICY = "base-uri 'none'"
"""The one use of the word in a header of every response."""


def evaluated(api: Api, caller: ApiUser, answers: int = 60, **how) -> str:
    job = caller.submit(name="canary-job", base_model="org/canary")["id"]
    add_evaluation(api.app.context.uow, job, answers, owner=caller.get("/me").json()["id"], **how)
    return job


def start(api: Api, caller: ApiUser, answers: int = 60, same: int = 0, **how) -> str:
    """The path of a new comparison."""
    job = evaluated(api, caller, answers, same=same)
    answer = caller.post(f"/evaluations/{job}/comparisons", how)
    assert answer.status_code == 201, answer.text
    return f"/comparisons/{answer.json()['id']}"


@dataclass
class Rater:
    """A browser that opened a rater's link. `seen` is all that it got: statuses, headers and bodies."""

    api: Api
    link: str
    seen: list[str] = field(default_factory=list)
    cookie: str = ""
    path: str = ""

    def call(self, method: str, path: str, **more):
        headers = HTML | ORIGIN | ({"Cookie": self.cookie} if path == self.path else {})
        self.api.client.cookies.clear()
        answer = self.api.client.request(method, path, headers=headers, follow_redirects=False, **more)
        self.seen.append(f"{answer.status_code} {dict(answer.headers)} {answer.text}")
        return answer

    def open(self) -> Rater:
        path = self.link[self.link.index("/rate/") :]
        assert self.call("GET", path).status_code == 200
        answer = self.call("POST", path)
        assert answer.status_code == 303, answer.text
        self.cookie, _, limits = answer.headers["set-cookie"].partition(";")
        self.path = answer.headers["location"]
        assert f"Path={self.path};" in limits
        assert "httponly" in limits.lower()
        assert "samesite=strict" in limits.lower()
        return self

    def page(self) -> str:
        answer = self.call("GET", self.path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def answers(self) -> list[str]:
        return re.findall(r'<h2 id="answer-[12]">.*?<p class="turn answer">(.*?)</p>', self.page(), re.DOTALL)

    def vote(self, choice: str, **more):
        screen = re.search(r'name="screen" value="([^"]+)"', self.page())
        assert screen
        return self.call("POST", self.path, data={"screen": screen[1], "choice": choice} | more)


def invite(api: Api, caller: ApiUser, path: str, name: str = "Ann") -> Rater:
    answer = caller.post(f"{path}/raters", {"name": name})
    assert answer.status_code == 201, answer.text
    return Rater(api, answer.json()["url"]).open()


def owner_sees(caller: ApiUser, path: str, job: str) -> Iterator[str]:
    """Everything that the owner can ask for."""
    api = f"/api/v1{path}"
    for method, asked in (
        ("GET", api),
        ("GET", f"/api/v1/evaluations/{job}/comparisons"),
        ("PATCH", api),
        ("GET", f"{api}/votes"),
        ("GET", f"{api}/votes?format=csv"),
        ("GET", f"{path}/votes.csv"),
        ("GET", f"{path}/votes.jsonl"),
        ("GET", f"/evaluations/{job}/comparisons"),
        ("GET", f"/evaluations/{job}/comparisons?comparison={path.rsplit('/', 1)[1]}"),
        ("POST", f"{path}/raters"),
    ):
        headers = HTML | ORIGIN | {"Authorization": f"Bearer {caller.token}"}
        body: dict[str, Any] = {"json": {"plan": "standard"}} if method == "PATCH" else {}
        if method == "POST":
            body = {"data": {"name": f"Rater {len(asked)} {path}"[:90]}}
        answer = caller.api.client.request(method, asked, headers=headers, **body)
        yield f"{asked} {answer.status_code} {dict(answer.headers)} {answer.text}"


VOTES = 30
SECRETS = re.compile(r"canary|\ba{64}\b|\bc{64}\b|\d text about|text about \d")
"""Names of the job, of its files and its model, and of the answers, which raters get on their own page alone."""


@dataclass(frozen=True, kw_only=True)
class Crawl:
    """What came back before the end.

    `seen` is what raters and the owner got where they belong. `elsewhere` is what a rater's browser got at all other
    addresses.
    """

    path: str
    job: str
    raters: list[Rater]
    seen: list[str]
    elsewhere: list[str]


def crawl(api: Api, owner: ApiUser) -> Crawl:
    """Start a comparison, vote in it, and ask for everything while it is open.

    The client of `api` must have the application in its process.
    """
    path = start(api, owner, 200, same=10, margin=0.1)
    job = owner.get(path).json()["evaluation"]
    raters = [invite(api, owner, path), invite(api, owner, path, "Ben")]
    for place in range(VOTES):
        rater, choice = raters[place % 2], ("1", "2", "tie")[place % 3]
        assert rater.vote(choice, note="a source").status_code == 303
    raters[0].vote("9")
    raters[0].call("GET", raters[1].path)
    raters[0].call("GET", raters[0].link[raters[0].link.index("/rate/") :])
    seen = [*raters[0].seen, *raters[1].seen, *owner_sees(owner, path, job)]
    return Crawl(path=path, job=job, raters=raters, seen=seen, elsewhere=list(_elsewhere(raters[0], path, job)))


def _elsewhere(rater: Rater, path: str, job: str) -> Iterator[str]:
    """Every address of the application that can be read, asked for by the rater's browser with its cookie."""
    ids = {"job_id": job, "comparison_id": path.rsplit("/", 1)[1], "form": "csv"}
    application: Any = rater.api.client.app
    for route in application.routes:
        if isinstance(route, Route) and "GET" in (route.methods or ()) and route.path != "/rate/{rater_id}":
            asked = re.sub(r"\{(\w+)[^}]*\}", lambda found: ids.get(found[1], "unknown"), route.path)
            method = "HEAD" if asked.endswith("/stream") else "GET"  # a stream has no end
            for accept in ("text/html", "application/json"):
                headers = {"Accept": accept, "Cookie": rater.cookie}
                rater.api.client.cookies.clear()
                answer = rater.api.client.request(method, asked, headers=headers, follow_redirects=False)
                yield f"{asked} {answer.status_code} {dict(answer.headers)} {answer.text}"


def leaks(found: Crawl) -> list[str]:
    """What names a model before the end. Public pages elsewhere may have the words, but no name, file or answer."""
    named = [text for text in found.seen if ARMS.search(text.replace(POLICY, ""))]
    return named + [text for text in found.elsewhere if SECRETS.search(text)]
