"""Curves at W&B, Trackio, TensorBoard and MLflow, by their own libraries, while a worker, writers and the server die.

MLflow's and Trackio's own servers run, and an emulated one of W&B. The libraries are in an environment of their own,
which is made here unless TRAINHOP_TRACKERS_PYTHON names one. Curves are read back with the libraries.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.wandb import WandbEmulator
from tests.helpers.ports import quiet_port
from worker.shared.process import tied

STEPS = 600
PATIENCE_S = 400.0
PACKAGES = ("mlflow>=3.17,<4", "tensorboard>=2.20", "trackio>=0.43,<1", "wandb>=0.31,<1")
NAMES = ("wandb", "trackio", "tensorboard", "mlflow")
TOKEN = "write-token"

READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("trainhop").experiment_id
runs = client.search_runs([experiment])
steps = [(m.step, m.value) for run in runs for m in client.get_metric_history(run.info.run_id, "loss")]
print(json.dumps({"runs": len(runs), "state": runs[0].info.status, "loss": steps}))
"""
READ_TRACKIO = """
import json, sys
from trackio.remote_client import RemoteClient
client = RemoteClient(sys.argv[1], write_token=sys.argv[2])
runs = client.predict(api_name="/get_runs_for_project", project="trainhop")
logs = client.predict(api_name="/get_logs", project="trainhop", run=runs[0]["name"], run_id=runs[0]["id"])
loss = [(row["step"], row["loss"]) for row in logs if "loss" in row]
print(json.dumps({"runs": len(runs), "state": "", "loss": loss}))
"""
READ_TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
found.Reload()
print(json.dumps({"runs": 1, "state": "", "loss": [(each.step, each.value) for each in found.Scalars("loss")]}))
"""
SERVE_TRACKIO = """
import sys, time, trackio
trackio.show(open_browser=False, block_thread=False, server_port=int(sys.argv[1]))
time.sleep(100_000)
"""


def figures(folder: Path) -> Iterator[Figure]:
    """One run of each tracker with each step once, over three sessions and kills of everything on this side."""
    with ExitStack() as stack:
        python = _environment(folder)
        services = _Services(stack, folder, python)
        model = make_tiny_llama(folder / "models" / "base")
        settings: dict[str, object] = {
            "allowed_folders": json.dumps([str(model.parent)]),
            "offline": True,
            "report_every_s": 0.2,
            "trackers_python": python,
            "local_slots": 1,
        }
        server = stack.enter_context(lab(folder / "lab", **settings))
        story = _Story(server, services, model, folder)
        story.tell()
        curve = {row["step"]: row["value"] for row in server.get(f"/jobs/{story.job}/metrics", name="loss")["items"]}
        sessions = len(server.get(f"/jobs/{story.job}/sessions")["items"])
        found = {name: services.read(name, server, story.job) for name in NAMES}
    yield Figure(name="sessions of the job", value=sessions, bar=">= 3", ok=sessions >= 3)
    kills = story.kills
    yield Figure(name="kills", value=kills, bar="worker, server and writer", ok=min(kills.values()) > 0)
    for name in NAMES:
        yield _figure(name, found[name], curve)


def _figure(name: str, found: dict[str, Any], curve: dict[int, float]) -> Figure:
    steps = [step for step, _ in found["loss"]]
    once = steps == list(range(1, STEPS + 1))
    same = all(abs(value - curve[step]) <= 1e-6 * abs(curve[step]) for step, value in found["loss"])
    value = {"runs": found["runs"], "steps": len(steps), "different": len(set(steps)), "state": found["state"]}
    ok = once and same and found["runs"] == 1 and found["state"] in ("", "FINISHED")
    return Figure(name=f"curve at {name}", value=value, bar=f"1 run, {STEPS} steps, each once, the job's values", ok=ok)


def _environment(folder: Path) -> Path:
    if given := os.environ.get("TRAINHOP_TRACKERS_PYTHON"):
        return Path(given)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
    python = folder / "environment" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
    return python


class _Services:
    """The servers of the trackers."""

    def __init__(self, stack: ExitStack, folder: Path, python: Path) -> None:
        self._python, self._folder = python, folder
        self.wandb = stack.enter_context(WandbEmulator())
        # Pieces of a run's stream that are kept and not answered, or not kept.
        self.wandb.faults = ["cut", "500", "cut"]
        self.mlflow = self._start(
            stack,
            "mlflow",
            *("-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port"),
        )
        self.trackio = self._start(stack, "trackio", "-c", SERVE_TRACKIO)

    def _start(self, stack: ExitStack, name: str, *arguments: str) -> str:
        port = quiet_port()
        more = {"TRACKIO_DIR": str(self._folder / "trackio"), "TRACKIO_WRITE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
        log = stack.enter_context((self._folder / f"{name}.log").open("wb"))
        command = tied([str(self._python), *arguments, str(port)])
        environment = os.environ | more | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(
            command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)  # MLflow's server has processes of its own
        url = f"http://127.0.0.1:{port}"
        Lab.wait_for(lambda: _answers(url), f"the server of {name}", PATIENCE_S, 0.2)
        return url

    def logins(self) -> dict[str, dict[str, str]]:
        return {
            "wandb": {"url": self.wandb.url, "key": "0" * 40},
            "trackio": {"url": self.trackio, "key": TOKEN},
            "mlflow": {"url": self.mlflow},
        }

    def read(self, name: str, server: Lab, job: str) -> dict[str, Any]:
        """Runs, the state of the first one, and all its losses in their order."""
        if name == "wandb":
            rows = [(row["_step"], row["loss"]) for run in self.wandb.runs.values() for row in run.history]
            return {"runs": len(self.wandb.runs), "state": "", "loss": rows}
        program, *arguments = {
            "mlflow": (READ_MLFLOW, self.mlflow),
            "trackio": (READ_TRACKIO, self.trackio, TOKEN),
            "tensorboard": (READ_TENSORBOARD, str(server.data / "tensorboard" / job)),
        }[name]
        done = subprocess.run([self._python, "-W", "ignore", "-c", program, *arguments], stdout=-1, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False, timeout=5).status_code < 500
    return False


class _Story:
    """Three sessions: the first worker is killed, the second session is paused. Writers and the server are killed."""

    def __init__(self, server: Lab, services: _Services, model: Path, folder: Path) -> None:
        self._server = server
        self.kills = {"worker": 0, "server": 0, "writer": 0}
        for tracker, login in services.logins().items():
            server.put(f"/trackers/{tracker}", login)
        file = {
            "name": "tracked",
            "base_model": str(model),
            "adapter": "lora",
            "lora_r": 4,
            "sequence_len": 160,
            "datasets": [{"path": server.upload(write_rows(folder / "rows.jsonl"))}],
            "max_steps": STEPS,
            "global_batch_size": 8,
            "checkpoint": {"max_interval_s": 0.5},
            "report_to": list(NAMES),
        }
        self.job = server.post("/jobs", file)["id"]

    def tell(self) -> None:
        """Until every tracker knows the end."""
        wait = self._server.wait_for
        wait(lambda: self._head() > 0 and self._server.workers(), "a checkpoint", PATIENCE_S)
        self._kill_worker()
        self._kill_writer()
        before = self._head()
        wait(lambda: self._head() > before or self._is_over(), "another checkpoint", PATIENCE_S)
        if not self._is_over():
            self._server.post(f"/jobs/{self.job}:pause")
            wait(lambda: self._server.job(self.job)["state"] in ("paused", "succeeded"), "the pause", PATIENCE_S)
        self._kill_server()
        self._kill_writer()
        if self._server.job(self.job)["state"] == "paused":
            self._server.post(f"/jobs/{self.job}:resume")
        wait(self._is_over, "the end of the job", PATIENCE_S)
        self._kill_server()
        wait(self._all_told, "the trackers", PATIENCE_S, 0.2)

    def _head(self) -> int:
        found = [c["step"] for c in self._server.get(f"/jobs/{self.job}/checkpoints")["items"]]
        return max(found, default=0)

    def _is_over(self) -> bool:
        return self._server.job(self.job)["state"] == "succeeded"

    def _all_told(self) -> bool:
        with suppress(httpx.TransportError):
            runs = self._server.get(f"/jobs/{self.job}/trackers")["items"]
            return all(run["told"] == "succeeded" for run in runs)
        return False

    def _kill_worker(self) -> None:
        for pid in self._server.workers().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills["worker"] += 1

    def _kill_writer(self) -> None:
        """Kill all writers at work a moment after there are some."""
        writers = self._server.wait_for(_writers, "a writer", PATIENCE_S, 0.05)
        time.sleep(1.5)
        for pid in _writers() or writers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills["writer"] += 1

    def _kill_server(self) -> None:
        """Kill the server while a writer is at work."""
        self._server.wait_for(_writers, "a writer", PATIENCE_S, 0.05)
        time.sleep(1.0)
        self._server.kill()
        self.kills["server"] += 1
        self._server.up()


def _writers() -> list[int]:
    """The processes that write to a tracker."""
    found = list[int]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"trackers/child.py") for word in words[:4]):
                found.append(int(process.name))
    return found
