"""What programs read: the schema that editors check job files with, and the list of pages for language models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.docs import meanings
from worker.shared.job_spec import JobSpec

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
MEANINGS: dict[str, Mapping[str, str]] = {
    "DatasetSpec": meanings.DATASET_KEYS,
    "CheckpointSpec": meanings.CHECKPOINT_KEYS,
    "EvaluationSpec": meanings.EVALUATION_KEYS,
    "PlacementSpec": meanings.PLACEMENT_KEYS,
    "ScheduleSettings": meanings.SCHEDULE_KEYS,
}
SHORT_FORMS = ("BenchmarkSpec", "JudgeSpec")
"""Settings that may be written as a name alone."""
MAX_LINE = 180
LINES = {
    "api.md": "Every operation of the REST interface, with its callers.",
    "architecture.md": "Packages, layers, state machines, and the reasons for the design.",
    "cli.md": "Every command with its arguments and options.",
    "contributing.md": "How to set up, the rules, and the files that each kind of addition touches.",
    "glossary.md": "The terms, with one sentence each.",
    "job-file.md": "Every key of a job file with its type, limits, default and meaning.",
    "map.md": "The first line of every module.",
    "operations.md": "How to run a server: deployment, members, backups, sharing, and what can go wrong.",
    "quickstart.md": "The first runs, from installation to an adapter.",
}
"""Lines of pages that begin with a table or with steps."""


def job_schema() -> str:
    """The JSON Schema of the job file, with the meaning of every key."""
    schema = JobSpec.model_json_schema()
    _explain(schema, meanings.JOB_KEYS)
    for name, words in MEANINGS.items():
        _explain(schema["$defs"][name], words)
    for name in SHORT_FORMS:
        schema["$defs"][name] = {"anyOf": [{"type": "string"}, schema["$defs"][name]]}
    schema["properties"]["deadline"]["anyOf"].append({"type": "string"})  # as a time with a zone
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Trainhop job file"}
    return (
        json.dumps(head | {key: schema[key] for key in schema if key != "title"}, indent=1, ensure_ascii=False) + "\n"
    )


def _explain(schema: dict[str, Any], words: Mapping[str, str]) -> None:
    for key, value in schema["properties"].items():
        value.pop("title", None)
        if key in words:
            value["description"] = _plain(words[key])


def _plain(text: str) -> str:
    """Without links, which lead nowhere in an editor."""
    return re.sub(r" ?See \[[^]]*]\([^)]*\)\.|\[([^]]*)]\([^)]*\)", r"\1", text).strip()


def llms() -> str:
    """All pages of the site's menu with one line each."""
    site = yaml.safe_load((ROOT / ".ci" / "mkdocs.yml").read_text())
    parts = [f"# {site['site_name']}\n\n> {site['site_description']}"]
    for section in site["nav"]:
        for title, entries in section.items():
            lines = [f"- [{name}]({_address(path)}): {_line(path)}" for each in entries for name, path in each.items()]
            parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _address(path: str) -> str:
    return "./" if path == "index.md" else f"{path.removesuffix('.md')}/"


def _line(path: str) -> str:
    """The first sentence of the page. A page without one is an error."""
    if path in LINES:
        return LINES[path]
    body = re.sub(r"<!--.*?-->", "", (DOCS / path).read_text(), flags=re.DOTALL)
    paragraphs = [part.strip() for part in body.split("\n\n")]
    first = next(part for part in paragraphs if re.match(r"[A-Za-z`*\[]", part))
    found = re.match(r"(.+?\.)(?=\s|$)", " ".join(re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", first).split()))
    if found is None or len(found[1]) > MAX_LINE:
        raise ValueError(f"docs/{path} begins with no short sentence; add its line to LINES")
    return found[1]
