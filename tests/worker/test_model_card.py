"""The model card of an exported adapter: what the hub reads, and what a person must know."""

import yaml

from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe
from worker.shared.model_card import model_card


def _card(base_model, **more):
    given = {"base_model": base_model, "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 3, **more}
    spec = JobSpec.model_validate(given)
    text = model_card(spec, Recipe.of(spec))
    return yaml.safe_load(text.split("---\n")[1]), text


def test_the_hub_finds_the_adapter_under_its_base_model():
    for name, hub_id in (("org/small@" + "a" * 40, "org/small"), ("gpt2", "gpt2")):
        tags, text = _card(name)
        assert (tags["base_model"], tags["library_name"], tags["pipeline_tag"]) == (hub_id, "peft", "text-generation")
        assert {f"base_model:adapter:{hub_id}", "lora"} <= set(tags["tags"])
        assert "No other computer" not in text


def test_a_path_of_the_server_is_said_to_load_nowhere_else():
    """Guard: without `_ELSEWHERE` the card named a path of another computer as if the hub had it."""
    for name in ("/srv/models/small", "./small", "~/models/a", "C:\\models\\a"):
        tags, text = _card(name)
        assert "base_model" not in tags
        assert not [tag for tag in tags["tags"] if tag.startswith("base_model")]
        assert "No other computer finds it under this path" in text
        assert "`base_model_name_or_path`" in text


def test_findings_that_were_accepted_are_on_the_card():
    assert "owner accepted it: secrets, near_copies." in _card("gpt2", accept_findings=["secrets", "near_copies"])[1]
    assert "accepted" not in _card("gpt2")[1]
