"""One version set for every machine, brought by a real pip into a folder that leaves the machine as it is."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from tests.helpers.processes import assert_gone
from tests.worker.wheels import list_package, wheel
from worker.shared import bounded_process, causes, package_folder
from worker.shared import packages as install
from worker.shared.bounded_process import Limits, OutOfTimeError
from worker.shared.packages import InstallError, bring

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
ENVIRONMENT = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1", "PIP_NO_CACHE_DIR": "1"}


@pytest.fixture(autouse=True)
def _plain_pip(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def shop(tmp_path):
    """A folder of wheels that stands for the index."""
    return tmp_path / "wheels"


@pytest.fixture
def own(tmp_path):
    return tmp_path / "own" / "packages"


def _lies_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pyproject_pins_the_same_versions():
    """Guard: a version raised in one place only makes a kernel train on another set than a laptop."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert dict(pin.split("==") for pin in extras["train"] if "==" in pin) == install.TRAIN
    assert [pin for pin in extras["train"] if "==" not in pin] == list(install.ALSO)
    assert dict(pin.split("==") for pin in extras["unsloth"]) == install.UNSLOTH


def test_a_set_has_one_name_wherever_it_is_computed():
    """A worker's wheel on a machine and the server's own distribution have to agree."""
    lines = install.every_line()
    assert "peft==0.21.2" in lines
    assert any(line.startswith("httpx") for line in lines)
    assert install.set_key() == install.set_key(reversed(lines))
    assert install.set_key() != install.set_key(lines[1:])
    assert len(install.set_key()) == 12


def test_what_is_here_is_not_installed_again(monkeypatch, capsys, tmp_path):
    """Guard: whatever is asked of pip fails, because no index answers."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name, version in {**install.TRAIN, "gguf": "9999.0", "hf-xet": "9999.0"}.items():
        list_package(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    install.main([])
    assert json.loads(capsys.readouterr().out)["installed"] == {}
    assert install.missing(gpu=True) == install.UNSLOTH


def test_a_folder_of_its_own_holds_just_what_lacks(shop, own):
    """pip's `--target` would bring everything once more. Guard: without the resolution before it, packaging came
    along."""
    wheel(shop, "needs_much", "1.0", "packaging", "other_thing>=2")
    wheel(shop, "other_thing", "2.5")
    wheel(shop, "packaging", "9999.0")
    bring(["needs_much==1.0"], own, wheels=shop)
    assert _lies_in(own) == {"needs_much", "needs_much-1.0.dist-info", "other_thing", "other_thing-2.5.dist-info"}
    assert _lies_in(own.parent) == {"packages"}, "nothing is left beside it"
    assert install.installed("other_thing") is None, "the environment is as before"
    assert install.lacking(["needs_much==1.0", "other_thing", "packaging"], own) == []


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_what_an_image_ships_is_never_replaced(shop, own, name):
    """Guard: without the constraint pip was content to bring torch 1.0 in the place of the image's own."""
    wheel(shop, "eats_it", "1.0", f"{name}==1.0")
    wheel(shop, name, "1.0")
    with pytest.raises(InstallError, match=rf"Cannot install eats-it==1\.0 because.*{name}") as refused:
        bring(["eats-it==1.0"], own, wheels=shop)
    assert refused.value.cause == causes.INSTALL
    assert not own.exists()


def test_a_conflict_is_said_with_who_wants_what(shop, own):
    """Guard: pip's last line was shown, which is the address of a web page."""
    wheel(shop, "left", "1.0", "shared==1.0")
    wheel(shop, "right", "1.0", "shared==2.0")
    wheel(shop, "shared", "1.0")
    wheel(shop, "shared", "2.0")
    with pytest.raises(InstallError) as refused:
        bring(["left==1.0", "right==1.0"], own, wheels=shop)
    said = str(refused.value)
    assert (
        "Cannot install left==1.0 and right==1.0 because these package versions have conflicting dependencies" in said
    )
    assert "(left 1.0 depends on shared==1.0; right 1.0 depends on shared==2.0)" in said
    assert "http" not in said


def test_an_index_that_is_away_is_said_as_such(own, monkeypatch):
    """Guard: pip's own words blame the package: no matching distribution."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InstallError, match=r"pip's index cannot be reached from this machine \(Connection refused\)"):
        bring(["a-thing==1.0"], own)
    assert not own.exists()


def test_a_package_that_does_not_exist_is_pips_own_first_word(shop, own):
    shop.mkdir()
    with pytest.raises(InstallError, match="Could not find a version that satisfies the requirement no-such-thing==1"):
        bring(["no-such-thing==1.0"], own, wheels=shop)


@pytest.fixture
def silent_index():
    """A server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def accept():
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        server.shutdown(socket.SHUT_RDWR)
    for one in kept:
        one.close()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(stall_s=1.5, look_every_s=0.05), "it wrote nothing for 2 s"),
        (Limits(whole_s=1.0, look_every_s=0.05), "it took longer than 1 s"),
    ],
)
def test_an_index_that_never_answers_is_not_waited_for(own, monkeypatch, silent_index, limits, words):
    """Guard: without either limit pip waited as long as the session lasted."""
    monkeypatch.setenv("PIP_INDEX_URL", silent_index)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "600")
    with pytest.raises(InstallError, match=f"pip was stopped because {words}: check the machine's internet access"):
        bring(["a-thing==1.0"], own, limits=limits)
    assert _lies_in(own.parent) == set()


def test_whatever_ends_the_caller_ends_the_program(tmp_path):
    """Guard: without the `finally` what pip had started went on after a SIGTERM to whoever had started pip."""
    note = tmp_path / "pid"
    os.mkfifo(note)
    program = (
        "import os, pathlib, time; "
        f"os.fork() or pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    code = (
        "import signal, sys; from worker.shared.bounded_process import Limits, run\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        f"run([sys.executable, '-c', {program!r}], Limits(look_every_s=0.05))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    pid = int(note.read_text())
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(60) == 3
    assert_gone(pid)


def test_a_program_that_writes_is_left_alone(tmp_path):
    """Only silence counts: this one writes for longer than it may be silent."""
    code = "import time\nfor n in range(15):\n open(f'{n}', 'w').write('x'); time.sleep(0.1)\nprint('done')"
    limits = Limits(stall_s=1.0, look_every_s=0.02)
    assert bounded_process.run(
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"], limits, watched=tmp_path
    )
    with pytest.raises(OutOfTimeError):
        bounded_process.run([sys.executable, "-c", "import time; time.sleep(60)"], limits, watched=tmp_path)


def _with_small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_full_disk_is_called_one(shop, own):
    """A limit on the size of files stands for a disk that is full; pip and Python meet both in the same place."""
    wheel(shop, "large", "1.0", more={"large/data.bin": os.urandom(1_000_000)})
    code = (
        "import sys; from pathlib import Path; from worker.shared.packages import InstallError, bring\n"
        f"try: bring(['large==1.0'], Path({str(own)!r}), wheels=Path({str(shop)!r}))\n"
        "except InstallError as error: print(error.cause, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=_with_small_files
    )
    assert done.stdout.startswith(f"{causes.DISK} the disk of this machine is full; free some space")
    assert not own.exists()


def test_a_backend_that_cannot_be_imported_is_taken_away_again(shop, own, tmp_path):
    """Guard: left in place, every later look would find it and choose it."""
    versions = {"unsloth": "1.0", "torchao": "0.18.0"}
    wheel(shop, "torchao", "0.18.0")
    wheel(shop, "unsloth", "1.0", code="raise ImportError('it wants another torch')")
    assert install.unsloth(shop, own, versions=versions) == "ImportError: it wants another torch"
    assert _lies_in(own.parent) == set()
    wheel(shop, "unsloth", "1.0", "no-such-thing", code="import torchao")
    assert install.unsloth(shop, own, versions=versions) == ""
    assert "unsloth" in _lies_in(own)
    nothing = tmp_path / "no wheels"
    nothing.mkdir()
    assert install.unsloth(nothing, own, versions=versions) == "", "a second session finds it there"


# --- the folder ---


def _light_thing(shop):
    wheel(shop, "light_thing", "1.0", more={"light_thing/part.py": b"VALUE = 7\n"})
    return ["light_thing==1.0"]


@pytest.fixture
def wanted(shop):
    return _light_thing(shop)


def test_a_second_session_of_a_machine_installs_nothing(shop, own, wanted, monkeypatch, tmp_path):
    """Guard: without the mark each session of one runtime downloaded the same 117 MB."""
    assert package_folder.ready(own, wanted, wheels=shop) == "installed"
    nothing = tmp_path / "no wheels"
    nothing.mkdir()
    assert package_folder.ready(own, wanted, wheels=nothing) == "kept"
    list_package(tmp_path / "image", "torch", "9.9")
    monkeypatch.syspath_prepend(tmp_path / "image")
    with pytest.raises(InstallError, match="Could not find a version that satisfies the requirement light"):
        package_folder.ready(own, wanted, wheels=nothing)


def test_kernels_of_one_machine_do_not_share_a_folder_that_fits_only_one():
    """Guard: a kernel of Python 3.11 found pyarrow for 3.12 in the one folder of that set."""
    another = package_folder.about(["x"]) | {"python": "3.99"}
    assert package_folder.home(["x"], another) != package_folder.home(["x"])


def test_nothing_is_brought_where_nothing_lacks(own):
    assert package_folder.ready(own, ["packaging"]) == "here"
    assert not own.exists()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A set as the one machine packs it, once something of it was imported."""
    folder = tmp_path_factory.mktemp("packed")
    first, wanted = folder / "first", _light_thing(folder / "wheels")
    package_folder.ready(first, wanted, wheels=folder / "wheels")
    subprocess.run(
        [sys.executable, "-c", "import light_thing.part"],
        env=os.environ | {"PYTHONPATH": str(first), "PYTHONDONTWRITEBYTECODE": ""},
        check=True,
    )
    package_folder.pack(first, folder / package_folder.STAGED)
    return folder


@pytest.fixture
def staged(packed, tmp_path):
    """A copy of it, beside the folder that was packed."""
    shutil.copytree(packed / "first", tmp_path / "first")
    return Path(shutil.copy(packed / package_folder.STAGED, tmp_path))


def test_a_staged_set_is_as_good_as_an_installed_one(own, wanted, staged):
    assert package_folder.ready(own, wanted, staged=staged) == "staged"
    assert {"light_thing", "light_thing-1.0.dist-info", "about.json"} == _lies_in(own)
    code = "import light_thing.part as part; print(part.VALUE, part.__cached__)"
    compiled = own / "light_thing" / "__pycache__"
    before = {path: path.stat().st_mtime_ns for path in compiled.iterdir()}
    assert len(before) == 2
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(own), "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("7 ")
    assert {path: path.stat().st_mtime_ns for path in compiled.iterdir()} == before, "nothing was compiled again"


@pytest.mark.parametrize("change", [{"key": "0" * 12}, {"python": "2.7"}, {"kept": {"torch": "1.0"}}], ids=str)
def test_a_staged_set_of_another_machine_is_not_used(own, shop, wanted, staged, change, tmp_path):
    """Guard: a set for another Python or torch fails at its first import, or worse, later."""
    first = tmp_path / "first"
    about = json.loads((first / "about.json").read_text())
    (first / "about.json").write_text(json.dumps(about | change))
    package_folder.pack(first, staged)
    assert not package_folder.unpack(staged, own, wanted)
    assert _lies_in(own.parent) == set()
    assert package_folder.ready(own, wanted, staged=staged, wheels=shop) == "installed"


@pytest.mark.parametrize("said", [None, [], {}, {"kept": None}, {"kept": {"torch": "1.0"}}], ids=str)
def test_what_says_nothing_of_itself_does_not_fit(said):
    assert not package_folder.fits(said, ["x"])


def test_a_machine_without_a_gpu_may_stage_for_one_with_one():
    """Its torch is the same but for its build, and it has no triton."""
    about = package_folder.about(["x"])
    here = about | {"kept": {"torch": "2.10.0+cu128", "triton": "3.6.0", "numpy": "2.0.2"}}
    found = about | {"kept": {"torch": "2.10.0+cpu", "numpy": "2.0.2"}}
    assert package_folder.fits(found, ["x"], here)
    assert not package_folder.fits(found | {"kept": {"torch": "2.11.0+cpu", "numpy": "2.0.2"}}, ["x"], here)
    assert not package_folder.fits(found | {"kept": {"numpy": "2.0.2"}}, ["x"], here)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no zip at all"])
def test_a_damaged_staged_set_is_as_none(own, shop, wanted, staged, damage):
    staged.write_bytes(damage(staged.read_bytes()))
    assert package_folder.ready(own, wanted, staged=staged, wheels=shop) == "installed"


def test_a_staged_set_that_would_fill_the_disk_is_not_unpacked(own, wanted, staged):
    """Every size has a maximum."""
    assert not package_folder.unpack(staged, own, wanted, max_bytes=10)
    assert package_folder.unpack(staged, own, wanted)


def test_an_empty_place_in_the_path_is_not_the_current_folder():
    """Kaggle's own `PYTHONPATH` begins with one. Guard: a file in the working folder took a library's place."""
    found = package_folder.search_path([Path("/lib"), Path("/own")], ":/opt/facets/::")
    assert found == os.pathsep.join(["/lib", "/own", "/opt/facets/"])
