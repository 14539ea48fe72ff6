"""Takes the dashboard's pictures in README and docs (about five minutes).

    python -m benchmarks.screenshots [FOLDER]

A real server trains a tiny model with random weights on the example's data. Its first machine is killed, its second is
told to hand off, and the first pictures are taken while the third one trains. The others show the empty server before,
and the job when it is done: its result, its shared page, and itself beside a clone with another learning rate.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.browser import browser
from benchmarks.lab import Lab, lab
from benchmarks.tiny_model import make_tiny_llama

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTLE_MS = 1_000
"""For charts and plans, which follow the page."""
TARGET = EXAMPLES.parent / "docs" / "pictures"
STEPS, RATE = 600, 5e-3


@dataclass(frozen=True)
class Picture:
    """A page, its colour scheme, and the window's size in pixels. `shows` is what the page waits for."""

    name: str
    path: str
    shows: str
    scheme: Literal["light", "dark"] = "light"
    width: int = 1280
    height: int = 1010


EMPTY = (Picture("setup", "/setup", "#file, [type=search], form"),)
TRAINING = (
    Picture("dashboard-job", "/jobs/{job}", ".uplot"),
    Picture("dashboard-submit", "/submit?clone={job}", "#plan dl, #plan table, #plan p"),
    Picture("dashboard-phone", "/jobs/{job}", ".uplot", scheme="dark", width=390),
)
DONE = (
    Picture("result", "/jobs/{job}", ".uplot"),
    Picture("compare", "/compare?job={job}&job={clone}", ".uplot"),
    Picture("share", "/share/{share}", "svg"),
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
            take(server, EMPTY, target)
            job = travel(server, model)
            take(server, TRAINING, target, job=job)
            finished(server, job)
            changes = {"name": "trail-guide at a tenth of the rate", "learning_rate": RATE / 10}
            clone = server.post(f"/jobs/{job}:clone", changes)["id"]
            finished(server, clone)
            url = server.post(f"/jobs/{job}/shares", {"samples": True})["url"]
            take(server, DONE, target, job=job, clone=clone, share=url.rpartition("/")[2])
    shrink(target)


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
        "learning_rate": RATE,
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


def finished(server: Lab, job: str) -> None:
    """Return when the job is done."""
    server.wait_for(lambda: server.job(job)["state"] == "succeeded", "the job's end", 480, 0.5)


def take(server: Lab, pictures: Sequence[Picture], target: Path, **ids: str) -> None:
    """One picture of each page. `ids` fill the addresses."""
    address = str(server.client.base_url).removesuffix("/api/v1/").removesuffix("/api/v1")
    with browser() as running:
        for each in pictures:
            context = running.new_context(
                color_scheme=each.scheme, viewport={"width": each.width, "height": each.height}
            )
            page = context.new_page()
            page.goto(server.post("/login-links")["url"])
            page.wait_for_url(f"{address}/")
            page.goto(address + each.path.format(**ids))
            page.locator(each.shows).first.wait_for()
            page.wait_for_timeout(SETTLE_MS)
            page.screenshot(path=target / f"{each.name}.png")
            context.close()
            print(target / f"{each.name}.png", file=sys.stderr)


def shrink(target: Path) -> None:
    """Write the pictures with a palette, which needs a third of the bytes and looks the same."""
    from PIL import Image

    for each in (*EMPTY, *TRAINING, *DONE):
        file = target / f"{each.name}.png"
        with Image.open(file) as picture:
            picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
