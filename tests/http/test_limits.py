"""Requests that are too much: refused in words, at once, and without blocking the event loop.

The fixtures' `LoopWatch` fails a test that blocks it.
"""

import json
import threading
import time

import pytest

from orchestrator.adapters.database.queries import EXCERPT
from orchestrator.entrypoints.http.middleware import MAX_JSON_BYTES, MAX_QUERY_BYTES
from orchestrator.entrypoints.http.routes import MAX_DEPTH, MAX_VALUES
from tests.helpers.loop_watch import MOST_S, LoopWatch
from worker.shared.messages import MAX_POINTS, MAX_ROWS
from worker.shared.spec_errors import MAX_ERRORS
from worker.shared.wire import MAX_TEXT

JSON = {"Content-Type": "application/json"}


def test_the_watch_sees_a_blocked_loop():
    """The longest turn is that of the busy call, and the check fails for it."""
    watch = LoopWatch()
    loop = watch.new_loop()

    def busy():
        begun = time.thread_time()
        while time.thread_time() - begun < MOST_S * 1.2:
            pass
        loop.stop()

    loop.call_soon(busy)
    thread = threading.Thread(target=loop.run_forever)  # a browser of other tests keeps a loop in this one
    thread.start()
    thread.join()
    loop.close()
    assert watch.longest > MOST_S
    with pytest.raises(AssertionError, match="blocked"):
        watch.check()


def test_thousands_of_unknown_keys_are_counted(api1):
    """Guard: with each key compared with each other and with all known ones, 4,000 took 9 s on the event loop."""
    file = api1.admin.job_file() | {f"lora_{number}": 1 for number in range(4_000)}
    for path in ("/jobs", "/jobs:plan"):
        errors = api1.admin.post(path, file).json()["errors"]
        assert len(errors) == MAX_ERRORS + 1
        assert errors[0]["detail"].startswith("unknown key 'lora_0'; did you mean")
        assert errors[-1] == {"pointer": "", "detail": f"and {4_000 - MAX_ERRORS} more errors"}


def _too_much():
    yield json.dumps({f"k{number}": 1 for number in range(MAX_VALUES)})
    yield json.dumps({"datasets": [[]] * MAX_VALUES})
    yield '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1)
    yield "[" + "[]," * 20_000 + "[]]"
    yield "{" + ",".join(f'"k{number}":1' for number in range(20_000)) + "}"


def test_too_many_values_are_refused_unread(api1):
    """Guard: without the measure in `check_json`, 20,000 keys were explained one by one, for many seconds."""
    for body in _too_much():
        for path in ("/jobs", "/jobs:plan", "/accounts", "/jobs/x:clone"):
            answer = api1.admin.call("POST", path, content=body, headers=JSON)
            assert answer.status_code == 422
            assert answer.json()["detail"] == "The body has too many values. Send fewer."


def test_a_long_key_is_quoted_in_part(api1):
    """Guard: without `excerpt` the error repeated the key twice, and was larger than the request."""
    answer = api1.admin.post("/jobs", api1.admin.job_file() | {"k" * 900_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 2_000
    assert api1.admin.post("/jobs", api1.admin.job_file(sample_prompts=["x" * 100_001])).status_code == 422


def test_bodies_and_queries_have_a_maximum(api1):
    assert api1.admin.call("POST", "/jobs", content=bytes(MAX_JSON_BYTES + 1), headers=JSON).status_code == 413
    assert api1.admin.get("/jobs?name=" + "x" * MAX_QUERY_BYTES).status_code == 414
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://127.0.0.1"}
    bearer = {"Authorization": f"Bearer {api1.admin_token}"}
    answer = api1.client.post("/submit", content=b"a&" * MAX_JSON_BYTES, headers=form | bearer)
    assert answer.status_code == 413


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_odd_yaml_in_the_form_is_refused_in_words(api1):
    """Guards: without the measure the aliases were written out for ever; without `RecursionError` it was a 500."""
    headers = {"Origin": "http://127.0.0.1", "Authorization": f"Bearer {api1.admin_token}"}
    for text, words in (
        ("[" * 20_000, "nested too deeply"),
        (_BOMB, "too many values"),
        ("a: &a [*a]", "too many values"),
        ("x" * 70_000, "at most 65536 characters"),
        ("a: 2024-13-01", "cannot be read"),
    ):
        for path in ("/submit", "/submit/plan"):
            answer = api1.client.post(path, data={"base_model": "m", "more": text}, headers=headers)
            assert answer.status_code in (200, 422)
            assert words in answer.text, text[:20]


# --- messages of workers ----------------------------------------------------------------------------------


def test_a_long_failure_is_cut_and_lists_show_less(machine, people):
    """Guards: without the maximum of `Text` the job's page took 42 s; without `_shortened` each list had it whole."""
    words = "the reason; " * 60_000
    failure = {"message": words, "detail": words, "permanent": True}
    assert machine.say("finish", machine.said("finish", step=1, failure=failure)).status_code == 204
    job = machine.assignment["job"]
    whole = people.ann.get(f"/jobs/{job}").json()["message"]
    assert len(whole) == MAX_TEXT == len(people.ann.get(f"/sessions/{machine.lease}").json()["detail"])
    brief = {
        people.ann.get("/jobs").json()["items"][0]["message"],
        people.ann.get("/sessions").json()["items"][0]["detail"],
        people.ann.get(f"/jobs/{job}/sessions").json()["items"][0]["detail"],
        people.ann.get(f"/jobs/{job}/events").json()["items"][-1]["reason"],
    }
    assert brief == {words[: EXCERPT - 1] + "…"}


def test_a_report_keeps_its_newest_points(machine, people):
    """Guard: without the maxima of `Metrics`, a report of 250,000 points took 16 s."""
    rows = [{"step": step, "values": {"loss": 1.0}} for step in range(MAX_ROWS + 10)]
    assert machine.report(MAX_ROWS + 10, metrics=rows).status_code == 200
    job = machine.assignment["job"]
    steps = [m["step"] for m in people.ann.get(f"/jobs/{job}/metrics").json()["items"]]
    assert steps == list(range(10, MAX_ROWS + 10))
    names = {f"m{number}": 1.0 for number in range(64)}
    wide = [{"step": step, "values": names} for step in range(500)]
    assert machine.report(500, metrics=wide).status_code == 200
    found = people.ann.get(f"/jobs/{job}/metrics?name=m0").json()["items"]
    assert [m["step"] for m in found] == list(range(500 - MAX_POINTS // 64, 500))


def test_no_machine_can_have_this_step_time(machine, people):
    """Guard: without `StepSeconds` the job's page and the plan were a 500 from then on."""
    for seconds in ("Infinity", "NaN", "1e308", "-5", "0", '"Infinity"', '"-Infinity"'):
        said = json.dumps(machine.said("report", step=1, phase="train", seconds_left=1e308, ledger={"train": 1e308}))
        body = said[:-1] + f', "seconds_per_step": {seconds}' + "}"
        answer = machine.caller.call("POST", f"/leases/{machine.lease}/report", content=body, headers=JSON)
        assert answer.status_code == 200, answer.text
    job = people.ann.get(f"/jobs/{machine.assignment['job']}").json()
    assert (job["seconds_per_step"], job["eta_seconds"]) == (None, None)
    session = people.ann.get(f"/sessions/{machine.lease}").json()
    assert session["seconds_per_step"] is None
    assert session["ledger"]["train"] <= 1e9
    assert people.ann.post("/jobs:plan", people.ann.job_file()).status_code == 200
