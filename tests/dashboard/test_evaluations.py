"""Evaluations on a job's page: the form that starts one, and the report, which shows no answers."""

from __future__ import annotations

import json

import pytest

from orchestrator.domain.evaluations import Evaluation
from tests.dashboard.test_browser import _axe
from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.helpers.evaluations import answers_of
from tests.http.http_client import Machine, People

CHAT = b"".join(json.dumps({"prompt": f"What is {n}?", "completion": "It is."}).encode() + b"\n" for n in range(60))
FORM = {"max_prompts": "40", "max_new_tokens": "64", "temperature": "0", "judge": ""}
REPORT = {
    "prompts": 40,
    "truncated": {"base": 0.0, "adapter": 0.25},
    "tokens": {"base": 30.0, "adapter": 41.0},
    "identical": 3,
    "forgetting": {"passages": 100, "rise": {"value": 0.31, "low": 0.29, "high": 0.33}, "harm": "veto"},
    "refusals": {"base": 0.0, "adapter": 0.0},
    "repetition": {"base": 0.0, "adapter": 0.0},
    "template_leaks": {"base": 0.0, "adapter": 0.0},
    "instructions": {
        "prompts": 40,
        "base": 30,
        "adapter": 20,
        "only_base": list(range(1, 13)),
        "only_adapter": [14, 15],
        "difference": {"value": -0.25, "low": -0.4, "high": -0.08},
        "p": 0.013,
    },
    "harmless": {"prompts": 20, "base": 1, "adapter": 7},
    "fixed_sha256": "f" * 64,
    "tasks": {
        "scores": {
            "prompts": 100,
            "base": 61,
            "adapter": 72,
            "only_base": [3],
            "only_adapter": list(range(10, 22)),
            "difference": {"value": 0.11, "low": 0.04, "high": 0.19},
            "p": 0.0034,
        },
        "unasked": 0,
        "truncated": {"base": 0.0, "adapter": 0.0},
        "problem": "",
    },
    "benchmarks": [
        {
            "name": "arc_easy",
            "title": "ARC-Easy",
            "metric": "acc_norm",
            "items": 300,
            "unasked": 0,
            "harness": "lm-eval 0.4.13",
            "chat": True,
            "scores": {
                "base": {"value": 0.6, "low": 0.544, "high": 0.654},
                "adapter": {"value": 0.52, "low": 0.464, "high": 0.576},
                "only_base": 30,
                "only_adapter": 6,
                "difference": {"value": -0.08, "low": -0.12, "high": -0.041},
                "p": 0.0001,
            },
        }
    ],
    "similarity": {
        "rows": 38,
        "own_loss": {"rows": 38, "tokens": 900, "base": 2.5, "adapter": 1.25},
        "chrf": {"base": 20.0, "adapter": 60.0},
        "bleu": {"base": 10.0, "adapter": 90.5},
        "rouge_l": {"base": 0.3, "adapter": 0.7},
        "settings": {"chrf": "a", "bleu": "b"},
    },
    "vetoes": ["The adapter has forgotten general text <b>."],
    "warnings": ["More than 10% of the answers were cut."],
}
SCORED = (
    "Fixed instructions, checked by a program: of 40, the base model passes <b>30</b>",
    "(-25 points, 95 % interval -40 to -8, p 0.013)",
    "Only the base model passes line 3.",
    "Only the adapter passes lines 10, 11, 12",
    "Of 20 harmless fixed prompts, the base model refuses <b>1</b> and the adapter <b>7</b>",
)
SCORED += (
    '">ARC-Easy</th><td role="cell" class="n">300</td><td role="cell" class="n">60.0 % (54.4 to 65.4)</td>',
    "-8.0 points (-12.0 to -4.1), p 0.000",
    "with the chat template, by lm-eval 0.4.13",
)
LIKE = ("Resembles your data", "38 rows with an answer", "2.500", "90.5", ": not audited.", "do not count")


@pytest.fixture
def people(site) -> People:
    return People.of(site)


def trained(site, people, provider, tmp_path) -> str:
    data = people.ann.upload(CHAT, name="chat.jsonl").json()["sha256"]
    job = people.ann.submit(datasets=[{"path": f"sha256:{data}"}], val_set_size=0.8)["id"]
    machine = Machine.launched(site, provider)
    machine.start()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10).status_code == 204
    return job


def finished(site, job: str, report: dict = REPORT) -> Evaluation:
    """As its job leaves it behind."""
    with site.app.context.uow() as tx:
        evaluation = tx.evaluations.get(job)
        assert evaluation is not None
        evaluation.report, evaluation.answers_sha256, evaluation.finished_at = report, "b" * 64, 9.0
        tx.evaluations.finish(evaluation, [answers_of(job, n, base="canary of the base") for n in range(3)])
    return evaluation


def test_a_form_starts_an_evaluation_and_its_page_shows_the_report(site, people, provider, tmp_path):
    """Guard: the answers are for a blind comparison, so no page shows them with the name of a model."""
    job = trained(site, people, provider, tmp_path)
    log_in(site, people.ann)
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert f'action="/jobs/{job}/evaluate"' in page
    assert '<input type="checkbox" name="benchmarks" value="gsm8k"><span>GSM8K, 200 items</span>' in page
    assert "not known yet whether this adapter is better" in page
    made = site.client.post(f"/jobs/{job}/evaluate", data=FORM, headers=ORIGIN)
    assert made.status_code == 303
    ident = made.headers["location"].rpartition("/")[2]
    settings = people.ann.get(f"/jobs/{ident}").json()["spec"]["evaluation"]
    assert (settings["max_prompts"], settings.get("judge")) == (40, None)
    made = site.client.post(f"/jobs/{job}/evaluate", data=FORM | {"judge": "org/judge"}, headers=ORIGIN)
    spec = people.ann.get(f"/jobs/{made.headers['location'].rpartition('/')[2]}").json()["spec"]
    assert spec["evaluation"]["judge"]["model"] == "org/judge"
    events = site.client.get(f"/jobs/{job}", headers=HTML).text
    assert f'<b>evaluation queued</b> as <a href="/jobs/{ident}">' in events
    own = site.client.get(f"/jobs/{ident}", headers=HTML).text
    assert "The report is written once" in own
    assert f"trainhop evaluate {job}" in own
    assert f'href="/submit?clone={ident}"' not in own
    assert f'action="/jobs/{ident}/evaluate"' not in own
    finished(site, ident)
    own = site.client.get(f"/jobs/{ident}", headers=HTML).text
    for words in (
        "40 prompts, 3 with equal answers",
        "25 %",
        "+0.310",
        "forgotten general text &lt;b&gt;",
        "were cut",
        *LIKE,
        *SCORED,
    ):
        assert words in own, words
    assert "canary" not in own
    newer = ("similarity", "instructions", "harmless", "fixed_sha256", "tasks", "benchmarks")
    finished(site, ident, {name: value for name, value in REPORT.items() if name not in newer})
    older = site.client.get(f"/jobs/{ident}", headers=HTML).text
    assert "25 %" in older, "the report of an evaluation by an earlier version"
    assert not any(words in older for words in (*LIKE, *SCORED))
    page = site.client.get(f"/jobs/{job}", headers=HTML).text
    for words in (f'href="/jobs/{ident}"', "40 prompts", "1 veto", "1 warning"):
        assert words in page, words
    assert "Clones:" not in page


def test_a_form_that_cannot_be_evaluated_says_why(site, people):
    log_in(site, people.ann)
    job = people.ann.submit()["id"]
    assert f'action="/jobs/{job}/evaluate"' not in site.client.get(f"/jobs/{job}", headers=HTML).text
    refused = site.client.post(f"/jobs/{job}/evaluate", data=FORM, headers=ORIGIN | HTML)
    assert (refused.status_code, "Rows of plain text have no prompts" in refused.text) == (422, True)
    data = people.ann.upload(CHAT, name="chat.jsonl").json()["sha256"]
    chat = {"datasets": [{"path": f"sha256:{data}"}], "val_set_size": 0.8}
    followed = people.ann.submit(**chat, evaluate={"max_prompts": 31, "judge": "org/judge"})["id"]
    waits = site.client.get(f"/jobs/{followed}", headers=HTML).text
    assert "An evaluation follows when this job is done." in waits
    for words in ("max_prompts: 31", "model: org/judge"):
        assert words in waits, "the job as YAML can be submitted again"
    assert "prompt_version" not in waits
    asked = FORM | {"benchmarks": ["arc_easy", "gsm8k"]}
    refused = site.client.post(f"/jobs/{people.ann.submit(**chat)['id']}/evaluate", data=asked, headers=ORIGIN | HTML)
    assert (refused.status_code, "arc_easy: allenai/ai2_arc cannot be downloaded" in refused.text) == (422, True)
    bad = site.client.post(f"/jobs/{job}/evaluate", data=FORM | {"max_prompts": "0"}, headers=ORIGIN | HTML)
    assert bad.status_code == 422


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_the_report_is_accessible_and_fits(show, visit, tmp_path, scheme, width):
    people = People(admin=show.api.admin, ann=show.api.admin, bob=show.api.admin)
    job = trained(show.api, people, show.provider, tmp_path)
    ident = show.api.admin.post(f"/jobs/{job}:evaluate", {"max_prompts": 40}).json()["id"]
    finished(show.api, ident)
    page = visit(show.link(), scheme=scheme, width=width, bypass_csp=True)
    for path in (f"/jobs/{job}", f"/jobs/{ident}"):
        page.goto(show.url + path)
        assert _axe(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
