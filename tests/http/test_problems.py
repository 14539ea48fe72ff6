"""Whatever is wrong with a request is said in a problem document that points at it."""

import json
import tracemalloc

import pytest

from orchestrator.entrypoints.http.routes import holds_nul
from orchestrator.ports.providers import ProviderUnavailable
from tests.http.http_client import Machine


def _problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)
    assert "Traceback" not in answer.text
    return body


def test_a_job_file_is_explained_in_its_own_words(api1):
    spec = api1.admin.job_file(lora_rr=8, learning_rate="fast", checkpoint={"kepe": 1}, lora_r=0)
    errors = {e["pointer"]: e["detail"] for e in _problem(api1.admin.post("/jobs", spec), 422)["errors"]}
    assert errors["/lora_rr"] == "unknown key 'lora_rr'; did you mean 'lora_r'?"
    assert errors["/checkpoint/kepe"] == "unknown key 'kepe'; did you mean 'keep'?"
    assert {"/learning_rate", "/lora_r"} <= set(errors)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"base_model": "org/\ud83d"}, "/base_model"),
        ({"sample_prompts": ["a", "\ud83d"]}, "/sample_prompts/1"),
        ({"lora_target_modules": ["\ud83d"]}, "/lora_target_modules/0"),
        ({"datasets": [{"path": "\ud83d"}]}, "/datasets/0/path"),
        ({"placement": {"accounts": ["\ud83d"]}}, "/placement/accounts/0"),
        ({"name": "\ud83d"}, "/name"),
    ],
)
def test_half_a_character_in_a_job_file_is_pointed_at(api1, changes, pointer):
    """Guard: without the look in `NonBlank` these were a 500, all but the name's."""
    answer = api1.admin.call(
        "POST",
        "/jobs",
        content=json.dumps(api1.admin.job_file(**changes)),
        headers={"Content-Type": "application/json"},
    )
    assert _problem(answer, 422)["errors"] == [{"pointer": pointer, "detail": "has an unpaired surrogate character"}]


def test_what_the_server_looks_up_points_into_the_file_too(api1):
    spec = api1.admin.job_file(datasets=[{"path": "sha256:" + "0" * 64}])
    assert _problem(api1.admin.post("/jobs", spec), 422)["errors"][0]["pointer"] == "/datasets/0/path"
    assert _problem(api1.admin.post("/jobs:plan", spec), 422)["errors"][0]["pointer"] == "/datasets/0/path"
    spec = api1.admin.job_file(base_model="/etc")
    assert _problem(api1.admin.post("/jobs", spec), 422)["errors"][0]["pointer"] == "/base_model"


def test_broken_json_names_line_and_column(api1):
    answer = api1.admin.call("POST", "/jobs", content=b'{\n  "name": }', headers={"Content-Type": "application/json"})
    assert "line 2, column 11" in _problem(answer, 422)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/jobs", 405),
        ("GET", "/jobs/none", 404),
        ("GET", "/jobs?limit=0", 422),
        ("GET", "/jobs?state=no", 422),
        ("GET", "/datasets/xyz", 422),
        ("GET", "/datasets/" + "0" * 64, 404),
        ("GET", "/jobs?limit=" + "9" * 5000, 422),
        ("GET", "/sessions/x/log?offset=-1", 404),
    ],
)
def test_the_frameworks_own_errors_are_problems_too(api1, method, path, status):
    body = _problem(api1.admin.call(method, path), status)
    if status == 422:
        assert body["errors"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a\\u0000b"}',
        b'{"name": "a\x00b"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\xff"}',
        b"[" * 100_000,
        b'{"name": ' + b"9" * 5000 + b"}",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"name": {}}',
        b"",
        b'{"\\ud800": 1}',
    ],
)
@pytest.mark.parametrize("path", ["/members", "/jobs", "/tokens"])
def test_odd_bodies_are_the_callers_fault(api, path, body):
    answer = api.admin.call("POST", path, content=body, headers={"Content-Type": "application/json"})
    if not (path == "/tokens" and body == b"{}"):
        assert answer.status_code in (400, 422), answer.text
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "changes", [{"deadline": 1e300}, {"deadline": -5}, {"eval_steps": 2**70}, {"num_epochs": 1e308}]
)
def test_numbers_beyond_all_measure(api, changes):
    assert api.admin.post("/jobs", api.admin.job_file(**changes)).status_code in (201, 422)
    assert api.admin.get("/jobs").status_code == 200


@pytest.mark.parametrize(
    ("body", "holds"),
    [
        (b"\0", True),
        (rb"\u0000", True),
        (rb"\\u0000", False),
        (rb"\\\u0000", True),
        (rb"a\\\\u0000", False),
        (b"u0000", False),
    ],
)
def test_a_nul_is_told_from_what_only_looks_like_one(body, holds):
    """Guard: without the count, an escaped backslash before u0000 was refused."""
    assert holds_nul(body) is holds


def test_looking_for_a_nul_takes_no_room():
    """Guard: with the pairs of backslashes repeated as a group, the look took 35 bytes for each of the body's."""
    body = b"\\" * (4 << 20) + rb"a\\u0000"
    tracemalloc.start()
    try:
        assert not holds_nul(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nul_in_the_address(api1):
    assert _problem(api1.admin.get("/jobs?name=a%00b"), 422)
    assert _problem(api1.admin.get("/jobs/a%00b"), 422)


def test_conflicts_say_what_is_in_the_way(api1):
    job = api1.admin.submit()
    assert "not paused" in _problem(api1.admin.post(f"/jobs/{job['id']}:resume"), 409)["detail"]
    assert _problem(api1.admin.post("/members", {"name": "admin"}), 409)


def test_what_does_not_answer_is_tried_again_later(api1, people, provider):
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    provider.failure = ProviderUnavailable("is away")
    answer = people.ann.get(f"/sessions/{machine.lease}/log")
    assert _problem(answer, 503)["detail"] == "is away"
    assert int(answer.headers["retry-after"]) > 0


def test_a_bug_says_nothing_of_itself(api1):
    """A role that no version knows stands for a bug: whoever reads it raises an error with it."""
    assert api1.admin.post("/members", {"name": "ann"}).status_code == 201
    with api1.app.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE members SET role = 'a secret inside' WHERE name = 'ann'")
    body = _problem(api1.admin.get("/members"), 500)
    assert "secret" not in str(body)


def test_a_submit_that_is_not_plain_goes_the_long_way(people):
    """Guard: without the long way these were a 500, or a key of any length was kept."""
    file = json.dumps(people.ann.job_file())
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert people.ann.call("POST", "/jobs", content=file, headers=charset).status_code == 201
    long_key = {"Content-Type": "application/json", "Idempotency-Key": "k" * 256}
    faults = _problem(people.ann.call("POST", "/jobs", content=file, headers=long_key), 422)["errors"]
    assert faults[0]["pointer"].lower() == "/idempotency-key"
    assert people.ann.call("POST", "/jobs", content=file, headers={"Content-Type": "text/plain"}).status_code == 422
    stranger = people.admin.api.as_("nobody's")
    assert stranger.call("POST", "/jobs", content=file, headers=charset).status_code == 401


def test_a_database_that_was_moved_away_is_told(api1, people, tmp_path) -> None:
    """Guard: without the check before each commit the submit was acknowledged, and written into the renamed file."""
    sha256 = people.ann.upload().json()["sha256"]
    (tmp_path / "trainhop.db").rename(tmp_path / "aside")
    job = {"base_model": "tiny", "datasets": [{"path": f"sha256:{sha256}"}], "max_steps": 3}
    for answer in (api1.client.get("/readyz"), people.ann.post("/jobs", job)):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "was moved, deleted or replaced while the server runs" in answer.json()["detail"]
    (tmp_path / "aside").rename(tmp_path / "trainhop.db")
    assert api1.client.get("/readyz").status_code == 200
    assert people.ann.get("/jobs").json()["items"] == []
