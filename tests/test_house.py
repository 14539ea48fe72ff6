"""The house rules that no linter knows: what may be imported where, what README and docs promise, how long a file may
be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from orchestrator.config import Settings, variable_prefix
from tests.docs.reference import driver_schemas

ROOT = Path(__file__).parent.parent
MAX_FILE = 400
MAX_TEST_NAME = 70
MAX_PATCHES = 10


def _imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(m.partition('.')[0] for m in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_a_worker_starts_without_the_server_and_without_torch() -> None:
    """A notebook pays for every import with GPU time."""
    loaded = _imported_by("import worker.agent.run")
    assert not loaded & {"orchestrator", "sqlalchemy", "fastapi", "apscheduler", "torch", "transformers", "pyarrow"}


def test_the_domain_needs_nothing_but_python() -> None:
    loaded = _imported_by(
        "import orchestrator.domain.jobs, orchestrator.domain.accounts, "
        "orchestrator.domain.scheduling, orchestrator.domain.errors, "
        "orchestrator.domain.trust.audit_estimate, orchestrator.domain.trust.verdict"
    )
    assert not loaded & {"pydantic", "sqlalchemy", "httpx", "fastapi", "worker", "numpy"}


def test_the_server_never_loads_torch() -> None:
    assert "torch" not in _imported_by("import orchestrator.entrypoints.http.app, orchestrator.bootstrap")


def test_the_readme_and_the_docs_name_settings_that_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"TRAINHOP_([A-Z_]+)", page.read_text())}
    for_the_cli = {"TOKEN", "SERVER_URL", "CHAT_KEY"}
    for_the_tests = {"REQUIRE_ALL"}
    of_drivers = {
        f"{variable_prefix(name).removeprefix('TRAINHOP_')}{key.upper()}"
        for name, schema in driver_schemas().items()
        for key in schema.model_fields
    }
    patterns = {"NAME_KEY", "WORKSHOP_TOKENS"}
    known = {name.upper() for name in Settings.model_fields}
    assert named <= known | of_drivers | patterns | for_the_cli | for_the_tests


def test_the_container_is_handed_every_setting_that_a_server_needs() -> None:
    """Guard: with the database alone passed through, all others were set outside and never arrived."""
    ordinary, _, _ = (ROOT / "docs" / "settings.md").read_text().partition("## Command line")
    named = set(re.findall(r"^\| `(TRAINHOP_[A-Z_]+)`", ordinary, re.MULTILINE))
    set_by_the_image = {"TRAINHOP_DATA_DIR", "TRAINHOP_PORT", "TRAINHOP_HOST"}
    of_emulators = {name for name in named if name.endswith("_ENDPOINT")}
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["server"]
    assert set(service["environment"]) == named - set_by_the_image - of_emulators


def test_no_file_grows_beyond_one_room() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("orchestrator", "trainhop", "worker", "migrations", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > MAX_FILE
    }
    assert not long


def test_nothing_is_pickled() -> None:
    """No checkpoint, message or cache of ours may be able to run code when it is read."""
    forbidden = re.compile(
        r"^\s*(import pickle|from pickle|import joblib)|torch\.(save|load)\(|allow_pickle=True", re.MULTILINE
    )
    found = [
        str(path.relative_to(ROOT))
        for folder in ("orchestrator", "trainhop", "worker")
        for path in (ROOT / folder).rglob("*.py")
        if forbidden.search(path.read_text())
    ]
    assert not found


def test_a_tests_name_is_read_at_a_glance() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "orchestrator" / "testing").glob("*.py")]
        for name in re.findall(r"def (test_\w+)", path.read_text())
        if len(name) > MAX_TEST_NAME
    ]
    assert not long


def test_tests_hand_in_what_they_change() -> None:
    """A test that replaces a part behind the code's back no longer tests what runs. The few that must say why."""
    call = "." + "setattr("
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if call in line
    ]
    assert [line for line in found if not re.search(r"\)  # \w", line)] == []
    assert len(found) <= MAX_PATCHES
