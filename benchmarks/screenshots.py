"""Takes the dashboard's pictures in README and docs (about two minutes).

    python -m benchmarks.screenshots [FOLDER]

A real server trains a tiny model with random weights on the example's data. Its first machine is killed, its second is
told to hand off, and the pictures are taken while the third one trains.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.browser import browser
from benchmarks.lab import Lab, lab
from benchmarks.tiny_model import make_tiny_llama

EXAMPLES = Path(__file__).parent.parent / "examples"
TARGET = EXAMPLES.parent / "docs" / "pictures"
STEPS = 600
PICTURES = (
    ("dashboard-job", "/jobs/{job}", "light", 1280, 1010),
    ("dashboard-submit", "/submit?clone={job}", "light", 1280, 1010),
    ("dashboard-phone", "/jobs/{job}", "dark", 390, 1010),
)


def main() -> None:
    """Write the pictures to the folder on the command line, by default `docs/pictures/`."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as temporary:
        folder = Path(temporary)
        model = make_tiny_llama(folder / "models" / "tiny-llama")
        settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
        with lab(folder / "lab", **settings, reconcile_s=0.5) as server:
            job = travel(server, model)
            take(server, job, target)
            server.post(f"/jobs/{job}:cancel")


def travel(server: Lab, model: Path) -> str:
    """A job that lost its first machine and was handed off by the second. Returns when the third one trains."""
    job = server.post("/jobs", job_file(server, model))["id"]
    lease = at_step(server, STEPS // 4)
    os.kill(server.workers()[lease], signal.SIGKILL)
    at_step(server, STEPS // 2, after=1, job=job)
    server.post(f"/jobs/{job}:handover")
    at_step(server, 2 * STEPS // 3, after=2, job=job)
    return job


def job_file(server: Lab, model: Path) -> dict[str, Any]:
    """The example's data with an untrained model."""
    return {
        "name": "trail-guide",
        "base_model": str(model),
        "datasets": [{"path": server.upload(EXAMPLES / "trail-guide.jsonl")}],
        "max_steps": STEPS,
        "global_batch_size": 8,
        "sequence_len": 192,
        "learning_rate": 5e-3,
        "lora_r": 8,
        "val_set_size": 0.05,
        "eval_steps": STEPS // 6,
        "sample_prompts": ["Is there a train tonight?"],
        "checkpoint": {"max_interval_s": 6},
    }


def at_step(server: Lab, step: int, *, after: int = 0, job: str = "") -> str:
    """The lease whose worker has reached this step, in a session with at least `after` sessions before it."""

    def find_lease() -> str | None:
        if after and server.job(job)["handoffs"] < after:
            return None
        return next((lease for lease in server.workers() if server.last_step(lease) >= step), None)

    return server.wait_for(find_lease, f"step {step}", 240, 0.2)


def take(server: Lab, job: str, target: Path) -> None:
    """One picture of each page, as small as the format's optimiser makes it."""
    address = str(server.client.base_url).removesuffix("/api/v1/").removesuffix("/api/v1")
    with browser() as running:
        for name, path, scheme, width, height in PICTURES:
            context = running.new_context(color_scheme=scheme, viewport={"width": width, "height": height})  # pyright: ignore[reportArgumentType]
            page = context.new_page()
            page.goto(server.post("/login-links")["url"])
            page.wait_for_url(f"{address}/")
            page.goto(address + path.format(job=job))
            page.wait_for_load_state("networkidle") if "submit" in path else page.locator(".uplot").wait_for()
            page.screenshot(path=target / f"{name}.png")
            context.close()
            print(target / f"{name}.png", file=sys.stderr)
    shrink(target)


def shrink(target: Path) -> None:
    """Write the pictures with a palette, which needs a third of the bytes and looks the same."""
    from PIL import Image

    for name, *_ in PICTURES:
        file = target / f"{name}.png"
        with Image.open(file) as picture:
            picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
