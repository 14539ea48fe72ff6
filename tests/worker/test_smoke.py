"""Whether a machine trains at all, tried with almost nothing, and images that bring what the libraries refuse."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.worker.wheels import have
from worker.shared import causes
from worker.shared.manifest import Hardware
from worker.training import smoke, unusable
from worker.training.interface import UnfitMachineError

ROOT = Path(__file__).parents[2]
LIBRARIES = ("peft", "transformers", "accelerate", "trl", "bitsandbytes")
TRAIN = """
import torch
from peft import LoraConfig, get_peft_model
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
model(torch.ones(1, 4)).sum().backward()
print("trained")
"""
REFUSED = f"try:\n{textwrap.indent(TRAIN, '    ')}\nexcept ImportError:\n    print('refused')\n"
QUICKLY = """
from worker.shared.imports import quick_imports
from worker.training.unusable import hide_bitsandbytes
hide_bitsandbytes()
quick = quick_imports()
quick.__enter__()
"""
"""As a worker that needs no 4-bit weights does."""
HIDE = "from worker.training.unusable import hide; print(hide())\n"


def _python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


# --- what an image ships and the libraries refuse ---


def _functions_that_refuse(library: str) -> set[tuple[str, str]]:
    """Functions named like a question whether something is there, that raise instead of answering no."""
    spec = find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    found = set()
    for path in Path(spec.origin).parent.rglob("*.py"):
        text = path.read_text(errors="replace")
        if not re.search(r"def is_\w+_available", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef) or not re.fullmatch(r"is_\w+_available", node.name):
                continue
            if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                found.add((library, node.name))
    return found


def test_the_table_names_every_question_that_raises():
    """Holds the table against the installed libraries, so that a newer version of one is noticed."""
    found = set().union(*map(_functions_that_refuse, LIBRARIES))
    assert found == {(entry.library, entry.function) for entry in unusable.TABLE}


@pytest.mark.parametrize("entry", unusable.TABLE, ids=lambda entry: entry.package)
def test_the_tables_versions_are_those_of_the_libraries(entry):
    """As their source has them."""
    source = Path(find_spec(entry.library).origin).with_name("import_utils.py").read_text()  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    wanted = f'{entry.package.upper()}_MINIMUM_VERSION = packaging.version.parse("{entry.lowest}")'
    assert wanted in source
    if entry.needs:
        assert f'{entry.needs[0].upper()}_MINIMUM_VERSION = packaging.version.parse("{entry.needs[1]}")' in source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "version"), [("torchao", "0.10.0"), ("gptqmodel", "5.0.0"), ("gptqmodel", "7.1.0")]
)
def test_an_image_with_an_old_package_trains(tmp_path, package, version):
    """Guard: without the hiding no adapter can be put on any model in any image of Kaggle or Colab."""
    have(tmp_path, package, version)
    done = _python(QUICKLY + REFUSED + HIDE + TRAIN, tmp_path)
    assert done.stdout.splitlines() == ["refused", f"['{package}']", "trained"], done.stderr


@pytest.mark.slow
def test_the_smoke_step_passes_in_an_image_with_an_old_torchao(tmp_path):
    have(tmp_path, "torchao", "0.10.0")
    done = _python("from worker.training.smoke import main; raise SystemExit(main([]))", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


LORA = """
import sys
from worker.shared.manifest import Hardware
from worker.training import smoke
smoke.try_all(Hardware(), "hf", 1, four_bit=False)
print("torch._inductor.compile_fx" in sys.modules)
smoke.try_all(Hardware(), "hf", 1)
"""


@pytest.mark.slow
def test_a_broken_bitsandbytes_stops_jobs_that_need_it_only(tmp_path):
    """Guards: PEFT imports it for every adapter, so LoRA failed too. It loads torch's compiler, as does
    `torch.use_deterministic_algorithms`: a second of every session."""
    have(tmp_path, "bitsandbytes", "0.1")
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise ImportError('no library for this CUDA')")
    done = _python(LORA, tmp_path)
    assert done.stdout.splitlines() == ["False"], done.stderr
    assert "UnfitMachineError" in done.stderr
    assert "import of bitsandbytes" in done.stderr


def test_what_is_new_enough_is_shown_again(tmp_path, monkeypatch):
    """Unsloth brings a newer torchao than the image's. Guard: once hidden it stayed hidden."""
    table = (unusable.Refused(package="oldish", lowest="2", library="x", function="y"),)
    have(tmp_path / "image", "oldish", "1.0")
    have(tmp_path / "own", "oldish", "2.1")
    monkeypatch.syspath_prepend(tmp_path / "image")
    assert unusable.hide(table) == ["oldish"]
    assert find_spec("oldish") is None
    monkeypatch.syspath_prepend(tmp_path / "own")
    assert unusable.hide(table) == []
    assert find_spec("oldish").origin == str(tmp_path / "own" / "oldish" / "__init__.py")  # pyright: ignore[reportOptionalMemberAccess]


# --- the smoke step ---


def test_a_machine_that_trains_passes_and_says_what_it_took(training):
    took = smoke.check(training.spec(adapter="qlora"))
    assert {"LoRA", "4-bit product", "import of peft"} <= took.keys()
    assert "4-bit product" not in smoke.check(training.spec())


@contextlib.contextmanager
def after_each_forward_pass(work):
    """`work(module, inputs, output)` runs after every forward pass of any module, and may give another output."""
    from torch.nn.modules.module import register_module_forward_hook

    hook = register_module_forward_hook(work)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("Linear", ImportError("Found an incompatible version of it"), "LoRA: ImportError: Found an incompatible"),
        ("Linear4bit", RuntimeError("no kernel\nfor this card"), "4-bit product: RuntimeError: no kernel for this"),
    ],
)
def test_what_goes_wrong_is_the_machines_in_the_librarys_own_words(layer, error, words):
    """Guard: as an ordinary failure it counted against the job, four times, and the job was failed."""

    def fail(module, *_):
        if type(module).__name__ == layer:
            raise error

    with after_each_forward_pass(fail), pytest.raises(UnfitMachineError, match=words) as unfit:
        smoke.try_all(Hardware(), "hf", 1)
    assert unfit.value.cause == causes.SMOKE
    assert "trainhop doctor" in str(unfit.value)


def test_a_backend_that_fails_to_look_is_the_machines_fault():
    with pytest.raises(UnfitMachineError, match=r"backend: AttributeError: .* has no attribute 'trouble'") as unfit:
        smoke.try_all(SimpleNamespace(device="cpu"), "hf", 1)  # pyright: ignore[reportArgumentType]

    assert unfit.value.cause == causes.SMOKE
    assert "trainhop doctor" in str(unfit.value)


def test_a_job_that_wants_what_the_machine_lacks_is_told_of_no_doctor():
    with pytest.raises(UnfitMachineError, match="backend unsloth cannot run here") as unfit:
        smoke.try_all(Hardware(), "unsloth", 1)
    assert unfit.value.cause == causes.GPU


def test_an_adapter_without_a_gradient_is_noticed():
    """A backward pass that runs and gives nothing is worse than one that fails."""

    def cut(module, inputs, output):
        return output.detach().requires_grad_()

    with (
        after_each_forward_pass(cut),
        pytest.raises(UnfitMachineError, match="LoRA: RuntimeError: the adapter has no gradient"),
    ):
        smoke.try_all(Hardware(), "hf", 1)


@pytest.mark.slow
def test_two_processes_find_each_other():
    """On this machine's CPU, over the same code as two GPUs."""
    with smoke.several(2, "cpu") as wait:
        wait()


def test_processes_that_do_not_find_each_other_are_not_waited_for():
    with (
        smoke.several(2, "cpu", patience_s=0.0) as wait,
        pytest.raises(TimeoutError, match="could not connect to each other"),
    ):
        wait()


@pytest.mark.slow
def test_a_process_that_fails_speaks_for_all():
    """Guard: without looking at each, the others waited for it for half an hour."""
    with smoke.several(2, "no-such-device") as wait, pytest.raises(RuntimeError, match="no-such-device"):
        wait()
