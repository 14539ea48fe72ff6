"""`trainhop export` of a folder and of a job, in the words that people read."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import pytest

from benchmarks.export.models import make_adapter, make_model
from orchestrator.ports.exports import NotExported
from tests.helpers.exporter import FILES, HeldExporter, finish_export, packed, small_adapter
from tests.helpers.waiting import wait_for
from trainhop.errors import Error
from worker.training.base_model import sha256 as base_sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and an adapter."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base", "llama")
    return base, make_adapter(folder / "adapter", base)


def test_a_folder_needs_no_server(typed, made: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = made
    out = tmp_path / "out"
    done = typed("export", str(adapter), "--format", "gguf-adapter", "--base", str(base), "--out", str(out))
    path, *rest = done.stdout.splitlines()
    assert path == str(out)
    assert any(line.startswith("checked") and "the next token is the same for 100.0%" in line for line in rest)
    assert any("--lora-modules base-lora=" in line for line in rest)
    assert {file.name for file in out.iterdir()} == {"Modelfile", "adapter.gguf", "trainhop-export.json"}


def test_a_job_of_a_server(server, typed, made: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = made
    job = server.api.admin.submit(name="trail")["id"]
    machine = server.machine()
    # The recipe's hash of the base model arrives with the provenance, and is compared.
    assert machine.save(10, tmp_path, base_sha256=base_sha256(base)).json()["committed"]
    assert machine.finish(10, *packed(adapter)).status_code == 204
    out = tmp_path / "exported"
    words = ("export", "trail", "--format", "merged", "--base", str(base), "--out", str(out), "--json")
    report = json.loads(typed(*words).stdout)
    assert (report["type"], report["onto"], report["path"]) == ("fp16", "original", str(out))
    assert report["commands"]["adapter"] == f"trainhop adapter {job} --out {job}-adapter"
    assert (out / "model.safetensors").is_file()
    with pytest.raises(Error, match="already exists"):
        typed(*words)


def test_refusals_are_one_sentence(typed, made: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = made
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    strange = config | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    (tmp_path / "base" / "config.json").write_text(json.dumps(strange))
    words = ("export", str(adapter), "--format", "gguf", "--base", str(tmp_path / "base"), "--out", str(tmp_path / "o"))
    with pytest.raises(
        Error, match=r"^Models of the type mixtral \(MixtralForCausalLM\) cannot be exported; there are"
    ):
        typed(*words)
    assert not (tmp_path / "o").exists()
    with pytest.raises(Error, match="not-there"):
        typed("export", "not-there", "--format", "gguf", "--out", str(tmp_path / "o"))


def test_the_server_makes_an_export_and_it_is_downloaded_whole(server, typed, tmp_path: Path, monkeypatch) -> None:
    job = server.api.admin.submit(name="trail")["id"]
    machine = server.machine()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10, *small_adapter()).status_code == 204
    exports = server.api.app.context.exports
    exports.exporter = exporter = HeldExporter()
    exporter.go_on.release()
    monkeypatch.chdir(tmp_path)
    words = ("export", "trail", "--format", "gguf-adapter", "--on-server")
    done = typed(*words)
    out = tmp_path / f"{job}-gguf-adapter"
    assert done.stdout.splitlines()[0] == out.name
    assert "downloading adapter.gguf" in done.stderr
    assert "succeeded" not in done.stderr
    assert {file.name for file in out.iterdir()} == {"adapter.gguf", "trainhop-export.json"}
    # The server still has it, so it is not made again.
    report = json.loads(typed(*words, "--out", "my dir", "--json").stdout)
    assert report["commands"]["llama.cpp"] == "llama-cli -m base.gguf --lora 'my dir'/adapter.gguf"
    assert json.loads((tmp_path / "my dir" / "trainhop-export.json").read_text())["path"] == "my dir"
    assert len(exporter.requests) == 1
    with pytest.raises(Error, match="already exists"):
        typed(*words)
    exporter.error = NotExported("The disk is full.")
    exporter.go_on.release()
    with pytest.raises(Error, match=r"^The disk is full\.$"):
        typed("export", "trail", "--format", "gguf", "--on-server")
    with pytest.raises(Error, match="Leave --base out"):
        typed(*words, "--base", "x", "--out", "y")


def test_a_machine_makes_an_export_and_it_is_downloaded_whole(server, typed, tmp_path: Path, monkeypatch) -> None:
    """The same command again downloads what there is. A failure is said in the job's words."""
    job = server.api.admin.submit(name="trail")["id"]
    machine = server.machine()
    assert machine.save(10, tmp_path).json()["committed"]
    assert machine.finish(10, *small_adapter()).status_code == 204
    monkeypatch.chdir(tmp_path)
    made = server.api.admin.post(f"/jobs/{job}:export", {"format": "gguf"}).json()["id"]
    assert finish_export(server.machine()).status_code == 204
    words = ("export", "trail", "--format", "gguf", "--on-machine")
    report = json.loads(typed(*words, "--json").stdout)
    out = tmp_path / f"{job}-gguf"
    assert {file.name for file in out.iterdir()} == {*FILES, "trainhop-export.json"}
    assert (report["path"], report["commands"]["ollama"]) == (
        out.name,
        f"ollama create {out.name} -f {out.name}/Modelfile",
    )
    assert [each["id"] for each in server.api.admin.get(f"/jobs/{job}/machine-exports").json()["items"]] == [made]
    with pytest.raises(Error, match="already exists"):
        typed(*words)
    assert re.search(rf"^exports +{job}$", typed("show", made).stdout, re.MULTILINE)

    def fail_the_next() -> None:
        wait_for(lambda: server.api.admin.get("/jobs?state=queued").json()["items"], "the second export")
        failure = {"message": "the base model is gone", "permanent": True, "has_remedy": True}
        failing = server.machine()
        failing.say("finish", failing.said("finish", step=0, failure=failure))

    failing = threading.Thread(target=fail_the_next)
    failing.start()
    with pytest.raises(Error, match="the base model is gone"):
        typed("export", "trail", "--format", "merged", "--on-machine")
    failing.join()
    with pytest.raises(Error, match="Choose one of"):
        typed(*words, "--on-server", "--out", "z")
    with pytest.raises(Error, match="Leave --base out"):
        typed(*words, "--base", "x", "--out", "y")


def test_a_folder_cannot_be_exported_by_the_server(typed, made: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(Error, match="does not have this folder"):
        typed("export", str(made[1]), "--format", "gguf", "--on-machine", "--out", str(tmp_path / "o"))
    with pytest.raises(Error, match="does not have this folder"):
        typed("export", str(made[1]), "--format", "gguf", "--on-server", "--out", str(tmp_path / "o"))
