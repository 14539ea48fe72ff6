"""What ends a session that does not get to its first step: real processes, with limits of seconds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.processes import assert_gone
from worker.agent import inputs
from worker.agent.endings import ending_of
from worker.agent.limits import Limits
from worker.shared import causes
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Assignment, Grant, GrantKind, Release, Ticket
from worker.training.interface import PermanentError, UnfitMachineError

PATIENCE_S = 90.0
ROW = b'{"prompt": "a", "completion": "b"}\n'
HANGS = "import threading\nprint('import has begun', flush=True)\nthreading.Event().wait()\n"
LATER = "late"
"""A file in a session's folder. An hour has passed for the session as soon as it exists."""
HOLDS_THE_INTERPRETER = "import ctypes\nprint('import has begun', flush=True)\nctypes.PyDLL(None).sleep(3600)\n"

WITHOUT_IMPORTS = "from worker.training import smoke\nsmoke.check = lambda spec: {}"
"""What a session runs first that ends before it trains: the import of the libraries takes most of its time."""


class Worker:
    """A session of its own process on a machine that cannot call; what it says lies in its outbox."""

    def __init__(
        self,
        home: Path,
        *,
        base: str,
        data: Grant,
        seconds: float,
        limits: dict[str, float],
        env: dict[str, str],
        prepare: str,
    ) -> None:
        spec = {"base_model": base, "datasets": [{"path": "d", "rows": 1, "sha256": "0" * 64}], "max_steps": 1}
        assignment = Assignment(
            job="j", lease="l", fence=1, spec=JobSpec.model_validate(spec), seconds_left=seconds, datasets=(data,)
        )
        ticket = Ticket(lease="l", token="t", budget_s=seconds, assignment=assignment)
        self.home = home
        (home / "ticket.json").write_text(ticket.model_dump_json())
        code = f"{prepare}\nimport sys\nfrom tests.worker.begin import main\nsys.exit(main())"
        command = [sys.executable, "-c", code, str(home / "ticket.json"), json.dumps(limits)]
        self._output = (home / "output.log").open("ab")
        self.process = subprocess.Popen(command, env=os.environ | env, stdout=self._output, stderr=self._output)

    @property
    def output(self) -> str:
        return (self.home / "output.log").read_text()

    def end(self) -> Release | None:
        """Wait for its end; the goodbye that it wrote down."""
        self.process.wait(PATIENCE_S)
        said = [json.loads(line) for line in (self.home / "keep" / "outbox.jsonl").read_text().splitlines()]
        goodbyes = [Release.model_validate(message) for message in said if message["kind"] == "release"]
        assert len(goodbyes) <= 1, self.output
        assert not [message for message in said if message["kind"] == "finish"], self.output
        return goodbyes[0] if goodbyes else None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a session in which everything is there and quick, but for what a test changes."""
    workers: list[Worker] = []

    def make(**changes: Any) -> Worker:
        (tmp_path / "rows.jsonl").write_bytes(ROW)
        plain = {
            "base": str(tmp_path),
            "data": Grant(key="d", kind=GrantKind.DATASET, path=str(tmp_path / "rows.jsonl")),
            "seconds": 600.0,
            "limits": {},
            "env": {},
            "prepare": WITHOUT_IMPORTS,
        }
        workers.append(Worker(tmp_path, **(plain | changes)))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def hub() -> Iterator[HubEmulator]:
    """One that sends a part of the weights and then nothing."""
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w" * 80_000}
    with HubEmulator(Repo(id="org/model", files=files)) as running:
        running.stall("GET /signed/", after=10_000)
        yield running


def instead_of(module: str, source: str, folder: Path) -> dict[str, str]:
    """The environment of a machine on which a library is this."""
    (folder / "path" / module).mkdir(parents=True)
    (folder / "path" / module / "__init__.py").write_text(source)
    return {"PYTHONPATH": str(folder / "path")}


def clock_that_jumps(folder: Path) -> str:
    """What else a session may run first, so that its limits do not depend on how busy this machine is."""
    return (
        f"import os, time\nclock = time.monotonic\nlater = {str(folder / LATER)!r}\n"
        "time.monotonic = lambda: clock() + 3600 * os.path.exists(later)\n"
        "from worker.agent import limits\nlimits.MAX_WAIT_S = 0.1\n"
    )


@contextmanager
def store(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a file in a store that answers like this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/d"
        finally:
            server.shutdown()
            thread.join()


def wait_for(worker: Worker, words: str) -> None:
    """Until a worker has printed this."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if words in worker.output or worker.process.poll() is not None:
            break
        pause.wait(0.05)
    assert words in worker.output, worker.output


def test_a_hub_that_stalls_costs_minutes_and_not_a_session(
    begin: Callable[..., Worker], hub: HubEmulator, tmp_path: Path
) -> None:
    """Guard: without `bounded` the session lasted to its end, and the next ones too."""
    worker = begin(base="org/model", limits={"stall_s": 4.0}, env=hub.environment(tmp_path / "hub"))
    said = worker.end()
    assert said is not None
    assert (said.reason, said.cause, said.step) == ("unfit", causes.MODEL, 0)
    assert said.detail.startswith("the download of org/model stalled")
    assert worker.process.returncode in (0, 4)


def test_asked_to_leave_while_the_model_is_downloaded(
    begin: Callable[..., Worker], hub: HubEmulator, tmp_path: Path
) -> None:
    """Guard: without the watch SIGTERM was looked at when a step was done, which never came."""
    worker = begin(base="org/model", env=hub.environment(tmp_path / "hub"))
    assert hub.stalled.wait(PATIENCE_S)
    worker.process.send_signal(signal.SIGTERM)
    said = worker.end()
    assert said is not None
    assert (said.reason, said.cause) == ("drained", "")


def test_time_is_up_while_the_model_is_downloaded(
    begin: Callable[..., Worker], hub: HubEmulator, tmp_path: Path
) -> None:
    """Guard: without the look at the budget the machine ended it, and the server heard nothing."""
    worker = begin(
        base="org/model",
        seconds=3000.0,
        limits={"stall_s": 7200.0},
        env=hub.environment(tmp_path / "hub"),
        prepare=clock_that_jumps(tmp_path) + WITHOUT_IMPORTS,
    )
    assert hub.stalled.wait(PATIENCE_S)
    (tmp_path / LATER).touch()
    said = worker.end()
    assert said is not None
    assert (said.reason, said.cause) == ("deadline", causes.MODEL)
    assert said.detail.startswith("this session reached its time limit while it was downloading the base model")


def test_asked_to_leave_while_the_hub_limits_requests(
    begin: Callable[..., Worker], hub: HubEmulator, tmp_path: Path
) -> None:
    hub.rules.clear()
    hub.rules.add("", times=0, status=429, headers={"Retry-After": "600"})
    worker = begin(base="org/model", env=hub.environment(tmp_path / "hub"))
    wait_for(worker, "Hugging Face limits requests from this address; the download of org/model resumes in 600 s")
    worker.process.send_signal(signal.SIGTERM)
    said = worker.end()
    assert said is not None
    assert said.reason == "drained"


def test_a_store_that_sends_half_a_file_is_asked_again_and_then_left(begin: Callable[..., Worker]) -> None:
    """Guard: without `data_s` the store was asked until the session's time was over; without `stall_s` once, for
    ever."""
    asked = []
    over = threading.Event()

    def half(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.headers.get("Range"))
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        if len(asked) == 1:
            request.wfile.write(ROW)
            request.wfile.flush()
        over.wait(PATIENCE_S)

    with store(half) as url:
        data = Grant(key="d", kind=GrantKind.DATASET, url=url, sha256="0" * 64)
        said = begin(data=data, limits={"stall_s": 1.0, "data_s": 4.0}).end()
        over.set()
    assert said is not None
    assert (said.reason, said.cause) == ("unfit", causes.DATA)
    assert "the store sent no data of d for 4 s" in said.detail
    assert len(asked) > 1


def test_asked_to_leave_in_the_middle_of_the_training_data(begin: Callable[..., Worker]) -> None:
    started, over = threading.Event(), threading.Event()

    def half(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(ROW)
        request.wfile.flush()
        started.set()
        over.wait(PATIENCE_S)

    with store(half) as url:
        worker = begin(data=Grant(key="d", kind=GrantKind.DATASET, url=url))
        assert started.wait(PATIENCE_S)
        worker.process.send_signal(signal.SIGTERM)
        said = worker.end()
        over.set()
    assert said is not None
    assert said.reason == "drained"


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_an_import_that_hangs(begin: Callable[..., Worker], tmp_path: Path, library: str) -> None:
    """The first is imported to look at the machine. Guard: without the limit of `Part.IMPORTS` each lasted as long as
    the session.
    """
    worker = begin(
        seconds=7200.0,
        limits={"imports_s": 600.0},
        env=instead_of(library, HANGS, tmp_path),
        prepare=clock_that_jumps(tmp_path),
    )
    wait_for(worker, "import has begun")
    (tmp_path / LATER).touch()
    said = worker.end()
    assert said is not None
    assert (said.reason, said.cause) == ("unfit", causes.IMPORTS)
    assert said.detail.startswith("importing the training libraries took longer than 600 s")


def two_processes(folder: Path, follower: str, group_s: float = PATIENCE_S) -> dict[str, Any]:
    """Changes of a session that believes in a second GPU; the process for it runs `follower` before its first
    import."""
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(
        "import ctypes, os, sys\nif 'worker.training.gpu_follower' in sys.orig_argv:\n"
        f"    print('follower', os.getpid(), flush=True)\n    {follower}\n"
    )
    lead = "from worker.training import distributed, ranks; distributed.world_size = lambda *_: 2"
    env = {"PYTHONPATH": str(folder / "path"), "OMP_NUM_THREADS": "1"}
    return {"limits": {"group_s": group_s}, "env": env, "prepare": lead}


def follower_of(folder: Path) -> int:
    """The process for the second GPU, once it has begun."""
    log, pause = folder / "rank-1" / "output.log", threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if log.exists() and (found := re.search(r"follower (\d+)\n", log.read_text())):
            return int(found[1])
        pause.wait(0.05)
    raise AssertionError("no process began for the second GPU")


@pytest.mark.parametrize(
    ("follower", "group_s", "words"),
    [
        ("ctypes.PyDLL(None).sleep(3600)", 8.0, "starting a process for each GPU took longer than 8 s"),
        (
            "print('no such device', flush=True); os._exit(3)",
            PATIENCE_S,
            "the process for another GPU of this machine ended with code 3",
        ),
    ],
)
def test_a_process_for_another_gpu_that_never_comes(
    begin: Callable[..., Worker], tmp_path: Path, follower: str, group_s: float, words: str
) -> None:
    """Two processes on a machine without a GPU. Guard: without the limit of `Part.GROUP`, and without `Hooks.lost`, the
    first one waited for half an hour, and the session was lost without a word. Without `tied` the second one hung on
    alone.
    """
    said = begin(**two_processes(tmp_path, follower, group_s)).end()
    assert said is not None
    assert (said.reason, said.cause) == ("unfit", causes.GPUS)
    assert said.detail.startswith(words)
    assert_gone(follower_of(tmp_path))


def test_a_process_for_another_gpu_ends_with_a_session_that_is_killed(
    begin: Callable[..., Worker], tmp_path: Path
) -> None:
    """Guard: without `tied` in `_follow` it hung on alone, with its GPU."""
    worker = begin(**two_processes(tmp_path, "ctypes.PyDLL(None).sleep(3600)"))
    follower = follower_of(tmp_path)
    worker.process.kill()
    assert_gone(follower)


def test_asked_to_leave_while_an_import_hangs_in_compiled_code(begin: Callable[..., Worker], tmp_path: Path) -> None:
    """Guard: without `set_wakeup_fd` Python's own handler waited for the main thread, which never came back."""
    hangs_in_c = "import ctypes\nprint('import has begun', flush=True)\nwhile True: ctypes.CDLL(None).pause()\n"
    blind = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + hangs_in_c
    worker = begin(env=instead_of("torch", blind, tmp_path))
    wait_for(worker, "import has begun")
    worker.process.send_signal(signal.SIGTERM)
    said = worker.end()
    assert said is not None
    assert said.reason == "drained"


def test_what_holds_the_interpreter_ends_all_the_same(begin: Callable[..., Worker], tmp_path: Path) -> None:
    """Nobody can say a word then; the log says where it stood. Guard: without the last resort it lasted for ever."""
    limits = {"imports_s": 2.0, "last_resort_s": 1.0}
    worker = begin(limits=limits, env=instead_of("torch", HOLDS_THE_INTERPRETER, tmp_path))
    assert worker.end() is None
    assert worker.process.returncode == 1
    assert "torch/__init__.py" in worker.output


def test_a_disk_that_is_full(begin: Callable[..., Worker], tmp_path: Path) -> None:
    """Guard: without `full_disk` it was a failure of the job, and counted as one."""
    (tmp_path / ".incoming-dataset-0").symlink_to("/dev/full")

    def whole(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(ROW)))
        request.end_headers()
        request.wfile.write(ROW)

    with store(whole) as url:
        said = begin(data=Grant(key="d", kind=GrantKind.DATASET, url=url)).end()
    assert said is not None
    assert (said.reason, said.cause, said.has_remedy) == ("unfit", causes.DISK, True)
    assert said.detail.startswith("the disk of this machine is full: ")


def test_a_full_disk_is_known_by_words_as_well() -> None:
    """Compiled libraries say it in their own errors."""
    try:
        raise RuntimeError("Data processing error: I/O error: No space left on device (os error 28)")
    except RuntimeError as error:
        ending = ending_of(error, None)
    assert ending.cause == causes.DISK


@pytest.mark.parametrize(
    ("error", "has_remedy"),
    [
        (UnfitMachineError("16 GiB are needed; use a larger card", causes.MEMORY), True),
        (UnfitMachineError("the store sent no data", causes.DATA, has_remedy=False), False),
        (PermanentError("dataset a.jsonl: line 3 is empty; delete it"), True),
        (ValueError("no"), False),
    ],
)
def test_the_last_message_tells_whether_it_has_a_remedy(error: Exception, has_remedy: bool) -> None:
    """Guard: without the field in `ending_of` the server added its own remedy after the worker's."""
    assert ending_of(error, None).has_remedy is has_remedy


def granted_file(folder: Path, key: str, data: bytes) -> Grant:
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return Grant(key=key, kind=GrantKind.MODEL, path=str(path), sha256=path.name)


def test_a_model_that_the_server_hands_out(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"w"}
    grants = [granted_file(tmp_path, f"model/{name}", data) for name, data in files.items()]
    for _ in range(2):
        folder = inputs.fetch_granted_model(grants, tmp_path / "model", Limits())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("key", ["model/../x", "model/a/b", "model/", "model/..", "other/x", "model/a\\b"])
def test_a_models_file_stays_in_its_folder(tmp_path: Path, key: str) -> None:
    """Guard: without the look at the name a file went wherever the key said."""
    with pytest.raises(PermanentError, match="the server sent the invalid model file name"):
        inputs.fetch_granted_model([granted_file(tmp_path, key, b"x")], tmp_path / "model", Limits())
