"""What README and docs say exists: commands and options, job files, Python, files, generated pages."""

import ast
import functools
import importlib
import re

import pytest
import typer
import yaml

from orchestrator.entrypoints.cli.main import app as command_line
from tests.docs import reference, snippets
from worker.doctor.outcome import PROBES
from worker.shared.job_spec import JobSpec

ROOT = reference.ROOT
LINES_OF_THE_README = 120
MIN_WORDS = 3


def _of_pages(found):
    """One test for each, named after its page."""
    return [
        pytest.param(what, id=f"{page.relative_to(ROOT)}-{number}")
        for page in snippets.PAGES
        for number, what in enumerate(found(page))
    ]


@functools.cache
def _commands():
    return typer.main.get_command(command_line)


def _problem(words):
    """Why the command line does not take these words; empty if it does. Nothing is run."""
    command, rest = _commands(), list(words)
    while (parts := getattr(command, "commands", None)) and rest:
        name = rest.pop(0)
        if name in ("--help", "--version"):
            return ""
        if name not in parts:
            return f"there is no command {name}"
        command = parts[name]
    if parts:
        return "Missing command"
    try:
        command.make_context("trainhop", rest)
    except Exception as error:  # noqa: BLE001  the errors of typer's own copy of click have no public name
        return str(error)
    return ""


@pytest.mark.parametrize("words", _of_pages(snippets.commands))
def test_a_command_in_a_code_block_can_be_typed(words):
    assert _problem(words) == ""


@pytest.mark.parametrize("words", _of_pages(snippets.mentions))
def test_a_command_in_a_sentence_exists(words):
    """Its arguments may be left out there."""
    assert _problem(words) == "" or _problem(words).startswith("Missing")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["submti", "job.yaml"], "there is no command submti"),
        (["store", "use", "drive", "--client-secret", "f"], "No such option: --client-secret"),
        (["export", "JOB"], "Missing parameter: form"),
        (["priority", "JOB", "high"], "valid integer"),
    ],
)
def test_a_wrong_command_is_found(words, problem):
    assert problem in _problem(words)


@pytest.mark.parametrize("text", _of_pages(lambda page: snippets.blocks("yaml", page)))
def test_a_job_file_in_a_code_block_is_accepted(text):
    JobSpec.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", _of_pages(lambda page: snippets.blocks("python", page)))
def test_python_in_a_code_block_compiles_and_imports_what_exists(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            assert all(importlib.import_module(name.name) for name in node.names)


def test_every_file_that_a_page_names_is_there():
    named = {(page, name) for page in snippets.PAGES for name in snippets.files(page)}
    assert len(named) > 30
    assert not [f"{page.name}: {name}" for page, name in sorted(named) if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_links_of_a_page_outside_the_site_lead_to_files(name):
    """The site's own links are checked by its strict build."""
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_module_that_a_page_runs_is_there():
    """Guard: `python -m` a module that was moved fails here."""
    pattern = re.compile(r"python -m ((?:orchestrator|worker|benchmarks|tests)[\w.]*)|`(benchmarks\.\w+)")
    named = {one or other for page in snippets.PAGES for one, other in pattern.findall(page.read_text())}
    paths = {name: ROOT / name.replace(".", "/") for name in named}
    assert named
    assert not [name for name, path in paths.items() if not path.is_dir() and not path.with_suffix(".py").exists()]


def test_generated_pages_are_what_the_code_says():
    """Guard: a key, setting, command or module changed without `python -m tests.docs.reference` fails here."""
    assert reference.out_of_date(reference.pages()) == []


def test_every_package_has_its_line_in_the_architecture():
    """Guard: a package whose `__init__` says nothing was left out of the table without a word."""
    table = (reference.DOCS / "architecture.md").read_text().partition("<!-- packages -->")[2]
    table = table.partition("<!-- end of packages -->")[0]
    lines = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", table, re.MULTILINE))
    holding = {name for name, modules in reference.packages().items() if modules}
    assert len(holding) > 20
    assert {name for name in holding if len(lines.get(name, "").split()) < MIN_WORDS} == set()


def test_the_ten_probes_are_explained():
    page = (reference.DOCS / "providers" / "kaggle.md").read_text()
    table = page.partition("| probe |")[2]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == PROBES


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LINES_OF_THE_README


def test_the_words_are_in_order():
    rows = re.findall(r"^\| ([\w -]+) \|", (reference.DOCS / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert len(rows) > 40
    assert rows == sorted(rows)
