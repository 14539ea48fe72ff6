"""A session of an export, without a server: its files, and whether the machine or the job is to blame for an error."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.export.models import make_adapter, make_model
from tests.helpers.adapter_jobs import job_with_adapter
from tests.helpers.exporter import packed
from worker.agent import work
from worker.agent.limits import Part
from worker.agent.uplink import Refused
from worker.export import session
from worker.export.__main__ import answered
from worker.shared import causes
from worker.shared.messages import GrantKind, Phase
from worker.training.interface import PermanentError, Trained, TrainingJob, UnfitMachineError


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


def here(request: str) -> tuple[str, int]:
    """In this process, where torch is loaded already. `tests.e2e.test_machine_export` has the real one."""
    return json.dumps(answered(request)), 1


def exported(base: Path, archive: bytes, home: Path, kept: Kept, hooks: Any = None, **more: Any) -> Trained:
    """An export of an adapter in GGUF."""
    options: dict[str, Any] = {"run": here} | more
    seen: Any = hooks or Hooks()
    return session.export(job_of(base, archive, home), seen, kept.store, **options)


def job_of(base: Path, archive: bytes, home: Path) -> TrainingJob:
    return job_with_adapter(base, archive, home, fence=1, export={"job": "job-1", "format": "gguf-adapter"})


def test_the_files_are_stored_and_the_report_names_the_base_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    """The base model has its name in the report, although its files are elsewhere."""
    base, adapter = made
    kept, hooks = Kept(), Hooks()
    done = exported(base, packed(adapter)[0], tmp_path / "home", kept, hooks).export
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


def test_training_is_not_tried_for_an_export(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Guard: where bitsandbytes does not work, an adapter of `qlora` could not be exported."""
    said: list[str] = []
    work.try_machine(job_of(made[0], b"", tmp_path / "home").spec, said.append)
    assert said == []


def test_a_full_disk_is_the_machines_fault(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Guard: without its cause in the answer of the process, a machine with a small disk ended the job for good."""
    kept = Kept()
    with pytest.raises(UnfitMachineError, match="GiB are free") as refused:
        exported(made[0], packed(made[1])[0], tmp_path / "home", kept, spare_bytes=1 << 60)
    assert refused.value.cause == causes.DISK
    assert kept == {}


def test_another_base_model_is_the_jobs_fault(made: tuple[Path, Path], tmp_path: Path) -> None:
    base = shutil.copytree(made[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    strange = config | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    (base / "config.json").write_text(json.dumps(strange))
    with pytest.raises(PermanentError, match="odels of the type mixtral"):
        exported(base, packed(made[1])[0], tmp_path / "home", Kept())


def test_an_archive_with_a_trick_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../out", b"x")
    with pytest.raises(PermanentError, match="unsafe entry"):
        exported(made[0], (tmp_path / "bad.zip").read_bytes(), tmp_path / "home", Kept())
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_store_refuses_is_not_made_again(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Guard: as an error of the session it was made, and refused, four times."""

    class Full(Kept):
        def store(self, path: Path, kind: GrantKind) -> str:
            raise Refused("too large")

    with pytest.raises(PermanentError, match="could not be stored"):
        exported(made[0], packed(made[1])[0], tmp_path / "home", Full())


def test_a_process_that_is_killed_may_have_lacked_memory(made: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UnfitMachineError, match="exit code -9") as refused:
        exported(made[0], packed(made[1])[0], tmp_path / "home", Kept(), run=lambda _: ("", -9))
    assert refused.value.cause == causes.MEMORY
