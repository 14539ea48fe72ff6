"""Curves, forecasts, previews, forms and logs: the parts that compute."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.jobs import StepTime
from orchestrator.domain.scheduling import Blocker, Candidate, forecast
from orchestrator.entrypoints.dashboard import curve, job_form, logs, timeline
from orchestrator.entrypoints.dashboard.render import fragment
from orchestrator.ports.catalog import TokenLook
from orchestrator.services.dataset_preview import preview, with_tokens
from orchestrator.services.plans import Plan, PlannedEvaluation, PlannedFinding, PlannedPlace
from tests.http.http_client import Machine
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.job_spec import JobSpec


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3_000), st.integers(10, 500))
def test_a_curve_gets_shorter_and_loses_no_spike(values, most):
    """Guard: with every n-th point kept in place of each bucket's extremes, the largest value was missing."""
    rows = [(step, value, float(step), 1) for step, value in enumerate(values)]
    kept = curve.decimate(rows, most)
    assert len(kept) <= max(most, 4)
    assert [r[0] for r in kept] == sorted({r[0] for r in kept})
    assert set(kept) <= set(rows)
    assert {min(values), max(values), values[0], values[-1]} <= {r[1] for r in kept}


def test_a_cursor_that_is_none_begins_at_the_beginning():
    assert curve.cursor_of("3.120") == (3, 120)
    for text in (None, "", "x.y", "-1.2", "1", "²..", "9" * 400):
        assert curve.cursor_of(text) == (0, 0)


def test_points_after_a_cursor_hold_every_step_that_was_run_again(api, people, provider, tmp_path):
    """Guard: with `step > cursor` alone, steps 5 and 6 of the second session were never told."""
    job = people.ann.submit()["id"]
    first = Machine.launched(api, provider)
    first.start()
    first.save(4, tmp_path)
    for step in range(1, 7):
        first.report(step)
    first.say("release", first.said("release", step=6, reason="deadline"))
    server = api.client.app.state.server

    def since(cursor):
        found = curve.since(server, job, server.queries.sessions(job_id=job), cursor)
        assert found is not None
        return found

    told = since((0, 0))
    assert [r[0] for r in told["loss"]] == [1, 2, 3, 4, 5, 6]
    cursor = curve.position(server, job, (0, 0))
    assert cursor == (1, 6)
    second = Machine.launched(api, provider)
    second.start()
    second.report(5, metrics=[{"step": 5, "values": {"loss": 50.0}}])
    later = since(cursor)
    assert [(r[0], r[1], r[3]) for r in later["loss"] if r[3] == 2] == [(5, 50.0, 2)]
    second.report(6, metrics=[{"step": 6, "values": {"loss": "Infinity"}}])
    assert [r[0] for r in since((2, 5))["loss"]] == [5]


def test_a_page_changes_with_every_event_of_its_job(api, people):
    """Guard: without the newest event, an open page of the original never listed its clones."""
    queries = api.client.app.state.server.dashboard_queries
    job = people.ann.submit()["id"]
    before = queries.pulses([job])
    assert people.ann.post(f"/jobs/{job}:clone", {}).status_code == 201
    assert queries.pulses([job]) != before


def place(**more) -> Candidate:
    return Candidate(account_id="a", provider="p", name="alice", member_id=None, slots=1, session_s=3600.0, **more)


def test_a_forecast_counts_sessions_and_waits_for_quota():
    """Guard: without the quota, the last forecast promised the end two days before the machine's hours return."""

    def known(**more):
        found = forecast(now=0, step_s=1.0, step_time=StepTime(host_s=1.0), **more)
        assert found is not None
        return found

    here = known(steps=100, session_left_s=500, places=[])
    assert (here.seconds, here.sessions) == (100, 0)
    assert forecast(steps=100, step_s=1.0, step_time=StepTime(), session_left_s=50, places=[], now=0) is None
    more = known(steps=7_000, session_left_s=1_010, places=[place()])
    assert (more.seconds, more.sessions, more.waits_until) == (7_000 + 2 * 70, 2, None)
    short = known(steps=7_200, session_left_s=None, places=[place(hours_left=1.0, refresh_at=200_000.0)])
    assert short.waits_until == 200_000
    assert short.seconds > 200_000


def test_the_rest_of_a_job_takes_its_sessions_and_their_start_ups():
    here = dataclasses.replace(place(start_up_s=50.0, save_s=10.0), session_s=1060.0)
    ends = {(100.0, 500.0): 100.0, (600.0, 500.0): 660.0, (2600.0, 500.0): 2600.0 + 3 * 60.0, (100.0, -5.0): 160.0}
    for (work_s, left_s), end in ends.items():
        found = forecast(
            steps=int(work_s / 10),
            step_s=10.0,
            step_time=StepTime(host_s=10.0),
            session_left_s=left_s,
            places=[here],
            now=0,
        )
        assert found is not None
        assert found.seconds == end


def test_the_rest_of_a_job_goes_on_at_the_pace_of_the_next_machine():
    """Removed: the pace of `place` in `forecast`; what a CPU had begun was promised as late on a GPU as on the CPU."""
    step_time = StepTime(gpu_s=2.0, host_s=100.0)
    found = forecast(
        steps=100, step_s=100.0, step_time=step_time, session_left_s=1_010.0, places=[place(gpu=True)], now=0
    )
    assert found is not None
    assert found.seconds == 1_000 + 90 * 2.0 + 70


def test_bars_cover_what_happened_and_no_more():
    """Guard: with the ledger's own seconds added up, a worker's boot was counted beside the machine's."""
    sessions = [
        {
            "started_at": 10.0,
            "created_at": 5.0,
            "ended_at": 50.0,
            "first_step": 0,
            "last_step": 44,
            "phase": "train",
            "ledger": {"load": 5, "train": 35},
        },
        {
            "started_at": 70.0,
            "created_at": 60.0,
            "ended_at": None,
            "first_step": 40,
            "last_step": 90,
            "phase": "train",
            "ledger": {},
        },
    ]
    steps = timeline.by_step(sessions, 100)
    assert [(b.x, b.width, b.session) for b in steps] == [(0, 40, 1), (40, 50, 2)]
    clock = timeline.by_clock(sessions, 0.0, 100.0)
    assert [(b.kind, b.x, b.width) for b in clock] == [
        ("queue", 0, 5),
        ("boot", 5, 5),
        ("load", 10, 5),
        ("train", 15, 35),
        ("queue", 50, 10),
        ("boot", 60, 10),
        ("train", 70, 30),
    ]

    assert dict(timeline.totals(sessions, 0.0, 100.0)) == {"queue": 15.0, "boot": 15.0, "load": 5.0, "train": 65.0}
    sessions[0]["ledger"]["boot"] = 9
    assert sum(spent for _, spent in timeline.totals(sessions, 0.0, 100.0)) == pytest.approx(100.0)


def test_a_preview_shows_what_is_trained_and_every_fault(tmp_path):
    """Guard: with `inspect` in place of `examine`, only the first of the two faults was told."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}\n'
        '{"messages": []}\n{"other": 1}\n'
        '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}\n'
        "{broken\n"
    )
    found = preview(file, RowFormat.AUTO, None, sequence_len=8, train_on_inputs=False)
    assert found.type == "messages"
    assert [line for line, _ in found.faults] == [2, 3, 5]
    assert [(t.role, t.text, t.trained) for t in found.shown[0]] == [("user", "a?", False), ("assistant", "b.", True)]
    assert (found.rows, found.repeated, found.exact) == (2, 1, False)
    assert all(t.trained for t in preview(file, RowFormat.AUTO, None, sequence_len=8, train_on_inputs=True).shown[0])
    counted = with_tokens(found, TokenLook(lengths=[9]), 8)
    assert (counted.tokens, counted.truncated, counted.exact) == (18, 1, True)
    assert (counted.measured, sum(b.rows for b in counted.bars)) == (1, 1)
    assert (with_tokens(found, TokenLook(away="gone"), 8).exact, found.away) == (False, "")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in preview(empty, RowFormat.AUTO, None, sequence_len=8, train_on_inputs=False).faults[0][1]


PLACE = {
    "account": "ann's",
    "provider": "cloud",
    "sessions": 3,
    "seconds": 7_000.0,
    "obstacle": None,
    "memory_bytes": 5 << 30,
    "step_s": 0.7,
    "hours": 1.9,
    "hours_left": 2.5,
    "hours_total": 30.0,
    "refresh_at": 4_000.0,
    "done_at": 9_000.0,
    "evaluation_s": 300.0,
    "evaluation_in_last_session": True,
}
PLAN = {
    "steps": 11,
    "train_rows": 22,
    "gpu_bytes": 3 << 30,
    "host_bytes": 4 << 30,
    "step_s": 0.7,
    "basis": "steps of earlier jobs",
    "waits_for": Blocker(reason="all are busy"),
    "store": "drive",
    "store_bytes": 6 << 20,
    "done_at": 8_000.0,
    "unused_keys": ("source",),
    "evaluation": PlannedEvaluation(prompts=40, max_new_tokens=64),
    "late_s": 600.0,
    "notes": ("<b>Answers end with</b>", "a second note"),
    "audits": ("rows.jsonl: not audited",),
    "findings": (
        PlannedFinding(
            dataset=0,
            pointer="/datasets/0/path",
            check="secrets",
            level="stop",
            count=1,
            total=22,
            share=0.05,
            words="1 of 22 rows has a key",
            advice="Remove it.",
            lines=(),
            other_lines=(),
            samples=(),
            accepted=False,
        ),
    ),
    "unchecked": ("other.jsonl",),
}


def shown(place=PLACE, *, previewed=False, **changes):
    """The plan's piece of a page."""
    plan = Plan(**PLAN | changes, places=(PlannedPlace(**place),))
    room = Candidate(
        account_id="a", name="ann's", provider="cloud", member_id=None, slots=1, session_s=9.0, memory_bytes=8 << 30
    )
    values = {"problem": "", "faults": [], "previewed": previewed, "now": 1_000.0}
    return fragment("plan.html", plan=plan, places={"ann's": room}, **values)


def test_a_plan_says_nothing_twice():
    """Guards: without `told`, the place's chip and the line below it gave one reason; without `previewed`, preview and
    plan named the same unused keys."""
    busy = Blocker(reason="all machines are busy")
    found = shown(PLACE | {"obstacle": busy}, waits_for=busy)
    assert found.count("all machines are busy") == 1
    assert "Would wait until this is over." in found
    other = shown(PLACE | {"obstacle": busy}, waits_for=Blocker(reason="all machines are busy; no quota is left"))
    assert "Would wait: all machines are busy; no quota is left" in other
    words = "Keys of the data that are not used"
    assert (words in shown(), words in shown(previewed=True)) == (True, False)


def test_the_page_shows_every_field_of_a_plan():
    """Guard: without them in `plan.html` notes, missed deadline, space, end and quota were in `trainhop plan` alone."""
    whole = shown()
    for text in (
        "&lt;b&gt;Answers end with&lt;/b&gt;",
        "a second note",
        "missed by 10 min",
        "6.0 MiB",
        "at most, in drive",
        "rows.jsonl: not audited",
        "Stop, <code>secrets</code>: 1 of 22 rows has a key.",
        "still being checked",
    ):
        assert text in whole
    assert "1.9 h of the quota, 2.5 of 30 h left" in whole
    assert "prompts, 2 answers each of at most 64 tokens" in whole
    assert re.search(r"then its evaluation, about 5[^,]* min[^,]*, in the last session", whole)
    other = {str: "x", int: 1, bool: False, float: 1.0, tuple: (), Blocker: None, PlannedEvaluation: None}
    for name in PLAN.keys() - {"step_s"}:  # the places tell the times of their steps
        assert shown(**{name: other[type(PLAN[name])]}) != whole, name
    for name in PLACE.keys() - {"obstacle"}:
        assert shown(PLACE | {name: other[type(PLACE[name])]}) != whole, name
    assert "too small" in shown(PLACE | {"obstacle": Blocker(reason="too small")})
    leak = PLAN["findings"][0].model_copy(
        update={"check": "leak", "dataset": None, "pointer": "/evaluate/prompts/path"}
    )
    assert "To evaluate anyway, set <code>accept_findings: [leak]" in shown(findings=(leak,))
    assert ("clean_copy" in whole, "clean_copy" in shown(findings=(leak,))) == (True, False)
    assert "The prompts are still being checked." in shown(unchecked=("the prompts",))
    assert PLAN.keys() | {"places"} == Plan.model_fields.keys()
    assert PLACE.keys() == PlannedPlace.model_fields.keys()


def test_a_job_file_survives_the_form():
    spec = {
        "name": "n",
        "base_model": "org/m",
        "datasets": [{"path": "sha256:" + "a" * 64, "type": "text"}],
        "max_steps": 7,
        "learning_rate": 0.0003,
        "sample_prompts": ["a", "b"],
        "placement": {"providers": ["local"]},
        "evaluate": {"max_prompts": 40},
        "deadline": 2e9,
    }

    again = job_form.from_form(job_form.to_form(spec)).model_dump(mode="json", exclude_defaults=True)
    spec["datasets"][0].pop("type")  # told by the upload itself
    assert again == spec
    with pytest.raises(InvalidError) as wrong:
        job_form.from_form({"base_model": "m", "max_steps": "3", "more": "a: b: c"})
    assert wrong.value.problems[0][0] == "more"


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\r\t\x85\u2028 :#'\"-"), max_size=60
)
jobs = st.builds(
    JobSpec,
    name=words.filter(str.strip),
    base_model=words.filter(str.strip),
    datasets=st.just((DatasetSpec(path="sha256:" + "a" * 64),)) | st.just((DatasetSpec(path="org/data", split="x"),)),
    adapter=st.sampled_from(["lora", "qlora"]),
    max_steps=st.integers(1, 10_000_000),
    num_epochs=st.none() | st.floats(0, 10_000, exclude_min=True),
    learning_rate=st.floats(0, 10, exclude_min=True),
    val_set_size=st.floats(0, 1, exclude_max=True),
    lora_alpha=st.floats(0, 4096, exclude_min=True),
    sample_prompts=st.lists(words.filter(str.strip), max_size=4),
    deadline=st.none() | st.floats(0, 1e12),
)


@given(jobs)
def test_any_job_file_survives_the_form(spec):
    """Guards: with floats as `:g` a learning rate of 0.00012345678 became 0.000123457; with prompts always joined by
    line, one of two lines became two; with a name of two lines in its field, a browser made one line of it; with YAML
    believed as it was written, U+0085 became a blank."""
    form = job_form.to_form(spec.model_dump(mode="json", exclude_defaults=True))
    for key, text in form.items():  # what a browser does to text areas, and to fields
        form[key] = (
            "\r\n".join(re.split("\r\n|\r|\n", text)) if key in ("more", "prompts") else re.sub("[\r\n]", "", text)
        )
    assert job_form.from_form(form) == spec


def test_what_a_field_and_the_yaml_say_differently_is_refused():
    """Guard: without the comparison in `_put`, a job file that was pasted below filled fields was ignored without a
    word."""
    data = "a" * 64
    pasted = f"name: mine\nlearning_rate: 1e-4\nmax_steps: 40\ndatasets: [{{path: 'sha256:{data}', type: text}}]"
    same = {"name": "mine", "learning_rate": "0.0001", "base_model": "m", "data": data, "more": pasted}
    assert job_form.from_form(same).datasets[0].type == "text"
    other = {"name": "first-try", "max_steps": "7", "prompts": "a", "data": "b" * 64}
    with pytest.raises(InvalidError) as refused:
        job_form.from_form({**same, **other, "more": pasted + "\nsample_prompts: [b]"})
    assert [key for key, _ in refused.value.problems] == ["name", "max_steps", "datasets", "sample_prompts"]
    assert "Name: is first-try in the field and mine in the YAML" in str(refused.value)


def test_lines_know_their_place_and_kind():
    text = (
        "step 1\nUserWarning: old\nTraceback (most recent call last):\nRuntimeError: ü broke\n"
        + "x" * 5_000
        + "\nlast\n"
    )
    found = logs.lines(text, 100)
    assert [x.level for x in found] == ["info", "warning", "error", "error", "info", "info"]
    assert found[4].cut == 1_000
    whole = (b" " * 100) + text.encode()
    assert all(whole[x.at :].startswith(x.text[:20].encode()) for x in found)
    assert [x.text for x in logs.lines(text, 0, level="error", search="BROKE")] == ["RuntimeError: ü broke"]
