"""The schema of the job file takes what the server takes, and finds common mistakes. The list of pages is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from orchestrator.entrypoints.cli.main import app
from tests.docs import editors, snippets
from tests.helpers.page_server import page_server
from trainhop.job_file import SCHEMA, SCHEMA_PATH
from worker.shared.job_spec import JobSpec

EXAMPLES = {path.name: path.read_text() for path in sorted((editors.ROOT / "examples").glob("*.yaml"))}
EXAMPLES |= {
    f"{page.name}-{number}": text
    for page in snippets.PAGES
    for number, text in enumerate(snippets.blocks("yaml", page))
}
GOOD: dict[str, Any] = {"base_model": "org/small", "max_steps": 10, "datasets": [{"path": "rows.jsonl"}]}
BAD: list[dict[str, Any]] = [
    {"learning_rat": 1e-4},
    {"learning_rate": "fast"},
    {"learning_rate": -1},
    {"lora_r": 0},
    {"lora_r": 1.5},
    {"adapter": "full"},
    {"rl": "ppo"},
    {"datasets": []},
    {"datasets": "rows.jsonl"},
    {"datasets": [{"type": "text"}]},
    {"datasets": [{"path": "rows.jsonl", "typ": "text"}]},
    {"datasets": [{"path": "rows.jsonl", "type": "sharegpt5"}]},
    {"checkpoint": {"keep": 0}},
    {"placement": {"provider": "kaggle"}},
    {"evaluate": {"max_prompts": 0}},
    {"lr_scheduler": "zigzag"},
    {"base_model": 7},
]


def faults(job: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(job)]


def test_the_schema_is_one() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    unexplained = [key for key, value in schema["properties"].items() if not value.get("description")]
    assert unexplained == []
    assert not re.search(r"]\(", SCHEMA.read_text())


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in EXAMPLES.items()])
def test_a_job_file_of_ours_is_valid(text: str) -> None:
    job = yaml.safe_load(text)
    JobSpec.model_validate(job)
    assert faults(job) == []


@pytest.mark.parametrize("change", BAD, ids=lambda change: json.dumps(change)[:40])
def test_a_mistake_is_found(change: dict[str, Any]) -> None:
    """Guard: a schema that allows anything would be as good as none."""
    assert faults(GOOD) == []
    with pytest.raises(ValidationError):
        JobSpec.model_validate(GOOD | change)
    assert faults(GOOD | change)


SHORT = [
    {"deadline": "2030-01-01T00:00:00Z"},
    {"evaluate": {"benchmarks": ["gsm8k"], "judge": "org/judge"}},
    {"evaluate": {"benchmarks": [{"name": "gsm8k"}], "judge": {"model": "org/judge"}}},
]


@pytest.mark.parametrize("change", SHORT, ids=["deadline", "names", "keys"])
def test_a_short_form_is_valid(change: dict[str, Any]) -> None:
    """Guard: the model's own schema does not know what its validators translate."""
    JobSpec.model_validate(GOOD | change)
    assert faults(GOOD | change) == []


def test_server_and_command_line_have_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    printed = CliRunner().invoke(app, ["schema"]).stdout
    assert json.loads(printed) == json.loads(SCHEMA.read_text())
    with page_server(tmp_path) as server:
        answer = server.client.get(SCHEMA_PATH)  # without a token: an editor has none
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/schema+json")
        assert answer.json() == json.loads(printed)


def test_the_list_has_every_page_of_the_menu() -> None:
    lines = re.findall(r"^- \[[^]]+]\(([^)]+)/\): (.+\.)$", editors.llms(), re.MULTILINE)
    menu = re.findall(r": ([\w/-]+)\.md$", (editors.ROOT / ".ci" / "mkdocs.yml").read_text(), re.MULTILINE)
    assert [path for path, _ in lines] == ["." if path == "index" else path for path in menu]
    assert all(len(line) < 200 for _, line in lines)
