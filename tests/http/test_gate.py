"""Host, Origin, size and headers, on every method."""

import pytest
from starlette.testclient import TestClient

from orchestrator.entrypoints.http import middleware
from orchestrator.entrypoints.http.app import make_app
from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES
from tests.http.http_client import Machine

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "localhost.evil.example"]
)
def test_a_foreign_host_is_refused(api1, method, host):
    """Guard: with the Host check removed GET answered 200 to evil.example (DNS rebinding)."""
    answer = api1.client.request(method, "/healthz", headers={"Host": host})
    assert answer.status_code == 421
    if method != "HEAD":
        assert answer.json()["status"] == 421


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8642", "localhost:1", "[::1]:8642", "LOCALHOST", "far.example:443", "alias.example"],
)
def test_our_own_names_are_answered(make_server, sqlite_template, tmp_path, host):
    app = make_server(
        f"sqlite:///{tmp_path / 'a.db'}", public_url="https://far.example", allowed_hosts=("alias.example",)
    )
    with TestClient(make_app(app)) as client:
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1",
        "http://localhost",
        "http://localhost:x",
        "http://[",
    ],
)
def test_other_sites_pages_are_refused_on_every_method(api1, method, origin):
    """Guards: with the check limited to POST and PUT, DELETE and GET came through; with every name of ours that had no
    port taken for ours, whatever else listens at http://localhost could act here; `http://[` ended in an error of the
    server."""
    answer = api1.client.request(method, "/healthz", headers={"Origin": origin, "Host": "127.0.0.1:8642"})
    assert answer.status_code == 403


def test_our_own_page_is_answered(api1):
    headers = {"Origin": "http://127.0.0.1:8642", "Host": "127.0.0.1:8642"}
    assert api1.client.get("/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://far.example", 200),
        ("https://far.example:443", 200),
        ("http://far.example", 403),
        ("https://far.example:444", 403),
        ("https://alias.example", 403),
        ("https://far.example:x", 403),
    ],
)
def test_behind_a_proxy_our_pages_are_those_of_the_public_address(make_server, tmp_path, origin, status):
    """Also where the proxy passes on the host that was asked for.

    Guards: with the host alone compared, the page at the same name without TLS was taken for ours; without `ValueError`
    caught, a port that is no number ended in an error of the server."""
    app = make_server(
        f"sqlite:///{tmp_path / 'a.db'}", public_url="https://far.example", allowed_hosts=("alias.example",)
    )
    with TestClient(make_app(app)) as client:
        for host in ("127.0.0.1:8642", "far.example", "far.example:443"):
            assert client.get("/healthz", headers={"Origin": origin, "Host": host}).status_code == status


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize(
    ("status", "method", "path", "more"),
    [
        (200, "GET", "/healthz", {}),
        (201, "POST", "/api/v1/members", {"json": {"name": "cy"}}),
        (304, "GET", "/static/app.css", {"headers": {"If-None-Match": "*"}}),
        (401, "GET", "/api/v1/jobs", {"headers": {"Authorization": ""}}),
        (403, "GET", "/healthz", {"headers": {"Origin": "https://evil.example"}}),
        (404, "GET", "/nowhere", {}),
        (405, "DELETE", "/healthz", {}),
        (413, "POST", "/api/v1/members", {"content": bytes(MAX_JSON_BYTES + 1)}),
        (413, "POST", "/api/v1/members", {"content": [bytes(MAX_JSON_BYTES // 2)] * 3}),
        (421, "GET", "/healthz", {"headers": {"Host": "evil.example"}}),
        (422, "GET", "/api/v1/jobs?limit=0", {}),
        (422, "GET", "/healthz?a=%00", {}),
        (500, "GET", "/api/v1/members", {}),
        (500, "GET", "/people", {}),
    ],
)
def test_every_answer_carries_the_security_headers(api1, status, method, path, more, accept):
    """Guard: with the gate among the application's middleware a bug was answered outside of it, with none of these."""
    if status == 500:  # a role that no version knows stands for a bug
        assert api1.admin.post("/members", {"name": "ann"}).status_code == 201
        with api1.app.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE members SET role = 'unknown' WHERE name = 'ann'")
    if status == 304:
        more = {"headers": {"If-None-Match": api1.client.get(path).headers["etag"]}}
    headers = {"Accept": accept, "Authorization": f"Bearer {api1.admin_token}"} | more.get("headers", {})
    answer = api1.client.request(method, path, **(more | {"headers": headers}))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"]


def test_what_may_be_kept_says_so(api1):
    """Guard: without a word on it, a browser may keep the answer with a token that is shown once."""
    made = api1.admin.post("/tokens", {"name": "once"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert "no-store" not in api1.client.get("/static/app.css").headers["cache-control"]


def test_no_page_loads_scripts_from_elsewhere(api1):
    assert api1.client.get("/docs").status_code == 404
    assert api1.client.get("/redoc").status_code == 404
    assert api1.client.get("/openapi.json").status_code == 200


def test_a_body_that_is_too_large_is_refused_announced_or_not(api1):
    """Guard: without `_counted` the chunked body was read to its end."""
    announced = api1.admin.call("POST", "/members", content=bytes(MAX_JSON_BYTES + 1))
    chunked = api1.admin.call(
        "POST", "/members", content=iter([bytes(MAX_JSON_BYTES // 2)] * 3), headers={"Content-Type": "application/json"}
    )
    assert [announced.status_code, chunked.status_code] == [413, 413]
    assert announced.json()["detail"] == chunked.json()["detail"] == "The body is larger than 1.0 MiB."


def test_every_operation_that_takes_a_file_takes_a_large_one(api1):
    """Guard: without a path in `_UPLOADS` its files had at most a megabyte, which those of tests have not."""
    described = api1.client.get("/openapi.json").json()["paths"]
    binary = ("application/octet-stream", "multipart/form-data")
    files = [
        (method, path)
        for path, operations in described.items()
        for method, operation in operations.items()
        if any(kind in operation.get("requestBody", {}).get("content", {}) for kind in binary)
    ]
    assert {path for _, path in files} >= {"/api/v1/datasets", "/api/v1/adapters", "/v1/files"}
    for method, path in files:
        answer = api1.client.request(
            method,
            path.replace("{key}", "jobs/x"),
            params={"name": "rows.jsonl"},
            content=bytes(MAX_JSON_BYTES + 1),
            headers={"Authorization": f"Bearer {api1.admin_token}", "Content-Type": "application/octet-stream"},
        )
        assert answer.status_code not in (200, 201, 413), (path, answer.text)


@pytest.mark.parametrize("path", ["/members", "/claims", "/leases/lease-x/offer"])
@pytest.mark.parametrize("chunked", [True, False])
def test_who_sends_much_is_known(api1, path, chunked):
    """Guard: with `MAX_JSON_BYTES` for all, 14 MiB of JSON from anybody kept the server from everything else for a
    second."""
    for token in ("", "Bearer th_wrong", "Basic YTpi"):
        pieces = [b"[" + b"1," * (middleware.MAX_OF_STRANGERS // 2), b"1]"]
        answer = api1.client.post(
            f"/api/v1{path}",
            content=iter(pieces) if chunked else b"".join(pieces),
            headers={"Authorization": token, "Content-Type": "application/json"},
        )
        if chunked and "leases" in path:  # the token is checked before the body is read
            assert answer.status_code == 401
        else:
            assert answer.status_code == 413
            assert "need a valid token" in answer.json()["detail"]


def test_who_is_known_sends_much(api1, people, provider):
    """By a header, by a cookie, by a lease's token, announced or not.

    Guards: without each of these its message was too large here.
    """
    much = b" " * (middleware.MAX_OF_STRANGERS + 1)
    for content in (much + b"{}", iter([much, b"{}"])):
        asked = people.ann.call("POST", "/tokens", content=content, headers={"Content-Type": "application/json"})
        assert asked.status_code == 201
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    assert machine.caller.call("POST", f"/leases/{machine.lease}/release", content=much).status_code == 422
    people.ann.submit()
    other = Machine.launched(api1, provider)
    assert machine.caller.call("POST", f"/leases/{other.lease}/release", content=much).status_code == 413
    link = people.ann.post("/login-links").json()["url"]
    assert api1.client.get(link[link.index("/login") :]).status_code == 200
    ours = {"Origin": "http://127.0.0.1", "Content-Type": "application/x-www-form-urlencoded"}
    assert api1.client.post("/tokens", content=b"name=" + b"x" * len(much), headers=ours).status_code == 422
    api1.client.cookies.clear()
    assert api1.client.post("/tokens", content=much, headers=ours).status_code == 413


@pytest.mark.parametrize("chunked", [True, False])
def test_an_upload_that_is_too_large_leaves_nothing(make_server, tmp_path, chunked):
    app = make_server(f"sqlite:///{tmp_path / 'a.db'}", max_upload_bytes=1000)
    with TestClient(make_app(app), base_url="http://127.0.0.1") as client:
        body = iter([b'{"text": "x"}\n'] * 100) if chunked else b'{"text": "x"}\n' * 100
        headers = {"Authorization": f"Bearer {app.token_file.read_text().strip()}"}
        answer = client.post("/api/v1/datasets?name=a.jsonl", content=body, headers=headers)
    assert answer.status_code == 413
    assert not list(app.settings.folder.glob(".incoming-*"))
