"""The published contract: the OpenAPI document, the media types, the methods, conditional and repeated requests."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.http.http_client import Machine


def _answers(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                yield f"{method} {path} {status}", int(status), answer.get("content", {})


def _form(where):
    """The media type of errors. Those of OpenAI's API have a form of their own."""
    return "application/json" if " /v1/" in where else "application/problem+json"


def test_the_document_is_valid_and_says_what_is_sent(api1):
    """Guards: with FastAPI's own document, two operations had the `itemSchema` of version 3.2.

    Errors were documented as JSON, as plain text and as streams of events. With a `Reading` of workers and one of
    answers, a generated client mixed them up and returned None.
    """
    document = api1.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []

    wrong = [where for where, status, content in _answers(document) if status >= 400 and set(content) - {_form(where)}]
    assert wrong == []
    schemas = document["components"]["schemas"]
    titles = [schema["title"] for schema in schemas.values() if "title" in schema]
    assert len(titles) == len(set(titles))
    assert not [name for name in schemas if "__" in name or name.endswith(("-Input", "-Output"))]


@pytest.fixture
def world(api1, people, provider, tmp_path):
    """Ids of a job that ended with an adapter, its session and its checkpoint."""
    job = people.admin.submit(max_steps=2)
    machine = Machine.launched(api1, provider)
    machine.start()
    machine.report(1, reading={"cpu_percent": 5.0}, samples=[{"step": 1, "prompt": "a", "text": "b"}])
    machine.save(2, tmp_path)
    machine.finish(2)
    dataset = people.admin.get("/datasets").json()["items"][0]["sha256"]
    account = people.admin.get("/accounts").json()["items"][0]["id"]
    return {
        "job_id": job["id"],
        "session_id": machine.lease,
        "sha256": machine.head,
        "dataset": dataset,
        "file_id": f"file-{dataset}",
        "account_id": account,
        "name": "local",
    }


def _path(template, values):
    if template.startswith("/api/v1/datasets/"):
        values = values | {"sha256": values["dataset"]}
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "unknown"), template)


def test_answers_have_a_documented_media_type(api1, world):
    """Guard: without their own descriptions the adapter's zip and the metrics as CSV were undocumented."""
    tried = 0
    for path, methods in api1.client.get("/openapi.json").json()["paths"].items():
        if "get" not in methods or path.endswith("/stream"):
            continue
        for query in ("", "?format=csv") if path.endswith("/metrics") else ("",):
            url = _path(path, world).removeprefix("/api/v1") + query
            headers = {"Authorization": f"Bearer {api1.admin_token}"} if path.startswith("/v1") else None
            answer = api1.admin.get(url) if path.startswith("/api") else api1.client.get(url, headers=headers)
            found = answer.headers["content-type"].partition(";")[0]
            documented = methods["get"]["responses"][str(answer.status_code)].get("content", {})
            assert found in documented, (path, answer.status_code, found)
            tried += answer.is_success
            if path.startswith("/v1"):
                assert answer.status_code == 200, (path, answer.text)
    assert tried >= 30


def test_allow_names_all_methods_of_a_path(api1):
    """Guard: with Starlette's own header, only those of the first route were named: POST for /jobs."""
    for path, methods in {
        "/api/v1/jobs": "GET, HEAD, POST",
        "/api/v1/accounts/x": "DELETE, PATCH",
        "/api/v1/leases/x/report": "POST",
        "/api/v1/jobs/x/adapter": "GET, HEAD",
        "/healthz": "GET, HEAD",
    }.items():
        answer = api1.client.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_head_is_get_without_a_body(api1, people):
    """Guard: without `HeadRequests` each of these was a 405, and a stream of events would never end."""
    job = people.ann.submit()
    for path in ("/jobs", f"/jobs/{job['id']}", "/me", f"/jobs/{job['id']}/events/stream", "/events/stream"):
        head = people.ann.call("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        if not path.endswith("/stream"):
            full = people.ann.get(path).headers
            assert [head.headers[n] for n in ("content-type", "content-length")] == [
                full[n] for n in ("content-type", "content-length")
            ]
    assert people.ann.call("HEAD", "/jobs/none").status_code == 404
    assert api1.client.head("/api/v1/jobs").status_code == 401
    assert api1.client.head("/healthz").status_code == 200
    assert api1.client.head("/static/app.css").status_code == 200


def test_a_file_that_the_client_has_is_not_sent(api1, people, provider, tmp_path):
    """Guard: without `has_current` each was sent again, whole."""
    job = people.ann.submit(max_steps=2)
    machine = Machine.launched(api1, provider)
    machine.start()
    grant = machine.assignment["datasets"][0]
    _is_sent_once(people.ann, grant["url"].partition("/api/v1")[2], grant["headers"])
    machine.save(2, tmp_path)
    machine.finish(2)
    for path in (f"/jobs/{job['id']}/adapter", f"/jobs/{job['id']}/checkpoints/{machine.head}/file"):
        _is_sent_once(people.ann, path, {})


def _is_sent_once(caller, path, headers):
    etag = caller.get(path, headers=headers).headers["etag"]
    for asked in (etag, f'W/{etag}, "other"', "*"):
        again = caller.get(path, headers=headers | {"If-None-Match": asked, "Range": "bytes=0-0"})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = caller.get(path, headers=headers | {"If-None-Match": '"other"'})
    assert other.status_code == 200
    assert other.content


@pytest.mark.parametrize("verb", ["submit", "clone"])
def test_requests_with_one_key_get_one_answer(api, people, verb):
    """Guard: with the unique index left to raise, some of them got 409 as if their requests differed."""
    file = people.ann.job_file()
    path = "/jobs" if verb == "submit" else f"/jobs/{people.ann.post('/jobs', file).json()['id']}:clone"
    begin = threading.Barrier(6)

    def ask(number):
        begin.wait()
        body = file if verb == "submit" else {"lora_r": 4}
        return people.ann.post(path, body, headers={"Idempotency-Key": "one" if number < 5 else "other"})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert [a.status_code for a in answers] == [201] * 6, [a.text for a in answers]
    assert len({a.json()["id"] for a in answers[:5]}) == 1
    assert answers[5].json()["id"] != answers[0].json()["id"]
    assert len({a.headers["location"] for a in answers[:5]}) == 1
    differing = people.ann.post("/jobs", file | {"lora_r": 2}, headers={"Idempotency-Key": "one"})
    assert differing.status_code == 409
