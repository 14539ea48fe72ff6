"""Made-up requests for every operation, drawn from the OpenAPI document: no answer may be the server's fault."""

import os
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.entrypoints.http.app import make_app
from orchestrator.providers.registry import Registry
from orchestrator.testing import FakeProvider

EXAMPLES = int(os.environ.get("TRAINHOP_FUZZ_EXAMPLES", "12"))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    providers = Registry.of({"local": FakeProvider("local", this_computer=True), "fake": FakeProvider("fake")})
    app = build(Settings(data_dir=tmp_path_factory.mktemp("fuzz"), offline=True), providers=providers)
    yield app
    app.close()


def test_no_request_breaks_the_server(fuzzed):
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(fuzzed), headers={"Host": "127.0.0.1"})
    headers = {"Host": "127.0.0.1", "Authorization": f"Bearer {fuzzed.token_file.read_text().strip()}"}
    tried = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # pyright: ignore[reportAttributeAccessIssue]  an error here fails the test, as it should
        if operation.path.endswith("/stream"):
            continue
        tried += 1
        _fuzz(operation, headers)
    assert tried > 40


def _fuzz(operation, headers):
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        derandomize=True,
        database=None,
    )
    def check(case):
        answer = case.call(headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and case.method != "HEAD":
            is_openai = operation.path.startswith("/v1/")
            form = "application/json" if is_openai else "application/problem+json"
            assert answer.headers["content-type"][0] == form, answer.text
            assert "error" in answer.json() if is_openai else answer.json()["status"] == answer.status_code

    check()
