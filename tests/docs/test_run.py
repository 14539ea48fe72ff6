"""Every command and snippet of README and docs runs, page by page and in the order of the page.

What cannot run here is listed in `not_run`, with the reason. What is neither run nor listed fails.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs import snippets
from tests.docs.not_run import NOT_RUN
from tests.docs.reader import HUB_TOKEN, SERVE, Reader, Services, services
from worker.shared.checkpoint_file import sha256_file

Prepare = Callable[[Reader, str], str]
"""Brings about what a command needs, and puts real names in the place of its placeholders."""

SHARED = {
    "docs/audits.md": "README.md",
    "docs/compare-jobs.md": "docs/operations.md",
    "docs/models.md": "README.md",
    "docs/quickstart.md": "README.md",
    "docs/use-an-adapter.md": "README.md",
    "docs/providers/drive.md": "docs/providers/colab.md",
    "docs/providers/kaggle.md": "docs/providers/colab.md",
    "examples/README.md": "docs/providers/colab.md",
}
"""Pages whose reader goes on where that of another page stopped; what was typed there is not typed again."""
METHODS = "docs/methods"
"""The pages of this folder have one reader."""
NAMES = {
    "docs/audits.md": {"SHA256": sha256_file(snippets.ROOT / "examples" / "trail-guide.jsonl")},
    "docs/models.md": {"JOB": "trail-guide"},
    "docs/use-an-adapter.md": {"JOB": "trail-guide"},
    "README.md": {"YOUR_NAME": "alice"},
    "docs/quickstart.md": {"YOUR_NAME": "alice", "JOB": "trail-guide", "--from 120": "--from 48"},
    "docs/operations.md": {"NAME": "grace", "URL": "json://127.0.0.1:9/hook"},
    "docs/providers/colab.md": {"NAME": "this-computer"},
    "docs/providers/kaggle.md": {"YOUR_NAME": "alice", "MEMBER": "bob", "THEIR_NAME": "bob"},
}
"""Placeholders that a page's reader replaces, everywhere on the page."""
TYPED = {"trainhop hub login": HUB_TOKEN, "trainhop rm JOB": "y\n"}
"""What a command asks for."""
PROGRAMS = ("trainhop", "make", "python", "bash", "docker", "pip", "git")


def _of_clone(reader: Reader, command: str) -> str:
    """The clone of the command before has ended."""
    (clone,) = [printed for typed, printed in reader.printed.items() if typed.startswith("trainhop clone")]
    job = clone.split()[0]
    reader.type(f"trainhop cancel {job}")
    reader.type(f"trainhop watch {job} || true")
    return command.replace("JOB", job)


def _of_folder(reader: Reader, command: str) -> str:
    return command.replace("/srv/", f"{reader.folder}/srv/")


def _of_new_job(reader: Reader, command: str) -> str:
    """A job waits."""
    return command.replace("JOB", reader.type("trainhop submit examples/demo.yaml --set max_steps=2").split()[0])


def _of_two_jobs(reader: Reader, command: str) -> str:
    """Two jobs wait."""
    return _of_new_job(reader, command).replace("ANOTHER", _of_new_job(reader, "JOB"))


def _of_drive(reader: Reader, command: str) -> str:
    """A Drive is in use."""
    reader.type("trainhop store use drive --authorized-user user.json")
    return command if "JOB" not in command else _of_new_job(reader, command)


def _of_shared(reader: Reader, command: str) -> str:
    """The job that was shared by the command before, and the id of its link."""
    job = next(typed.split()[2] for typed in reader.printed if typed.startswith("trainhop share"))
    (link,) = json.loads(reader.type(f"trainhop share {job} --ls --json"))
    return command.replace("JOB", job).replace("LINK", link["id"])


def _of_invited(reader: Reader, command: str) -> str:
    """Bob is a member."""
    reader.type("trainhop members add bob")
    return command


def _account_of(reader: Reader, owner: str) -> str:
    accounts = json.loads(reader.type("trainhop accounts ls --json"))
    found = next(a["name"] for a in accounts if a["provider"] == "kaggle" and a["config"].get("username") == owner)
    return shlex.quote(found)


def _of_bob(reader: Reader, command: str) -> str:
    """Bob types, with a token of his own."""
    token = json.loads(reader.type("trainhop tokens add bob --json"))["secret"]
    return f"TRAINHOP_TOKEN={token} " + command.replace("NAME", _account_of(reader, "bob"))


def _of_alice(reader: Reader, command: str) -> str:
    return command.replace("NAME", _account_of(reader, "alice"))


PREPARE: dict[tuple[str, str], Prepare] = {
    ("docs/quickstart.md", "trainhop rm JOB"): _of_clone,
    ("docs/compare-jobs.md", "trainhop diff JOB ANOTHER"): _of_two_jobs,
    ("docs/compare-jobs.md", 'trainhop note JOB "half the learning rate is better"'): _of_new_job,
    ("docs/compare-jobs.md", "trainhop note JOB"): _of_new_job,
    ("docs/compare-jobs.md", "trainhop tag JOB best night"): _of_new_job,
    ("docs/operations.md", "trainhop up --data-dir /srv/trainhop"): _of_folder,
    ("docs/operations.md", "trainhop backup trainhop.tar --data-dir /srv/trainhop"): _of_folder,
    ("docs/operations.md", "trainhop restore trainhop.tar --data-dir /srv/restored"): _of_folder,
    ("docs/operations.md", "trainhop doctor --drive"): _of_drive,
    ("docs/operations.md", "trainhop share JOB --days 30"): _of_new_job,
    ("docs/operations.md", "trainhop share JOB --ls"): _of_shared,
    ("docs/operations.md", "trainhop share JOB --revoke LINK"): _of_shared,
    ("docs/operations.md", "trainhop share JOB --out night-train.html --samples"): _of_shared,
    ("docs/providers/colab.md", "trainhop notebook JOB"): _of_new_job,
    ("docs/providers/colab.md", "trainhop notebook JOB --drive"): _of_drive,
    (
        "docs/providers/kaggle.md",
        "trainhop accounts add kaggle --owner MEMBER --username THEIR_NAME --token-file F",
    ): _of_invited,
    ("docs/providers/kaggle.md", "trainhop accounts consent NAME"): _of_bob,
    ("docs/providers/kaggle.md", "trainhop accounts check NAME"): _of_alice,
    ("docs/providers/kaggle.md", "trainhop accounts change NAME --set accelerator=none"): _of_alice,
    ("docs/providers/kaggle.md", "trainhop accounts change NAME --unset accelerator"): _of_alice,
}
"""Commands that need more than what stands above them on their page."""


def _name(page: Path) -> str:
    return page.relative_to(snippets.ROOT).as_posix()


PAGES = {_name(page): page for page in snippets.PAGES if any(kind != "text" for kind, _ in snippets.all_blocks(page))}


def _reader_of(page: str) -> str:
    return METHODS if page.startswith(METHODS) else SHARED.get(page, page)


ORDER = sorted(PAGES, key=lambda name: (_reader_of(name), name in SHARED))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="module")
def readers(behind: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Reader]]:
    folder, made = tmp_path_factory.mktemp("readers"), dict[str, Reader]()

    def reader(page: str) -> Reader:
        name = _reader_of(page)
        if name not in made:
            for other in made.values():
                other.stop()
            made[name] = Reader(folder / name.replace("/", "-"), behind)
        return made[name]

    yield reader
    for each in made.values():
        each.stop()


@pytest.mark.parametrize("page", ORDER)
def test_what_a_page_says_runs(page: str, readers: Callable[[str], Reader]) -> None:
    reader = readers(page)
    for language, text in snippets.all_blocks(PAGES[page]):
        RUN[language](reader, page, text)


def _run_commands(reader: Reader, page: str, text: str) -> None:
    for line in snippets.command_lines(text):
        if line not in NOT_RUN:
            _run_command(reader, page, line)


def _run_command(reader: Reader, page: str, line: str) -> None:
    if SERVE not in line:
        _served(reader)
    command = PREPARE.get((page, line), _as_it_stands)(reader, line)
    for placeholder, name in NAMES.get(page, {}).items():
        command = re.sub(rf"(?<![\w-]){re.escape(placeholder)}(?![\w-])", name, command)
    if command in reader.read:
        return
    reader.read.add(command)
    if SERVE in command:
        reader.serve(command)
    else:
        reader.type(command, TYPED.get(line, ""))


def _as_it_stands(reader: Reader, command: str) -> str:
    del reader
    return command


def _served(reader: Reader) -> None:
    """On a page that starts no server one runs, on which nothing is trained."""
    if not reader.is_served:
        reader.serve(f"{SERVE} --slots 0")


def _run_yaml(reader: Reader, page: str, text: str) -> None:
    """A job file is checked as a submit would, its data and its model with it."""
    del page
    _served(reader)
    (reader.folder / "job.yaml").write_text(text)
    reader.type("trainhop plan job.yaml")


def _run_python(reader: Reader, page: str, text: str) -> None:
    """What a notebook runs trains a job that waits, with a code of its own.

    Programs of the client are run by tests/trainhop/test_docs.py.
    """
    if "notebook.run" not in text:
        return
    _served(reader)
    reader.type("trainhop store use local")
    notebook = _of_new_job(reader, "trainhop notebook JOB --out snippet.ipynb")
    reader.type(notebook)
    code = re.search(r"thc_[\w-]+", (reader.folder / "snippet.ipynb").read_text())
    assert code
    program = text.replace("CODE", code[0]).replace("https://trainhop.example", reader.url)
    (reader.folder / "snippet.py").write_text(program)
    printed = reader.type("python snippet.py", HF_ENDPOINT=reader.services.hub.endpoint)
    job = json.loads(reader.type(f"trainhop show {notebook.split()[2]} --json"))
    assert job["state"] == "succeeded", f"{page}: {job}\n{printed}"


RUN: dict[str, Callable[[Reader, str, str], None]] = {
    **dict.fromkeys(snippets.COMMANDS, _run_commands),
    "yaml": _run_yaml,
    "python": _run_python,
    "json": lambda _reader, _page, text: json.loads(text),
    "text": lambda *_: None,
}


def _lines() -> list[tuple[str, str]]:
    return [
        (name, line)
        for name, page in PAGES.items()
        for language, text in snippets.all_blocks(page)
        if language in snippets.COMMANDS
        for line in snippets.command_lines(text)
    ]


def test_every_block_has_a_language_that_is_run() -> None:
    found = {(name, language) for name, page in PAGES.items() for language, _ in snippets.all_blocks(page)}
    assert {language for _, language in found} <= set(snippets.LANGUAGES), found
    assert sum(page.read_text().count("```") for page in PAGES.values()) == 2 * sum(
        len(snippets.all_blocks(page)) for page in PAGES.values()
    )


def test_every_line_of_a_block_of_commands_is_a_command() -> None:
    """A drawing there would be run as one."""
    strange = [(name, line) for name, line in _lines() if not re.match(rf"([A-Z_]+=\S+ )*({'|'.join(PROGRAMS)})", line)]
    assert strange == []


def test_what_is_listed_as_not_run_is_still_written_somewhere() -> None:
    written = {line for _, line in _lines()}
    assert NOT_RUN.keys() - written == set()
    assert {(page, line) for page, line in PREPARE} <= set(_lines())


def test_a_target_that_is_not_run_exists() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (snippets.ROOT / "Makefile").read_text(), re.MULTILINE)
    made = {line.split()[1] for line in NOT_RUN if line.startswith("make ")}
    assert made
    assert made <= set(targets)


def test_a_test_that_runs_what_is_not_run_here_exists() -> None:
    named = set(re.findall(r"tests/[\w/]+\.py", " ".join(NOT_RUN.values())))
    assert named
    assert not [name for name in named if not (snippets.ROOT / name).is_file()]
