"""A session of an export, without a server: its files, and whether the machine or the job is to blame for an error."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.export.models import make_adapter, make_model
from tests.helpers.exporter import packed
from worker.agent import work
from worker.agent.limits import Part
from worker.agent.uplink import Refused
from worker.export import session
from worker.export.__main__ import main
from worker.shared import causes
from worker.shared.job_spec import JobSpec
from worker.shared.messages import GrantKind, Phase
from worker.training.interface import PermanentError, TrainingJob, UnfitMachineError


class Hooks:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *said: self.seen.append(said[0])


class Kept(dict[str, bytes]):
    """Takes the files of an export as a store does."""

    def store(self, path: Path, kind: GrantKind) -> str:
        assert kind is GrantKind.EXPORT
        key = f"jobs/job-2/f1/{path.name}"
        self[key] = path.read_bytes()
        return key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and an adapter."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base", "llama")
    return base, make_adapter(folder / "adapter", base)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export runs here, where torch is loaded already. `tests.e2e.test_machine_export` has the real process."""

    def run(_: object, **more: Any) -> Any:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(more["input"]))
        with contextlib.redirect_stdout(out):
            code = main()
        return SimpleNamespace(stdout=out.getvalue(), returncode=code)

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setattr(session, "subprocess", SimpleNamespace(run=run, PIPE=None))


def job_of(base: Path, archive: bytes, home: Path) -> TrainingJob:
    home.mkdir()
    (home / "dataset-0").write_bytes(archive)
    asked = {"job": "job-1", "format": "gguf-adapter"}
    file = {"base_model": "org/base", "datasets": [{"path": "x"}], "max_steps": 1, "adapter": "qlora", "export": asked}
    return TrainingJob(
        job="job-2",
        fence=1,
        spec=JobSpec.model_validate(file),
        datasets=(home / "dataset-0",),
        resume=None,
        work_dir=home,
        base_folder=base,
    )


def test_the_files_are_stored_and_the_report_names_the_base_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    """The base model has its name in the report, although its files are elsewhere."""
    base, adapter = made
    kept, hooks = Kept(), Hooks()
    job = job_of(base, packed(adapter)[0], tmp_path / "home")
    work.try_machine(job.spec, hooks.say)  # 4-bit products are not needed
    assert hooks.seen == []
    done = work.do(job, hooks, kept.store).export  # pyright: ignore[reportArgumentType]
    assert done is not None
    assert hooks.seen == [Phase.EXPORT, Part.EXPORT, Phase.SAVE]
    assert {file.name for file in done.files} == {"adapter.gguf", "Modelfile"}
    for file in done.files:
        assert (hashlib.sha256(kept[file.key]).hexdigest(), len(kept[file.key])) == (file.sha256, file.size)
        assert file.key.endswith(".bin")
    assert done.report.base == "org/base"
    assert "vllm serve org/base --enable-lora" in done.report.commands["vllm"]
    assert "--lora job-1-gguf-adapter/adapter.gguf" in done.report.commands["llama.cpp"]
    assert str(tmp_path) not in json.dumps(done.report.model_dump(mode="json"))
    assert not list((tmp_path / "home").glob("*.bin")), "what is stored makes room"


def test_a_full_disk_is_the_machines_fault(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: without its cause in the answer of the process, a machine with a small disk ended the job for good."""
    monkeypatch.setattr(session, "SPARE_BYTES", 1 << 60)
    kept = Kept()
    with pytest.raises(UnfitMachineError, match="GiB are free") as refused:
        session.export(job_of(made[0], packed(made[1])[0], tmp_path / "home"), Hooks(), kept.store)  # pyright: ignore[reportArgumentType]
    assert refused.value.cause == causes.DISK
    assert kept == {}


def test_another_base_model_is_the_jobs_fault(made: tuple[Path, Path], tmp_path: Path) -> None:
    base = shutil.copytree(made[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    strange = config | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    (base / "config.json").write_text(json.dumps(strange))
    with pytest.raises(PermanentError, match="odels of the type mixtral"):
        session.export(job_of(base, packed(made[1])[0], tmp_path / "home"), Hooks(), Kept().store)  # pyright: ignore[reportArgumentType]


def test_an_archive_with_a_trick_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../out", b"x")
    job = job_of(made[0], (tmp_path / "bad.zip").read_bytes(), tmp_path / "home")
    with pytest.raises(PermanentError, match="unsafe entry"):
        session.export(job, Hooks(), Kept().store)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_store_refuses_is_not_made_again(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Guard: as an error of the session it was made, and refused, four times."""

    def refuse(*_: object) -> str:
        raise Refused("too large")

    with pytest.raises(PermanentError, match="could not be stored"):
        session.export(job_of(made[0], packed(made[1])[0], tmp_path / "home"), Hooks(), refuse)  # pyright: ignore[reportArgumentType]


def test_a_process_that_is_killed_may_have_lacked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "subprocess", subprocess)
    monkeypatch.setattr(session, "tied", lambda _: ["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(UnfitMachineError, match="exit code -9") as refused:
        session._made({})
    assert refused.value.cause == causes.MEMORY
