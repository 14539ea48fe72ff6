"""`import trainhop` in a folder that has a worker.py and an orchestrator.py of its own, from the checkout and from a
wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.page_server import PageServer
from tests.trainhop.conftest import ROOT, TENSORS, Person
from trainhop.download import WEIGHTS
from worker.shared import wheel

NO_SERVER = "http://127.0.0.1:9"
THEIRS = "import worker, orchestrator; assert worker.whose == orchestrator.whose == 'the person', worker.__file__\n"


@pytest.fixture
def beside(mine: Path, site: Path) -> Person:
    return Person(mine, site)


def run_cell(server: str | None = None) -> str:
    """A call that ends with our package's words: without a server at once, else when the machine was looked at."""
    return (
        f"try: trainhop.notebook.run('CODE', server={server!r})\n"
        "except trainhop.notebook.NotebookError as error: print(error)\n"
    )


def test_importing_it_loads_nothing(beside: Person) -> None:
    program = "import sys; before = {*sys.modules}; import trainhop; print(*{*sys.modules} - before)"
    loaded = set(beside.python(program).split())
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"trainhop"}
    assert not loaded & {"asyncio", "http", "pathlib", "ssl", "urllib"}


def test_it_knows_its_version_and_its_names(installed: Path, mine: Path) -> None:
    program = (
        "import trainhop; print(trainhop.__version__, *(getattr(trainhop, n).__name__ for n in trainhop.__all__[:13]))"
    )
    version, *names = Person(mine, installed).python(program).split()
    assert version == wheel.metadata.version("trainhop")
    records = ["Output", "Place", "Plan", "Session", "Step"]
    assert names == ["AsyncClient", "Client", "Curve", "Dataset", "Error", "Event", "Job", "JobSpec", *records]


@pytest.mark.parametrize("first", ["", THEIRS])
def test_a_notebook_trains_with_our_worker_and_leaves_theirs(beside: Person, first: str) -> None:
    """Guards: without the finder our package was theirs; without putting back theirs was ours afterwards."""
    said = beside.python(f"{first}import trainhop\n{run_cell()}{THEIRS}{run_cell()}{THEIRS}print('still theirs')")
    assert said.count("The call needs either server= or drive=") == 2
    assert said.endswith("still theirs\n")


def test_what_was_loaded_is_not_loaded_again(beside: Person) -> None:
    """Guard: without keeping our modules each call made classes that were no longer those of the one before."""
    program = (
        "import trainhop\nfrom trainhop.own_worker import own_worker\n"
        "def ours():\n with own_worker():\n  from worker.shared.messages import JobSpec\n  return JobSpec\n"
        f"first = ours()\n{THEIRS}assert ours() is first is trainhop.JobSpec"
    )
    beside.python(program)


def test_two_threads_may_call_at_once(beside: Person) -> None:
    """Guard: without counting, the one that ended first took our package from the other."""
    program = (
        "import threading\nfrom trainhop.own_worker import own_worker\n"
        "inside, go_on = threading.Event(), threading.Event()\n"
        "def other():\n with own_worker():\n  inside.set()\n  go_on.wait()\n  import worker.shared.causes\n"
        "  print(worker.shared.causes.__name__)\n"
        "thread = threading.Thread(target=other)\nthread.start()\ninside.wait()\n"
        "with own_worker(): import worker.shared\n"
        f"go_on.set()\nthread.join()\n{THEIRS}"
    )
    assert beside.python(program) == "worker.shared.causes\n"


def test_where_nobody_else_has_the_name_nothing_changes(site: Path, tmp_path: Path) -> None:
    program = (
        "import sys, worker.shared.job_spec as one, trainhop\n"
        "assert trainhop.JobSpec is one.JobSpec\nfrom worker.shared import job_spec\nassert job_spec is one"
    )
    Person(tmp_path, site).python(program)


def test_an_old_cell_goes_on_working(site: Path, tmp_path: Path) -> None:
    """What generated notebooks and people's own cells said before `trainhop` was there."""
    old = "from worker.notebook import NotebookError, run\ntry: run('CODE')\n"
    assert "The call needs either server= or drive=" in Person(tmp_path, site).python(
        f"{old}except NotebookError as error: print(error)"
    )


def test_the_wheel_for_notebooks_works_where_it_lies(mine: Path, tmp_path: Path) -> None:
    """As a cell uses it: a zip in front of the path, which then goes to its end."""
    packed = tmp_path / wheel.build().name
    packed.write_bytes(wheel.build().data)
    cell = f"import sys; sys.path.insert(0, {str(packed)!r}); import trainhop; sys.path.append(sys.path.pop(0))\n"
    old = "import sys\n"
    old += "for name in [n for n in sys.modules if n.startswith(('worker', 'trainhop'))]: del sys.modules[name]\n"
    old += f"sys.path.insert(0, {str(packed)!r})\nfrom worker.notebook import run\nprint(run.__module__)"
    said = Person(mine, tmp_path).python(f"{cell}{run_cell(NO_SERVER)}{THEIRS}print(trainhop.__version__)\n{old}")
    assert "does not answer" in said
    assert said.split()[-2:] == [wheel.metadata.version("trainhop"), "worker.notebook"]


def test_a_client_works_there_too(mine: Path, site: Path, server: PageServer) -> None:
    program = (
        "import trainhop\nclient = trainhop.Client()\n"
        "spec = {'base_model': 'org/small', 'datasets': [{'path': 'rows.jsonl'}], 'max_steps': 10}\n"
        "print(client.jobs.submit(spec).state)\n"
        f"print(client.jobs.download_adapter('finished', 'adapter'))\n{THEIRS}"
    )
    said = Person(mine, site, server.url, server.api.admin_token).python(program)
    assert said == "queued\nadapter\n"
    assert (mine / "adapter" / WEIGHTS).read_bytes() == TENSORS


def test_the_command_starts_there_too(installed: Path, mine: Path, server: PageServer) -> None:
    """The script that pip wrote; its own folder comes first on its path, and not the current one."""
    person = Person(mine, installed, server.url, server.api.admin_token)
    assert "Usage: trainhop" in person(str(installed / "bin" / "trainhop"), "--help")
    (mine / "job.yaml").write_text("{base_model: org/small, max_steps: 10, datasets: [{path: rows.jsonl}]}")
    assert "queued" in person(str(installed / "bin" / "trainhop"), "submit", "job.yaml")


def test_an_editable_installation_finds_it(mine: Path, tmp_path: Path) -> None:
    """`pip install -e` writes one line that names the checkout."""
    build = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(tmp_path / made.stdout.split()[-1])], check=True)
    (line,) = [file.read_text().strip() for file in (tmp_path / "site").glob("*.pth")]
    assert line == str(ROOT)
    added = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import trainhop\n"
    assert "The call needs either server= or drive=" in Person(mine, tmp_path).python(added + run_cell() + THEIRS)
