"""Hunts for runs that are called exact and are not: many small jobs, unbroken against cut, every byte and the label.

    python -m benchmarks.exact_hunt [--configurations N] [--json]

Each configuration is a family of models with a kind of rotary embedding, an adapter, an optimiser, a schedule, a batch
and dropout. It trains once without a cut. A second run saves after every step, is cut, and continues in another process
with another environment: the same machine with other hash seeds and time zones, or one that computes differently
(threads, vector instructions, kernels). The adapter and every tensor of the last checkpoint are compared. The last line
is the result. The exit code is 1 if a run that was called `exact` differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hunt_models import ONLY, OTHERS, ROPES, ROTARY, make
from benchmarks.report import Figure, finish, shown
from benchmarks.tiny_job import say

CONFIGURATIONS, STEPS, ROWS = 150, 4, 23
LEAST = 120
AT_ONCE = 2
"""Processes that train at the same time."""

SAME: dict[str, dict[str, str]] = {
    "hash seed": {"PYTHONHASHSEED": "7"},
    "zone": {"TZ": "Pacific/Kiritimati", "LANG": "C", "LC_ALL": "C.UTF-8"},
    "idle threads": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Environments that change no result, so that a resumed run must be exact."""
OTHER: dict[str, dict[str, str]] = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL": {"MKL_CBWR": "COMPATIBLE"},
}
"""Environments that may change the last bit, so that a resumed run must not be called exact."""
_OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit")
_SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
_BATCHES = ((4, 2), (4, 4), (3, 1), (30, 5))


@dataclass(frozen=True, kw_only=True)
class Hunted:
    """One configuration: its model, its job, its cuts, and the environment that each cut changes to."""

    number: int
    family: str
    rope: str
    spec: dict[str, Any]
    cuts: list[int]
    environment: str

    @property
    def is_same_machine(self) -> bool:
        """Whether the environment must not change a result."""
        return self.environment in SAME


@dataclass
class Result:
    """What was found of one configuration. `labels` are those of the sessions after a cut."""

    differing: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    error: str = ""


def configurations(count: int) -> list[Hunted]:
    """The first `count` configurations, always the same. Every pair of a family and a kind of rope comes first."""
    chance = random.Random(11)
    pairs = [(family, rope) for family in ROTARY for rope in ONLY.get(family, ROPES)]
    pairs += [(family, "none") for family in OTHERS]
    chance.shuffle(pairs)
    environments = [*SAME, *SAME, *OTHER]  # the more that must be exact, the more can be found
    found: list[Hunted] = []
    for number, (family, rope) in zip(range(count), itertools.cycle(pairs), strict=False):
        batch, micro = chance.choice(_BATCHES)
        # bitsandbytes quantises linear layers only, and the experts of a mixture are none.
        quantised = family != "mixtral" and chance.random() < 0.4
        busy = {"val_set_size": 0.15, "eval_steps": 1, "sample_prompts": ["hi"], "sample_max_tokens": 3}
        spec = {
            "adapter": "qlora" if quantised else "lora",
            "optimizer": chance.choice(_OPTIMIZERS),
            "lr_scheduler": chance.choice(_SCHEDULERS),
            "numerics": chance.choice((None, 2)),
            "global_batch_size": batch,
            "micro_batch_size": micro,
            "lora_dropout": chance.choice((0.0, 0.1)),
            "lora_r": chance.choice((2, 16)),
            "warmup_ratio": chance.choice((0.0, 0.4)),
            "weight_decay": chance.choice((0.0, 0.1)),
            "max_grad_norm": chance.choice((0.3, 1.0)),
            "train_on_inputs": chance.random() < 0.3,
            **(busy if chance.random() < 0.3 else {}),
        }
        environment = environments[number % len(environments)]
        cuts = sorted(chance.sample(range(1, STEPS), chance.choice((1, 1, 2))))
        found.append(Hunted(number=number, family=family, rope=rope, spec=spec, cuts=cuts, environment=environment))
    return found


def hunt(count: int, folder: Path) -> Iterator[Figure]:
    """Train everything and yield the figures."""
    hunted = configurations(count)
    _write_rows(folder / "rows.jsonl")
    _train(folder, [(f"begin {part}", {}, hunted[part::AT_ONCE]) for part in range(AT_ONCE)])
    environments = SAME | OTHER
    continued = [(name, env, [h for h in hunted if h.environment == name]) for name, env in environments.items()]
    _train(folder, continued)
    results = [_compared(folder, each) for each in hunted]
    yield from _figures(hunted, results)


def _figures(hunted: list[Hunted], results: list[Result]) -> Iterator[Figure]:
    errors = [r.error for r in results if r.error]
    exact = [r for r in results if not r.error and set(r.labels) == {"exact"}]
    lowered = [r for r in results if not r.error and set(r.labels) != {"exact"}]
    same = [r for h, r in zip(hunted, results, strict=True) if h.is_same_machine and not r.error]
    cuts = sum(len(h.cuts) for h in hunted)
    for each, result in zip(hunted, results, strict=True):
        if result.error or (result.differing and result in exact):
            say(f"  {asdict(each)}: {result}")
    yield Figure(
        name="configurations that ran",
        value=len(results) - len(errors),
        bar=f"all {len(hunted)}, at least {LEAST}",
        ok=not errors and len(results) >= LEAST,
    )
    yield Figure(name="families, kinds of rope, environments", value=_kinds(hunted), bar="listed", ok=True)
    yield Figure(name="cuts", value=cuts, bar="listed", ok=True)
    wrong = sum(bool(r.differing) for r in exact)
    yield Figure(name=f"runs called exact that differ, of {len(exact)}", value=wrong, bar="0", ok=wrong == 0)
    missed = sum(set(r.labels) != {"exact"} or bool(r.differing) for r in same)
    yield Figure(
        name=f"runs on the same machine that are not exact, of {len(same)}", value=missed, bar="0", ok=missed == 0
    )
    differ = sum(bool(r.differing) for r in lowered)
    yield Figure(name=f"runs called state-exact that differ, of {len(lowered)}", value=differ, bar="listed", ok=True)


def _kinds(hunted: list[Hunted]) -> str:
    return ", ".join(str(len({getattr(h, name) for h in hunted})) for name in ("family", "rope", "environment"))


def _write_rows(path: Path) -> None:
    lines = []
    for number in range(ROWS):
        answer = f"it is {number * number}. " * (1 + number % 3)
        turns = [{"role": "user", "content": f"{number} squared?"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _train(folder: Path, parts: list[tuple[str, dict[str, str], list[Hunted]]]) -> None:
    """Each part in a process of its own, `AT_ONCE` at a time."""
    waiting, running = [part for part in parts if part[2]], []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(_started(folder, *waiting.pop(0)))
        name, process = running.pop(0)
        if process.wait():
            raise RuntimeError(f"the process {name} ended with code {process.returncode}")
        say(f"  {name}: done")


def _started(
    folder: Path, name: str, environment: dict[str, str], hunted: list[Hunted]
) -> tuple[str, subprocess.Popen[bytes]]:
    file = folder / f"{name}.json"
    file.write_text(json.dumps([name.startswith("begin"), [asdict(each) for each in hunted]]))
    usual = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "benchmarks.exact_hunt", "--part", str(file)]
    log = (folder / f"{name}.log").open("wb")
    return name, subprocess.Popen(command, env=os.environ | usual | environment, stdout=log, stderr=log)


def run_part(file: Path) -> None:
    """The work of one process: whole runs and the first parts of cut ones, or the rest of cut ones."""
    begins, found = json.loads(file.read_text())
    for entry in found:
        each = Hunted(**entry)
        place = file.parent / str(each.number)
        place.mkdir(exist_ok=True)
        try:
            _begin(file.parent, place, each) if begins else _continue(file.parent, place, each)
        except Exception as error:  # noqa: BLE001  a configuration that fails is counted, and the others go on
            (place / "error.txt").write_text(f"{type(error).__name__}: {error}"[:500])


def _begin(folder: Path, place: Path, each: Hunted) -> None:
    model = folder / f"{each.family}-{each.rope}-{each.number}"
    make(model, each.family, each.rope)
    _session(folder, place / "whole", each, None, stop_at=None, saves=False)
    _session(folder, place / "cut 0", each, None, stop_at=each.cuts[0], saves=True)


def _continue(folder: Path, place: Path, each: Hunted) -> None:
    for number, stop_at in enumerate([*each.cuts[1:], None], 1):
        before = place / f"cut {number - 1}" / "last.safetensors"
        _session(folder, place / f"cut {number}", each, before, stop_at=stop_at, saves=False)


def _session(folder: Path, place: Path, each: Hunted, resume: Path | None, *, stop_at: int | None, saves: bool) -> None:
    """One session. Writes its last checkpoint and its label."""
    from benchmarks.gpu.sessions import Watcher
    from worker.shared import checkpoint_file
    from worker.shared.job_spec import JobSpec
    from worker.training.interface import TrainingJob
    from worker.training.train import train

    place.mkdir()
    model = folder / f"{each.family}-{each.rope}-{each.number}"
    rows = {"path": "rows", "rows": ROWS, "sha256": "0" * 64}
    usual = {
        "base_model": str(model),
        "datasets": [rows],
        "max_steps": STEPS,
        "sequence_len": 64,
        "learning_rate": 1e-2,
    }
    watcher = Watcher(stop_at=stop_at, save_at=frozenset(range(1, STEPS)) if saves else frozenset())
    job = TrainingJob(
        job="hunt",
        fence=1,
        spec=JobSpec.model_validate(usual | each.spec),
        datasets=(folder / "rows.jsonl",),
        resume=resume,
        work_dir=place,
    )
    trained = train(job, watcher)
    last = watcher.snapshots[-1]
    last.ready()
    checkpoint_file.write(place / "last.safetensors", last.tensors, last.manifest)
    label = watcher.restores[-1][1]
    (place / "result.json").write_text(json.dumps({"label": label, "adapter": trained.adapter_sha256}))


def _compared(folder: Path, each: Hunted) -> Result:
    from worker.shared import checkpoint_file

    place = folder / str(each.number)
    if (error := place / "error.txt").exists():
        return Result(error=error.read_text())
    sessions = [json.loads((place / f"cut {n}" / "result.json").read_text()) for n in range(1, len(each.cuts) + 1)]
    whole = json.loads((place / "whole" / "result.json").read_text())
    mine, _ = checkpoint_file.load(place / "whole" / "last.safetensors")
    theirs, _ = checkpoint_file.load(place / f"cut {len(each.cuts)}" / "last.safetensors")
    names = mine.keys() | theirs.keys()
    differing = [n for n in names if n not in mine or n not in theirs or mine[n].tobytes() != theirs[n].tobytes()]
    if whole["adapter"] != sessions[-1]["adapter"]:
        differing.append("the exported adapter")
    return Result(differing=sorted(differing), labels=[session["label"] for session in sessions])


def main() -> int:
    """Run the hunt and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=CONFIGURATIONS)
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part)
        return 0
    with tempfile.TemporaryDirectory(prefix="exact-hunt-") as folder:
        figures = list(map(shown, hunt(options.configurations, Path(folder))))
    return finish(figures, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
