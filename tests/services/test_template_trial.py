"""A chat template of the job's own: tried before the job is queued, and refused or explained in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import InvalidError
from orchestrator.services import jobs, template_trial
from orchestrator.services.template_trial import refuse_bad_template, tried
from tests.helpers.world import World
from trainhop.errors import Error
from trainhop.job_file import send_data
from worker.shared.checkpoint_file import OtherRunError, check_recipe
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe
from worker.shared.own_template import CHATML, MAX_TEMPLATE

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
EACH = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
GOOD = EACH + "{% if add_generation_prompt %}[assistant] {% endif %}"


def spec_with(template: str | None, **keys: object) -> JobSpec:
    given = {"base_model": "org/model", "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 2} | keys
    return JobSpec.model_validate(given | ({"chat_template_jinja": template} if template else {}))


@pytest.mark.parametrize(
    "template", [GOOD, CHATML, GOOD.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")]
)
def test_a_good_template_has_no_notes(template):
    assert tried({"template": template}) == {"notes": []}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("line one\n{% for m in messages %}{{ m.content }}", "line 2: Unexpected end of template"),
        ("{% nothing %}", "line 1: Encountered unknown tag 'nothing'"),
        ("{{ raise_exception('never') }}", "it refuses a conversation of user and assistant (never)"),
        ("{{ messages[9].content.x }}", "it refuses a conversation of user and assistant"),
        ("{{ ''.__class__.__mro__ }}" + GOOD, "it refuses a conversation"),
        ("{{ messages[0].content }}", "it leaves out turn 2 (assistant)"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "it leaves out turn 2 (assistant)",
        ),
        (GOOD + "{{ ['a', 'b'] | random }}", "it draws random text"),
        (GOOD + "{{ lipsum() }}", "it draws random text"),
        ("{% for n in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "it writes more than 1,048,576 characters"),
    ],
)
def test_a_bad_template_is_refused_in_words(template, words):
    """Guards: without `_refuse_left_out` the third from last was accepted; without `_TemplateFault` for a syntax error
    its line was not said."""
    assert words in tried({"template": template})["fault"]


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (EACH, "writes nothing for add_generation_prompt"),
        (EACH + "{% if add_generation_prompt %}<answer>{% endif %}", "begins an answer in another way"),
        (
            "{% for m in messages %}{% if loop.last %}<last>{% endif %}[{{ m.role }}] {{ m.content }}{% endfor %}",
            "writes earlier turns in another way when more turns follow",
        ),
        (GOOD.replace("messages %}", "messages if m.role != 'system' %}"), "has no place for a system turn"),
    ],
)
def test_what_a_template_does_unexpectedly_is_said(template, note):
    assert any(note in said for said in tried({"template": template})["notes"])


def test_a_template_without_an_end_is_stopped():
    """In the process with limits. Guard: in the server itself it ran for ever."""
    endless = (
        "{% set ns = namespace(n=0) %}{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(InvalidError, match="does not end: it needs more than"):
        refuse_bad_template(spec_with(endless), cpu_s=1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"chat_template": "jinja"}, "chat_template: jinja needs chat_template_jinja"),
        ({"chat_template": "chatml", "chat_template_jinja": GOOD}, "exclude each other"),
        ({"chat_template": "llama3"}, "chatml"),
        ({"chat_template_jinja": "x" * (MAX_TEMPLATE + 1)}, "must have at most 32,768 characters"),
        ({"chat_template_jinja": " "}, "must not be empty"),
    ],
)
def test_keys_that_make_no_template_are_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        spec_with(None, **keys)


def test_a_checkpoint_of_another_template_is_refused_in_words():
    """Guard: without the hash in the recipe, a server found out only from a session. An older checkpoint has none."""
    own, usual = Recipe.of(spec_with(GOOD)), Recipe.of(spec_with(None))
    with pytest.raises(OtherRunError, match="chat_template_sha256"):
        check_recipe(own, usual)
    older = Recipe.model_validate(usual.model_dump(exclude={"chat_template_sha256"}))
    assert check_recipe(usual, older) is None
    assert not {"chat_template", "chat_template_jinja"} & spec_with(None).model_dump(mode="json").keys()


@only_sqlite
def test_a_job_is_refused_or_told_when_it_is_submitted(world: World) -> None:
    """Guard: without the call in `resolve` the first session found it."""
    data = {"datasets": [{"path": f"sha256:{world.dataset}"}]}
    with pytest.raises(InvalidError, match="The chat template cannot be used: it leaves out turn 2") as refused:
        jobs.submit(world.ctx, world.actors["alice"], spec_with("{{ messages[0].content }}", **data))
    assert refused.value.problems[0][0] == "/chat_template_jinja"
    told = jobs.submit(world.ctx, world.actors["alice"], spec_with(EACH, **data))
    assert any("add_generation_prompt" in note for note in told.notes)
    assert told.job.spec["chat_template_jinja"] == EACH
    assert template_trial._answer.cache_info().currsize


def test_the_command_line_sends_the_text_of_a_template(tmp_path: Path) -> None:
    """Guard: with the path sent, the server tried to write rows with it."""
    (tmp_path / "own.jinja").write_text(GOOD)
    spec = {"datasets": [{"path": "org/rows"}], "chat_template_jinja": "own.jinja"}
    nobody: Any = None  # nothing is uploaded
    assert send_data(nobody, "job.yaml", spec, folder=tmp_path)["chat_template_jinja"] == GOOD
    assert send_data(nobody, "job.yaml", spec | {"chat_template_jinja": GOOD})["chat_template_jinja"] == GOOD
    with pytest.raises(Error, match=r"own.jinja: the file is outside"):
        send_data(nobody, "job.yaml", spec, folder=tmp_path, may_send=lambda _name, _file: False)
    with pytest.raises(Error, match=r"other.jinja: the file does not exist"):
        send_data(nobody, "job.yaml", spec | {"chat_template_jinja": "other.jinja"})
