"""One version set for every machine, and an installation that leaves the image's torch alone."""

import json
import subprocess
import tomllib
from pathlib import Path

from worker import install

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_pyproject_pins_the_same_versions():
    """Guard: a version raised in one place only makes a kernel train on another set than a laptop."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert dict(pin.split("==") for pin in extras["train"] if "==" in pin) == install.TRAIN
    assert dict(pin.split("==") for pin in extras["unsloth"]) == install.UNSLOTH


def test_what_is_here_is_not_installed_again(monkeypatch, capsys):
    monkeypatch.setattr(install, "installed", install.TRAIN.get)
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: 1 / 0)
    install.main([])
    assert json.loads(capsys.readouterr().out)["installed"] == {}
    assert install.missing(gpu=True) == install.UNSLOTH


def test_torch_stays_and_staged_wheels_suffice(monkeypatch, tmp_path):
    """Guard: without the constraint pip may replace a CUDA build of torch by the newest."""
    calls = []

    def pip(call, **_):
        calls.append((call, Path(call[call.index("--constraint") + 1]).read_text()))

    here = install.TRAIN | {"torch": "2.11.0+cu130", "peft": "0.1"}
    monkeypatch.setattr(install, "installed", here.get)
    monkeypatch.setattr(install.subprocess, "run", pip)
    install.bring_in(tmp_path, gpu=True)
    (first, constraints), (second, _) = calls
    assert constraints == "torch==2.11.0+cu130\n"
    assert first[-1] == f"peft=={install.TRAIN['peft']}"
    assert "--no-deps" not in first
    assert "--no-deps" in second
    assert "--no-index" in first
    assert str(tmp_path) in first
    assert not any(name.startswith("torch=") for name in first + second)


def test_a_backend_that_cannot_be_imported_is_taken_away_again(monkeypatch):
    """Guard: left in place, every later look would find it and choose it."""
    calls = []

    def run(call, **_):
        calls.append(call)
        if call[1] == "-c":
            raise subprocess.CalledProcessError(1, call, stderr="Traceback\nImportError: torchao wants torch 2.14")

    here = install.TRAIN | install.UNSLOTH
    monkeypatch.setattr(install, "installed", {k: v for k, v in here.items() if k != "tyro"}.get)
    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.unsloth() == "ImportError: torchao wants torch 2.14"
    brought, _, removed = calls
    assert brought[-1] == f"tyro=={install.UNSLOTH['tyro']}"
    assert "--no-deps" in brought
    assert removed[2:4] == ["pip", "uninstall"]
    assert removed[-1] == "unsloth"
