"""The download of a base model: the real client of the hub, in real processes, against a hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.processes import assert_gone

SHARDS = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 40_000 for n in (1, 2)}
INDEX = {"weight_map": {f"w{n}": name for n, name in enumerate(SHARDS)}}
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "consolidated.safetensors": b"c" * 80_000,
    "original/params.json": b"{}",
    "original/model.safetensors": b"o" * 80_000,
    "README.md": b"read me",
    **SHARDS,
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS}


@pytest.fixture
def repo() -> Repo:
    return Repo(id="org/model", files=FILES)


@pytest.fixture
def hub(repo: Repo) -> Iterator[HubEmulator]:
    with HubEmulator(repo) as running:
        yield running


def fetched(hub: HubEmulator, home: Path, name: str = "org/model", **changes: str) -> list[str]:
    """What a machine with small limits says of a model, line by line: its waits, then the folder or the error."""
    code = f"""
from worker.agent.limits import Limits
from worker.training.base_model import resolve
try:
    limits = Limits(stall_s=8.0, pause_s=0.05, longest_pause_s=0.1)
    print("folder", resolve({name!r}, limits, lambda text: print("says", text)))
except Exception as error:
    print(type(error).__name__, getattr(error, "cause", ""), error)
"""
    there = os.environ | hub.environment(home) | changes
    ran = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=True)
    assert "Fatal Python error" not in ran.stderr
    return ran.stdout.splitlines()


def names_in(line: str) -> set[str]:
    folder = Path(line.removeprefix("folder "))
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_downloaded_and_only_once(hub: HubEmulator, repo: Repo, tmp_path: Path) -> None:
    """Guard: without `OTHERS` and the index every model came with the same weights once or twice more. Without `cached`
    a process was started, and the hub asked, for a model that lay there.
    """
    (first,) = fetched(hub, tmp_path)
    assert names_in(first) == NEEDED
    hub.seen.clear()
    assert fetched(hub, tmp_path, f"org/model@{repo.commit}") == [first]
    assert fetched(hub, tmp_path, HF_HUB_OFFLINE="1") == [first]
    assert not hub.seen


def test_a_model_that_lies_there_in_part_is_completed(hub: HubEmulator, repo: Repo, tmp_path: Path) -> None:
    """Guard: without `_is_whole` an older client's word counted, which knows nothing of what is missing."""
    (first,) = fetched(hub, tmp_path)
    folder = Path(first.removeprefix("folder "))
    shard = next(iter(SHARDS))
    (folder / shard).resolve().unlink()
    (folder / shard).unlink()
    assert fetched(hub, tmp_path, f"org/model@{repo.commit}") == [first]
    assert (folder / shard).read_bytes() == SHARDS[shard]


def test_a_download_that_stalls_by_xet_is_begun_anew_by_plain_http(
    hub: HubEmulator, repo: Repo, tmp_path: Path
) -> None:
    """Guard: without the end after `stall_s` it lasted as long as the session; without `HF_HUB_DISABLE_XET` the second
    try stalled like the first.
    """
    repo.xet = True
    said, folder = fetched(hub, tmp_path)
    assert said == "says the download of org/model failed (no byte arrived for 8 s); retrying by plain HTTP"
    assert names_in(folder) == NEEDED


def test_a_download_that_stalls_either_way_is_this_machines_trouble(hub: HubEmulator, tmp_path: Path) -> None:
    """A file that stops in its middle: the client's own time-out begins it anew for ever so long."""
    hub.stall("GET /signed/", after=5_000)
    *_, last = fetched(hub, tmp_path)
    assert last.startswith(
        "UnfitMachineError model the download of org/model stalled: no byte arrived for 8 s, not by plain"
    )


def test_too_many_requests_are_waited_out(hub: HubEmulator, tmp_path: Path) -> None:
    """Guard: without the hook in `_say_so_when_limited` the client itself slept for as long as the hub said, and was
    ended as stalled; while a 429 counted as the hub's absence, the machine was called unfit.
    """
    for headers in ({"Retry-After": "1"}, {}):
        hub.rules.add("/model-00002-of-00002.safetensors$", status=429, headers=headers)
    *said, folder = fetched(hub, tmp_path)
    words = "says Hugging Face limits requests from this address; the download of org/model resumes in"
    assert said == [f"{words} 1 s", f"{words} 0 s"]
    assert names_in(folder) == NEEDED


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_the_remedy(hub: HubEmulator, tmp_path: Path, status: int) -> None:
    """Guard: as one error among others it was tried on machine after machine."""
    hub.rules.add("/resolve/", times=0, status=status, headers={"X-Error-Code": "GatedRepo"})
    (said,) = fetched(hub, tmp_path)
    assert said.startswith("PermanentError  base model org/model is gated or private")
    assert "accept its terms on https://huggingface.co/org/model and store a token" in said
    assert "`trainhop hub login`" in said


def test_a_download_ends_with_whoever_asked_for_it(hub: HubEmulator, tmp_path: Path) -> None:
    """Guard: without `end_with_the_parent` it went on alone on a machine that its session had left."""
    hub.stall("GET /signed/", after=5_000)
    code = """
import os
from worker.agent import limits
real = limits.subprocess.Popen
def noted(*args, **kwargs):
    child = real(*args, **kwargs)
    print(child.pid, flush=True)
    return child
limits.subprocess.Popen = noted
from worker.training.base_model import resolve
resolve("org/model")
"""
    there = os.environ | hub.environment(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], env=there, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert hub.stalled.wait(60)
        parent.kill()
    assert_gone(pid)
