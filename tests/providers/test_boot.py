"""The scripts that start a worker, run as the machines run them: what they bring, what they find, what they say."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.providers.colab import source as colab_source
from orchestrator.providers.kaggle import kernel as kaggle_source
from tests.providers.kernels import colab_account, kaggle_account, light_wheel, request, with_changes, with_worker
from tests.worker.wheels import wheel
from worker.shared import causes, package_folder
from worker.shared.messages import Release, signed_message

TOKEN = "a-lease-token"
SPEAKS = '(keep / "outbox.jsonl").write_text("{}\\n")\n'


class Machine:
    """Folders as Kaggle lays them out, and the pushed script in them. What pip may fetch lies in `shop`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.shop = folder / "kaggle", folder / "shop"
        self.shop.mkdir(parents=True)
        for name in ("src", "working", "tmp", "input/datasets/alice/data"):
            (self.root / name).mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(self.root / "tmp"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.shop),
        }

    def bring(self, launched, place: str = "input/datasets/alice/data") -> None:
        """The launch's files."""
        for key, open_it in launched.inputs.items():
            (self.root / place).mkdir(parents=True, exist_ok=True)
            (self.root / place / kaggle_source.file_name(key)).write_bytes(b"".join(open_it()))

    def start(self, text: str, **more) -> subprocess.Popen[str]:
        script = self.root / "src" / "script.py"
        script.write_text(text)
        return subprocess.Popen(
            [sys.executable, "-u", str(script)],
            cwd=self.root / "working",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )

    def run(self, text: str, **more) -> tuple[int, list[str]]:
        process = self.start(text, **more)
        said = process.communicate(timeout=120)[0]
        return process.returncode, said.splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def kernel(code: str = SPEAKS, launched=None, needs: Sequence[str] = (), **changes) -> str:
    """The pushed script, with a worker of a few lines that needs these packages."""
    text = kaggle_source.kernel_source(launched or request(kaggle_account("alice")))
    return with_changes(with_worker(text, code), requirements=list(needs), **changes)


def released(lines: list[str]) -> Release:
    """The one goodbye among the lines, as the server reads it."""
    (said,) = [message for line in lines if (message := signed_message(TOKEN, line))]
    return Release.model_validate_json(said)


def refused(lines: list[str], cause: str) -> str:
    """What was said to the server and, in the same words, to people."""
    said = released(lines)
    assert (said.reason, said.cause, said.fence, said.step, said.has_remedy) == ("unfit", cause, 2, 0, True)
    assert f"trainhop: cannot start: {said.detail}" in lines
    return said.detail


# --- what it says where it cannot start ---


def test_a_conflict_of_packages_reaches_the_server_in_words(machine):
    """Guard: without the signed line the server only knew that the kernel had ended with an error."""
    wheel(machine.shop, "left", "1.0", "shared==1.0")
    wheel(machine.shop, "right", "1.0", "shared==2.0")
    wheel(machine.shop, "shared", "1.0")
    wheel(machine.shop, "shared", "2.0")
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    code, lines = machine.run(kernel(launched=launched, needs=["left==1.0", "right==1.0"]))
    assert code == 2
    said = refused(lines, causes.INSTALL)
    assert "Cannot install left==1.0 and right==1.0" in said
    assert "left 1.0 depends on shared==1.0; right 1.0 depends on shared==2.0" in said


def test_an_index_that_is_away_is_said_with_the_remedy(machine):
    machine.environment |= {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    del machine.environment["PIP_FIND_LINKS"]
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    _, lines = machine.run(kernel(launched=launched, needs=["a-thing==1.0"]))
    assert "pip's index cannot be reached from this machine" in refused(lines, causes.INSTALL)
    assert "internet access" in refused(lines, causes.INSTALL)


def test_a_file_that_did_not_come_along_is_named(machine):
    launched = request(kaggle_account("alice"))
    _, lines = machine.run(kernel(launched=launched))
    assert f"Kaggle did not provide {kaggle_source.file_name(next(iter(launched.inputs)))}" in refused(
        lines, causes.INPUT
    )


def _small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def test_a_full_disk_is_called_one(machine):
    wheel(machine.shop, "large", "1.0", more={"large/data.bin": os.urandom(1_000_000)})
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    _, lines = machine.run(kernel(launched=launched, needs=["large==1.0"]), preexec_fn=_small_files)
    assert "the disk of this machine is full" in refused(lines, causes.DISK)


def test_a_worker_that_dies_before_its_first_word_is_spoken_for(machine):
    """Guard: an import that fails on one image alone was an unexplained end of a kernel."""
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    code, lines = machine.run(kernel("raise ImportError('no such library')", launched))
    assert code == 2
    assert "ImportError: no such library" in lines
    assert "exit code 1 before its first message" in refused(lines, causes.START)


def test_a_worker_that_has_spoken_is_left_its_own_last_word(machine):
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    code, lines = machine.run(kernel(SPEAKS + "sys.exit(1)", launched))
    assert code == 1
    assert lines[-1] == "trainhop: the worker ended with exit code 1"
    assert not any(signed_message(TOKEN, line) for line in lines)


def test_a_machine_that_can_call_tells_the_server_itself(machine):
    """Its ticket holds no assignment; the fence comes with it."""
    heard = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((self.path, self.headers["Authorization"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        launched = request(kaggle_account("alice"), assignment=None, inputs={}, server_url=url, fence=5)
        machine.environment["http_proxy"] = "http://127.0.0.1:9"
        _, lines = machine.run(kernel(launched=launched, needs=["no-such-thing==1.0"]))
        server.shutdown()
    ((path, bearer, body),) = heard
    assert (path, bearer) == (f"/api/v1/leases/{launched.lease_id}/release", f"Bearer {TOKEN}")
    said = Release.model_validate_json(body)
    assert (said.lease, said.fence, said.cause) == (launched.lease_id, 5, causes.INSTALL)
    assert "no-such-thing==1.0" in said.detail
    assert not any(signed_message(TOKEN, line) for line in lines)


@pytest.fixture
def silent():
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


WAITED_FOR = ["a-thing==1.0"]


def _waiting_for(machine, silent):
    machine.environment |= {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": silent, "PIP_DEFAULT_TIMEOUT": "600"}
    del machine.environment["PIP_FIND_LINKS"]
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    return launched


def test_an_index_that_never_answers_ends_with_the_sessions_time(machine, silent):
    """Guard: pip's own limit alone, a session of two seconds waited for a quarter of an hour."""
    launched = _waiting_for(machine, silent)
    began = time.monotonic()
    _, lines = machine.run(kernel(launched=launched, needs=WAITED_FOR, stop_after_s=2.0))
    assert "pip was stopped because it took longer than" in refused(lines, causes.INSTALL)
    assert time.monotonic() - began < 60


def test_a_script_that_is_asked_to_end_ends_pip_too(machine, silent):
    """Guard: without the handler the script died without a word, and pip went on."""
    launched = _waiting_for(machine, silent)
    process = machine.start(kernel(launched=launched, needs=WAITED_FOR))
    assert process.stdout is not None
    assert process.stdout.readline() == "trainhop: bringing a-thing==1.0\n"
    process.send_signal(signal.SIGTERM)
    lines = process.communicate(timeout=60)[0].splitlines()
    said = released(lines)
    assert (said.reason, said.cause) == ("drained", "")
    assert not list((machine.root / "tmp").glob("*/.packages-*")), "what pip had begun is gone with it"


# --- what it finds and brings ---

TELLS = (
    """
print(json.dumps([given["datasets"][0].get("path"), sys.path[:4]]), flush=True)
"""
    + SPEAKS
)


@pytest.mark.parametrize("place", ["input/data", "input/datasets/alice/data", "elsewhere"])
def test_files_are_found_nested_flat_and_through_links(machine, place):
    """Guard: without following links a mount that is one held nothing; without the guard a loop never ended."""
    launched = request(kaggle_account("alice"))
    machine.bring(launched, place)
    if place == "elsewhere":
        (machine.root / "input" / "data").symlink_to(machine.root / "elsewhere")
        for loop in ("one", "two"):
            (machine.root / "elsewhere" / loop).symlink_to(machine.root / "input")
    code, lines = machine.run(kernel(TELLS, launched))
    path = Path(json.loads(lines[0])[0])
    assert (code, path.name, path.is_file()) == (0, kaggle_source.file_name(next(iter(launched.inputs))), True)


def test_what_lacks_goes_into_a_folder_that_only_the_worker_sees(machine):
    """The environment stays as it is: Kaggle's own programs run in it when the script is over."""
    wheel(machine.shop, "light_thing", "1.0")
    machine.environment["PYTHONPATH"] = ":/opt/facets:"
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    code, lines = machine.run(
        kernel(
            "import light_thing; print(light_thing.__file__, flush=True)\n" + TELLS,
            launched,
            needs=["light_thing==1.0", "packaging"],
        )
    )
    assert code == 0, lines
    assert lines[0] == "trainhop: bringing light_thing==1.0"
    path = json.loads(lines[3])[1]
    folders = [Path(entry).name for entry in path]
    assert folders[1:] == ["lib", "packages", "facets"]
    assert lines[2].startswith(path[2])
    done = subprocess.run([sys.executable, "-c", "import light_thing"], capture_output=True, check=False)
    assert done.returncode == 1


def test_a_staged_set_among_the_inputs_needs_no_index(machine, tmp_path):
    wheel(machine.shop, "light_thing", "1.0")
    lines = ["light_thing==1.0"]
    package_folder.ready(tmp_path / "first", lines, wheels=machine.shop)
    there = machine.root / "input/notebooks/alice/trainhop-packages-x"
    there.mkdir(parents=True)
    package_folder.pack(tmp_path / "first", there / package_folder.STAGED)
    machine.environment |= {"PIP_FIND_LINKS": str(tmp_path / "nothing")}
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    code, said = machine.run(kernel("import light_thing\n" + SPEAKS, launched, needs=lines))
    assert code == 0, said
    assert said[1].startswith("trainhop: packages staged after ")


@pytest.mark.slow
def test_a_kernel_leaves_its_packages_once_it_has_trained_with_them(machine):
    """The whole worker, whose smoke step runs in this very environment."""
    wheel(machine.shop, "light_thing", "1.0")
    machine.environment["OMP_NUM_THREADS"] = "1"
    launched = request(kaggle_account("alice"))
    text = with_changes(kaggle_source.kernel_source(launched), task="packages", requirements=["light_thing==1.0"])
    code, said = machine.run(text)
    assert code == 0, said
    with zipfile.ZipFile(machine.root / "working" / package_folder.STAGED) as archive:
        about = json.loads(archive.read("about.json"))
    assert about["key"] == package_folder.set_key(["light_thing==1.0"])
    assert list((machine.root / "working").iterdir()) == [machine.root / "working" / package_folder.STAGED]


def test_the_sessions_number_is_its_first_word_and_never_the_token(machine):
    """Guard: with the whole variable printed its secret part would be in the log."""
    launched = request(kaggle_account("alice"))
    machine.bring(launched)
    machine.environment["KAGGLE_CONTAINER_NAME"] = "kaggle_s3cr3t-T0ken-338811204-webtier"
    _, lines = machine.run(kernel(launched=launched))
    assert lines[0] == "trainhop: kaggle session 338811204"
    assert not any("s3cr3t" in line for line in lines)
    machine.environment["KAGGLE_CONTAINER_NAME"] = "something else"
    _, lines = machine.run(kernel(launched=launched))
    assert not any("kaggle session" in line for line in lines)


# --- Colab ---


@pytest.fixture
def colab_machine(tmp_path):
    """A folder as a Colab machine unpacks it; returns what starts it and gives how it ended and its log's lines."""

    class Person:
        def authorized_user(self):
            return {}

    def start(code: str, change=lambda folder: None, needs: Sequence[str] = ()) -> tuple[dict, list[str]]:
        launched = request(colab_account(Person()))  # pyright: ignore[reportArgumentType]

        colab_source.pack(launched, tmp_path / "bundle.zip", lambda _: light_wheel(code))
        folder = tmp_path / "colab"
        zipfile.ZipFile(tmp_path / "bundle.zip").extractall(folder)
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps(plan | {"requirements": list(needs)}))
        change(folder)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
        }
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.run([sys.executable, "boot.py"], cwd=folder, env=environment, check=True, timeout=120, **quiet)
        log = b"".join(path.read_bytes() for path in sorted(folder.glob("log.*")))
        return json.loads((folder / "ended.json").read_text()), log.decode().splitlines()

    return start


def test_a_colab_machine_says_the_same(colab_machine):
    how, lines = colab_machine(SPEAKS, needs=["no-such-thing==1.0"])
    said = refused(lines, causes.INSTALL)
    assert "no-such-thing==1.0" in said
    assert how == {"code": 2, "problem": said}


def test_a_file_that_colab_lost_is_named(colab_machine):
    how, lines = colab_machine(SPEAKS, lambda folder: (folder / "input.0").unlink())
    assert how["problem"] == refused(lines, causes.INPUT)
    assert "Colab did not provide input.0" in how["problem"]


def test_a_colab_worker_finds_its_files_and_its_words_are_kept(colab_machine):
    how, lines = colab_machine(TELLS)
    assert how == {"code": 0, "problem": ""}
    assert Path(json.loads(lines[0])[0]).name == "input.0"
