"""Running pushed scripts as real processes, with the folders that a kernel sees, under a wall-clock limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from tests.emulators.kaggle.state import TERMINAL, Kernel, World
from tests.helpers import forked_process


class Sessions:
    """Starts, times and ends kernels.

    A kernel's `src`, `working` and `input` lie in one private folder and the script starts in `working`, as the real
    one starts in `/kaggle/working`. `time_factor` scales every limit. With `outputs_after_kill` false a run that was
    cut at its limit shows no files, as has been reported of the real service. Scripts run in `python`, this process's
    own unless another is named; `environment` is added to what a kernel finds. While `open_gate` is clear, kernels stay
    QUEUED; while `save_gate` is, a script that is over stays RUNNING, and shows no file. With `warning_s` a SIGTERM
    comes that long before the end at a limit. Without `outputs_after_cancel` a cancelled run shows no file. `layout` is
    how inputs lie: "nested" (`input/datasets/OWNER/SLUG`), "flat" (`input/SLUG`), either with " links", where such a
    folder is a symbolic link, "linked" (nested, each file a symbolic link), or "lost".
    """

    def __init__(
        self,
        world: World,
        *,
        time_factor: float = 1.0,
        outputs_after_kill: bool = True,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._world, self._python, self.environment = world, python, dict(environment or {})
        self.time_factor, self.outputs_after_kill = time_factor, outputs_after_kill
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.save_gate = threading.Event()
        self.save_gate.set()
        self.layout, self.warning_s, self.outputs_after_cancel = "nested", 0.0, True
        self.edit: Callable[[str], str] = lambda source: source
        """What becomes of a pushed script before it runs."""
        self._threads: list[threading.Thread] = []

    def start(self, kernel: Kernel) -> None:
        """Queue a kernel; returns at once."""
        thread = threading.Thread(target=self._run, args=(kernel,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def kill(self, kernel: Kernel, *, outputs: bool) -> None:
        """End a run as its limit would."""
        kernel.keeps_outputs = outputs
        self._end(kernel, "CANCEL_ACKNOWLEDGED")

    def cancel(self, kernel: Kernel) -> None:
        """End a run as its owner's cancel does: once saved, what it wrote is served. One that ignores it goes on."""
        if kernel.ignores_cancel:
            return
        kernel.keeps_outputs &= self.outputs_after_cancel
        with self._world.lock:
            saved = kernel.status in TERMINAL  # a stuck one, which only seemed to run
            kernel.stuck, kernel.ending = False, "CANCEL_ACKNOWLEDGED"
            kernel.status = "CANCEL_REQUESTED"
            if kernel.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(kernel.pid, signal.SIGKILL)
        if saved:
            thread = threading.Thread(target=self._acknowledge, args=(kernel,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def delete(self, kernel: Kernel) -> None:
        """End a run and everything of it; its time is not charged."""
        kernel.stuck, kernel.deleted = False, True
        self._end(kernel, "CANCEL_ACKNOWLEDGED")

    def close(self) -> None:
        """End every run and wait for its threads."""
        self.open_gate.set()
        self.save_gate.set()
        for kernel in list(self._world.kernels.values()):
            self.delete(kernel)
        for thread in self._threads:
            thread.join(30)

    def _run(self, kernel: Kernel) -> None:
        self.open_gate.wait()
        with self._world.lock:
            if kernel.deleted or kernel.ending:
                kernel.status = kernel.ending or kernel.status
                return
            self._lay_out(kernel)
            process = subprocess.Popen(
                [self._python, "-u", str(kernel.root / "src" / "script.py")],
                cwd=kernel.root / "working",
                env=self._environment(kernel),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            kernel.pid, kernel.status, kernel.began = process.pid, "RUNNING", time.monotonic()
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=_listen, args=(kernel, "stdout", process.stdout), daemon=True),
            threading.Thread(target=_listen, args=(kernel, "stderr", process.stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        limit = threading.Timer(kernel.timeout_s * self.time_factor, self._out_of_time, (kernel,))
        limit.daemon = True
        limit.start()
        warning = threading.Timer(kernel.timeout_s * self.time_factor - self.warning_s, _warn, (kernel,))
        warning.daemon = True
        if self.warning_s:
            warning.start()
        code = process.wait()
        limit.cancel()
        warning.cancel()
        for reader in readers:
            reader.join()
        kernel.pid = None
        self.save_gate.wait()
        self._finish(kernel, code)

    def _acknowledge(self, kernel: Kernel) -> None:
        self.save_gate.wait()
        kernel.status = kernel.ending

    def _out_of_time(self, kernel: Kernel) -> None:
        self.kill(kernel, outputs=self.outputs_after_kill)

    def _end(self, kernel: Kernel, status: str) -> None:
        with self._world.lock:
            if kernel.status in ("COMPLETE", "ERROR"):
                return
            if kernel.pid is None:
                kernel.status = status
            else:
                kernel.ending = status  # told once the run is over: its files are served then, and not before
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(kernel.pid, signal.SIGKILL)
        with kernel.changed:
            kernel.changed.notify_all()

    def _finish(self, kernel: Kernel, code: int) -> None:
        with self._world.lock:
            if kernel.status in ("RUNNING", "CANCEL_REQUESTED"):
                kernel.status = kernel.ending or ("COMPLETE" if code == 0 else "ERROR")
            if kernel.gpu and not kernel.deleted:
                self._world.people[kernel.owner].used_s += time.monotonic() - kernel.began
            kernel.pid = None
        with kernel.changed:
            kernel.changed.notify_all()
        if kernel.deleted:
            shutil.rmtree(kernel.root, ignore_errors=True)

    def _lay_out(self, kernel: Kernel) -> None:
        for name in ("src", "working", "tmp", "home", "input"):
            (kernel.root / name).mkdir(parents=True)
        (kernel.root / "src" / "script.py").write_text(self.edit(kernel.source))
        for source in kernel.datasets:
            owner, slug = source.split("/")
            dataset = self._world.datasets.get((owner, slug))
            if dataset is None or dataset.status != "READY" or self.layout == "lost":
                continue  # a push does not wait for a dataset that is still being processed
            self._bring(kernel, "datasets", source, {path.name: path for path in dataset.folder.iterdir()})
        for source in kernel.kernels:
            owner, slug = source.split("/")
            made = self._world.kernels.get((owner, slug))
            if made is not None and made.status == "COMPLETE":
                self._bring(kernel, "notebooks", source, dict(made.outputs()))

    def _bring(self, kernel: Kernel, kind: str, source: str, files: dict[str, Path]) -> None:
        """Lay files below `input`, in the `layout` that is asked for."""
        there = kernel.root / "input" / (source.split("/")[1] if "flat" in self.layout else f"{kind}/{source}")
        place = kernel.root / "mounts" / source if "links" in self.layout else there
        for name, path in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (os.symlink if self.layout == "linked" else os.link)(path, place / name)
        if place != there:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(place, target_is_directory=True)

    def _environment(self, kernel: Kernel) -> dict[str, str]:
        """What a kernel finds in its environment: nothing of whoever runs the emulator but where programs lie."""
        return {
            "PATH": os.pathsep.join((str(Path(self._python).parent), os.environ.get("PATH", os.defpath))),
            "LANG": "C.UTF-8",
            "HOME": str(kernel.root / "home"),
            "PYTHONUSERBASE": str(kernel.root / "home" / ".local"),
            "TMPDIR": str(kernel.root / "tmp"),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_CONTAINER_NAME": f"kaggle_{secrets.token_urlsafe(32)}-{kernel.session}-webtier",
        } | (self._forks() | self.environment)

    def _forks(self) -> dict[str, str]:
        """Only a process that was started in the usual way gets a signal to all processes of the machine."""
        return {} if self.warning_s or self._python != sys.executable else forked_process.machine_variables()


def _warn(kernel: Kernel) -> None:
    if kernel.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, signal.SIGTERM)


def _listen(kernel: Kernel, stream: str, pipe: IO[bytes]) -> None:
    with pipe:
        for line in pipe:
            event = {
                "stream_name": stream,
                "time": round(time.monotonic() - kernel.began, 6),
                "data": line.decode(errors="replace"),
            }
            with kernel.changed:
                kernel.events.append(event)
                kernel.changed.notify_all()
