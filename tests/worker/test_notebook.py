"""The parts of a notebook that need no kernel: what is shown, what is carried along, what is installed."""

from __future__ import annotations

import importlib
import io
import os
import re
import subprocess
import sys
import zipfile

import pytest

from tests.worker.wheels import have, wheel
from worker.notebook import NotebookError, session
from worker.notebook import packages as own
from worker.notebook.panel import Panel, Progress, duration
from worker.shared import wheel as bundle
from worker.shared.messages import MetricRow, Phase, Report, Ticket
from worker.shared.notebook_messages import Claimed


@pytest.fixture
def progress() -> Progress:
    ticket = Ticket(lease="lease-1", token="t", budget_s=60.0)
    claimed = Claimed(ticket=ticket, fence=1, job="job-1", name="<img src=x>", step=10, total_steps=40)
    return Progress.of(claimed, "Tesla T4")


def _report(step: int, loss: float, **more) -> Report:
    rows = (MetricRow(step=step, values={"loss": loss}),)
    return Report(lease="lease-1", fence=1, seq=step, step=step, phase=Phase.TRAIN, metrics=rows, **more)


def test_progress_is_a_bar_with_loss_and_time_left(progress: Progress) -> None:
    """Guard: without escaping, the job's name became an element of the page."""
    progress.take(_report(20, 2.5))
    progress.take(_report(30, 1.25, seconds_per_step=60.0, seconds_left=3600.0))
    shown = progress._repr_html_()
    assert "width:75.0%" in shown
    assert "<img" not in shown
    assert "<polyline" in shown
    assert "step 30 of 40 · loss 1.2500 · 10 min left · this session ends by" in repr(progress)


def test_what_is_read_again_tomorrow_is_still_true(progress: Progress) -> None:
    progress.take(_report(20, 2.5, seconds_left=60.0))
    assert re.search(r"training, as of \d\d:\d\d UTC on Tesla T4$", repr(progress))
    progress.last_word = "The time is up."
    assert repr(progress).endswith("The time is up.")
    assert "session ends" not in repr(progress)


def test_where_nothing_can_be_drawn_lines_are_printed_now_and_then(progress: Progress, capsys) -> None:
    panel = Panel(progress)
    for step in range(11, 30):
        progress.take(_report(step, 1.0))
        panel.show()
    progress.last_word = "Done."
    panel.show(last=True)
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[-1].endswith("Done.")


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0, 59, 61, 3599, 3700)] == ["0 s", "59 s", "1 min", "59 min", "1 h 01 min"]


def test_the_wheel_holds_worker_and_python_side_and_pinned_requirements() -> None:
    wheel = bundle.build()
    assert bundle.build.__wrapped__().sha256 == wheel.sha256, "the same sources give the same bytes"
    with zipfile.ZipFile(io.BytesIO(wheel.data)) as archive:
        names = archive.namelist()
        described = archive.read(f"trainhop_worker-{wheel.name.split('-')[1]}.dist-info/METADATA").decode()
    assert {name.split("/")[0] for name in names} == {"trainhop", "worker", names[-1].split("/")[0]}
    assert "worker/training/train.py" in names
    assert not any(name.startswith(("worker/export/", "worker/chat/")) for name in names)
    with zipfile.ZipFile(io.BytesIO(bundle.build(adapters=True).data)) as archive:
        assert set(archive.namelist()) - set(names) >= {"worker/export/__main__.py", "worker/export/run.py"}
    assert "Requires-Dist: pydantic" in described
    assert 'Requires-Dist: trl==1.15.0; extra == "train"' in described
    assert not re.search(r"torch|typer|sqlalchemy", described)


def test_a_worker_runs_out_of_its_wheel(tmp_path) -> None:
    """Guards: with the fixed prompts, or the tasks of benchmarks, read as files, no evaluation could be made in a
    notebook."""
    wheel = bundle.build()
    (tmp_path / wheel.name).write_bytes(wheel.data)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / wheel.name)!r})\n"
        "import worker.agent.run, worker.shared.wheel, worker.notebook.session\n"
        "from worker.shared import benchmark_list, passages, tasks\n"
        "assert all(len(each.task_sha256) == 64 for each in benchmark_list.BENCHMARKS.values())\n"
        "assert (len(tasks.fixed_prompts()), len(passages.passages()), len(tasks.fixed_sha256())) == (60, 100, 64)\n"
        "print(worker.__file__, worker.shared.wheel.requirements('train'))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(tmp_path))
    assert "transformers==" in said


def test_a_refusal_is_one_sentence_without_a_traceback() -> None:
    assert NotebookError("the code was used")._render_traceback_() == ["The code was used"]


@pytest.fixture
def image(tmp_path, monkeypatch):
    """An image whose version of a package is not the worker's, and an index that has that one."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "shop"), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    have(tmp_path / "image", "shared_thing", "1.0")
    wheel(tmp_path / "shop", "shared_thing", "2.0")
    wheel(tmp_path / "shop", "light_thing", "1.0")
    monkeypatch.syspath_prepend(tmp_path / "image")
    yield tmp_path
    for name in ("shared_thing", "light_thing"):
        sys.modules.pop(name, None)


def test_the_worker_has_its_packages_and_the_kernel_its_own(image, monkeypatch) -> None:
    """Guard: installed into the kernel's environment, the owner's next cell could not import datasets any more."""
    wanted = ["shared_thing==2.0"]
    monkeypatch.setenv("PYTHONPATH", str(image / "image"))
    before = [*sys.path]
    assert own.needed(wanted) == ["shared_thing"]
    folder = own.worker_folder(wanted)
    assert own.needed(wanted) == []
    assert own.worker_folder(wanted) == folder
    assert folder.is_relative_to(image / "cache" / "trainhop" / "packages")
    code = "import shared_thing; print(shared_thing.__version__)"
    given = session.environment(folder)
    assert given["WORKER_PACKAGES"] == str(folder)
    said = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stdout
    assert said == "2.0\n"
    assert importlib.import_module("shared_thing").__version__ == "1.0"
    assert sys.path == before


def test_what_the_cell_itself_lacks_is_borrowed_for_as_long_as_it_runs(image) -> None:
    """Guard: in front of the path it would have taken the place of the person's own packages."""
    before = [*sys.path]
    with own.borrowed(["light_thing>=1", "shared_thing>=1"]):
        assert importlib.import_module("light_thing").__version__ == "1.0"
        assert sys.path[:-1] == before
        code = "import light_thing"
        subprocess.run([sys.executable, "-c", code], env=session.environment(None), check=True)
    assert sys.path == before
    assert "PYTHONPATH" not in os.environ


def test_a_kernel_with_too_old_a_package_is_told_what_to_do(image) -> None:
    """It is the person's to change."""
    with (
        pytest.raises(NotebookError, match=r"shared_thing 1\.0 is too old. Run `pip install -U shared_thing`"),
        own.borrowed(["shared_thing>=2"]),
    ):
        pass


def test_what_cannot_be_brought_is_one_sentence(image) -> None:
    with pytest.raises(NotebookError, match=r"^The worker's packages could not be installed: pip says: "):
        own.worker_folder(["no-such-thing==1.0"])


def test_the_cell_itself_needs_no_more_than_an_image_has() -> None:
    """Guard: one import of the runner made every kernel lack stamina, which no image ships."""
    code = (
        "import sys\n"
        "for name in ('stamina', 'tenacity', 'safetensors', 'numpy', 'torch'): sys.modules[name] = None\n"
        "import worker.notebook.session, worker.notebook.http_connection, worker.notebook.mailbox_connection"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
