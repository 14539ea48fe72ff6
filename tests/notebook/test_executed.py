"""Generated notebooks, executed by real kernels against a real server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.lab import Lab
from tests.notebook.tab import Tab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def state(server: Lab, job: str) -> str:
    return server.job(job)["state"]


def test_a_second_tab_is_refused_and_an_interrupt_hands_back_what_is_saved(server: Lab, job: Any, tab: Any) -> None:
    """A second tab with the same code changes nothing for the first one, which its person then stops."""
    ident = job(max_steps=100_000)
    first = server.post(f"/jobs/{ident}:notebook")
    training = tab(first)
    server.wait_for(lambda: server.job(ident)["step"] >= 5, "the first steps", 180, 0.1)
    second_tab = tab(first)
    assert "its session is still running" in second_tab.refused
    training.interrupt()
    said = training.said
    saved = int(re.search(r"Stopped: step (\d+) is saved and", said)[1])  # pyright: ignore[reportOptionalSubscript]

    shown = server.job(ident)
    assert (shown["state"], shown["head"]["step"]) == ("queued", saved)
    assert saved >= 5
    server.post(f"/jobs/{ident}:cancel")


def test_a_finished_notebook_shows_what_happened(server: Lab, job: Any, tab: Any) -> None:
    ident = job(max_steps=12)
    done = tab(server.post(f"/jobs/{ident}:notebook"))
    assert "step 12 of 12" in done.said
    assert re.search(r"loss \d\.\d{4}", done.said)
    assert "Succeeded: all 12 steps are complete. Download the adapter with `trainhop adapter" in done.said
    (shown,) = done.outputs
    assert "width:100.0%" in "".join(shown["data"]["text/html"])
    assert state(server, ident) == "succeeded"
    (session,) = server.get(f"/jobs/{ident}/sessions")["items"]
    assert (session["provider"], session["outcome"], session["last_step"]) == ("colab", "completed", 12)


def test_files_called_like_our_packages_are_not_in_the_way(server: Lab, job: Any, tmp_path: Path) -> None:
    """Guards: with `from worker.notebook import run` the cell got the person's file, and so did the worker's
    processes."""
    for name in ("worker", "orchestrator"):
        (tmp_path / f"{name}.py").write_text("whose = 'mine'\n")
    theirs = "import worker, orchestrator\nassert worker.whose == orchestrator.whose == 'mine'\n"
    again = f"import sys; sys.modules.pop('worker')\n{theirs}print(worker.__file__)"
    ident = job(max_steps=2)
    made = server.post(f"/jobs/{ident}:notebook")
    done = Tab(tmp_path / "beside.ipynb", made, before=theirs, after=again, forks=False)
    try:
        assert "Succeeded: all 2 steps are complete" in done.said
        assert done.said_after == str(tmp_path / "worker.py")
    finally:
        done.kill()


def test_a_notebook_of_an_earlier_version_goes_on_working(server: Lab, job: Any, tab: Any) -> None:
    """Its cell says what cells said before there was `trainhop.notebook`."""
    made = server.post(f"/jobs/{job()}:notebook")
    source = made["notebook"]["cells"][1]["source"]
    before, mark, _ = source.partition("    import trainhop\n")
    assert mark
    made["notebook"]["cells"][1]["source"] = (
        before + "    from worker.notebook import run\n    run(CODE, server=SERVER)\n"
    )
    assert "no GPU" in tab(made, COLAB_RELEASE_TAG="x", CUDA_VISIBLE_DEVICES="").refused


def test_a_runtime_that_disappears_gives_the_job_back(server: Lab, job: Any, tab: Any) -> None:
    """SIGKILL for the kernel and its worker at once, as when a machine is taken away."""
    ident = job(max_steps=100_000)
    lost = tab(server.post(f"/jobs/{ident}:notebook"))
    server.wait_for(lambda: server.job(ident)["step"] >= 3, "the first steps", 180, 0.1)
    lost.kill()
    server.wait_for(lambda: state(server, ident) == "queued", "the job's return", 180, 0.1)
    (session,) = server.get(f"/jobs/{ident}/sessions")["items"]
    assert (session["outcome"], session["detail"]) == ("lost", "no report came in time")
    server.post(f"/jobs/{ident}:cancel")


def test_a_kernel_that_dies_alone_takes_its_worker_along_saved(server: Lab, job: Any, tab: Any) -> None:
    """Guard: without the thread that watches stdin the worker trained on for eleven hours beside a dead kernel."""
    ident = job(max_steps=100_000)
    lost = tab(server.post(f"/jobs/{ident}:notebook"))
    server.wait_for(lambda: server.job(ident)["step"] >= 3, "the first steps", 180, 0.1)
    workers = lost.workers
    assert workers
    lost.kernel.kill()
    server.wait_for(lambda: state(server, ident) == "queued", "the job's return", 180, 0.1)
    shown = server.job(ident)
    assert shown["head"]["step"] >= 3
    (session,) = server.get(f"/jobs/{ident}/sessions")["items"]
    assert session["outcome"] == "handed_off"
    assert not psutil.wait_procs(workers, 30)[1]
    server.post(f"/jobs/{ident}:cancel")


@pytest.mark.parametrize(("variable", "words"), [("COLAB_RELEASE_TAG", "T4 GPU"), ("KAGGLE_KERNEL_RUN_TYPE", "Accel")])
def test_a_runtime_without_a_gpu_is_sent_to_the_menu(
    server: Lab, job: Any, tab: Any, variable: str, words: str
) -> None:
    ident = job()
    cell = tab(server.post(f"/jobs/{ident}:notebook"), **{variable: "x", "CUDA_VISIBLE_DEVICES": ""})
    assert "no GPU" in cell.refused
    assert words in cell.refused
    assert state(server, ident) == "queued"


def test_a_runtime_without_internet_says_so_and_changes_nothing(server: Lab, job: Any, tab: Any) -> None:
    ident = job()
    made = server.post(f"/jobs/{ident}:notebook")
    source = made["notebook"]["cells"][1]["source"]
    made["notebook"]["cells"][1]["source"] = source.replace(str(server.client.base_url.port), "9")
    cell = tab(made)
    assert "Could not reach the server" in cell.said
    assert "internet access" in cell.said
    assert state(server, ident) == "queued"
