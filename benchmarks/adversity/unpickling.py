"""Counts what is unpickled in a whole job: a real server, and workers that train, are killed, resume and export.

Every Python process of the run loads `_HOOK` before anything else. It notes each class that an unpickler looks up (an
audit event that no library can avoid), each call of `pickle.load`, `pickle.loads` and `pickle.Unpickler`, and each
`torch.load`. A process of its own proves first that the hook notes all of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.exact_resume import cut_at_random
from benchmarks.lab import lab
from benchmarks.report import Figure
from benchmarks.tiny_job import finished, job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama

CUTS = 2
"""Times that the worker is killed, so that a session resumes from a checkpoint."""

_HOOK = '''
import importlib.abc, importlib.machinery, json, os, pickle, sys, traceback

def note(what, detail=""):
    frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack(limit=8)[:-2]]
    line = {"pid": os.getpid(), "program": " ".join(sys.orig_argv[:4]), "what": what, "detail": detail, "from": frames}
    file = os.open(os.environ["UNPICKLING_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(line) + "\\n").encode())
    os.close(file)

def audit(event, args):
    if event == "pickle.find_class":
        note(event, f"{args[0]}.{args[1]}")

def counted(function, name):
    def call(*args, **more):
        note(name)
        return function(*args, **more)
    return call

class Unpickler(pickle.Unpickler):
    def load(self):
        note("pickle.Unpickler")
        return super().load()

class Torch(importlib.abc.MetaPathFinder):
    """Counts torch.load, which has an unpickler of its own for weights."""
    def find_spec(self, name, path, target=None):
        if name != "torch.serialization":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.load = counted(module.load, "torch.load")
        spec.loader.exec_module = exec_module
        return spec

sys.addaudithook(audit)
pickle.load, pickle.loads = counted(pickle.load, "pickle.load"), counted(pickle.loads, "pickle.loads")
pickle.Unpickler = Unpickler
sys.meta_path.insert(0, Torch())
note("started")
'''

_PROOF = """
import io, pickle, torch
pickle.loads(pickle.dumps(io.StringIO))
pickle.load(io.BytesIO(pickle.dumps([1])))
pickle.Unpickler(io.BytesIO(pickle.dumps({}))).load()
for safe in (True, False):
    file = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, file)
    torch.load(io.BytesIO(file.getvalue()), weights_only=safe)
"""
_MUST_FIRE = ("pickle.find_class", "pickle.loads", "pickle.load", "pickle.Unpickler", "torch.load")


@dataclass(frozen=True, kw_only=True)
class _Hook:
    """The hook in a folder of its own, and the file that it writes."""

    folder: Path

    def environment(self, log: str) -> dict[str, str]:
        """Variables with which a Python process, and all that it starts, load the hook."""
        path = os.pathsep.join([str(self.folder), str(Path(__file__).parents[2])])
        return {"PYTHONPATH": path, "UNPICKLING_LOG": str(self.folder / log)}

    def seen(self, log: str) -> list[dict[str, object]]:
        """What it noted."""
        file = self.folder / log
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def unpickling(folder: Path) -> Iterator[Figure]:
    """Prove the hook, then run a job with `CUTS` kills under it."""
    hook = _Hook(folder=folder / "hook")
    hook.folder.mkdir()
    (hook.folder / "sitecustomize.py").write_text(_HOOK)
    subprocess.run([sys.executable, "-c", _PROOF], env=os.environ | hook.environment("proof"), check=True)
    fired = Counter(str(line["what"]) for line in hook.seen("proof"))
    missing = [what for what in _MUST_FIRE if not fired[what]]
    yield Figure(
        name="the hook fires in a process that unpickles",
        value={what: fired[what] for what in _MUST_FIRE},
        bar="each at least once",
        ok=not missing,
    )
    _train(folder / "job", hook)
    lines = hook.seen("run")
    started = [line for line in lines if line["what"] == "started"]
    workers = {line["pid"] for line in started if "worker" in str(line["program"])}
    yield Figure(
        name="processes of the job with the hook, workers among them",
        value=[len(started), len(workers)],
        bar=f"at least {CUTS + 1} workers",
        ok=len(workers) > CUTS,
    )
    unpickled = [line for line in lines if line["what"] != "started"]
    yield Figure(
        name="objects unpickled in the whole job",
        value=len(unpickled) if not unpickled else unpickled[:5],
        bar="0",
        ok=not unpickled,
    )


def _train(folder: Path, hook: _Hook) -> None:
    model, data = make_tiny_llama(folder / "model"), write_rows(folder / "rows.jsonl")
    settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
    with lab(folder, reconcile_s=0.5, **settings) as server:
        pool = server.get("/accounts")["items"][0]["id"]
        environment = {"OMP_NUM_THREADS": "1"} | hook.environment("run")
        server.patch(f"/accounts/{pool}", {"config": {"env": environment}})
        job = server.post("/jobs", job_file(model, server.upload(data), "lora"))["id"]
        cut_at_random(server, job, CUTS, random.Random("unpickling"))
        server.wait_for(lambda: finished(server, job), "the job's end", 600, 0.2)
