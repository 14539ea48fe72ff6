"""Makes `b2ace15.tar.xz`: what a server of commit b2ace15 leaves behind when its computer loses power.

    git worktree add --detach /tmp/b2ace15 b2ace15
    python -m tests.migrations.make_old_folder /tmp/b2ace15

Everything is made by the code of that commit, over HTTP, in this order:

1. The server starts. The admin invites ada with a token, connects a Kaggle account in her name (she has yet to agree),
   adds a channel and uploads a dataset.
2. A job is trained to its end. Then the pool is paused, and jobs are submitted that stay as they are: one queued for
   Kaggle, one paused, one cancelled.
3. Three notebooks are made. The first has claimed its job and installs packages: its worker has not called yet. The
   worker of the second has started, with a nonce of its own, and its next messages are written down as that code writes
   them. Nobody has opened the third.
4. A job is trained until a checkpoint of it is committed. Then server and worker are killed.

The archive holds the data folder, the wheel that the notebooks carry (unpacked), the model and `facts.json`: ids,
tokens and messages. All tokens, keys and credentials in it were made up for this folder. The model's path is part of
jobs and checkpoints, so it is a fixed one.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

ARCHIVE = Path(__file__).parent / "b2ace15.tar.xz"
MODEL = Path("/tmp/trainhop-b2ace15/model")
"""Where jobs of the folder name their model."""
PATIENCE_S = 120.0
ROWS = 40
HALF = 12
"""The checkpoint of the half-done job has at least so many steps."""


class OldServer:
    """`trainhop up` of the checkout, over a data folder; speaks to it as the admin."""

    def __init__(self, checkout: Path, data: Path, kaggle: str) -> None:
        self.checkout, self.data = checkout, data
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_")}
        self.environment |= {
            "PYTHONPATH": str(checkout),
            "TRAINHOP_ALLOWED_FOLDERS": json.dumps([str(MODEL.parent)]),
            "TRAINHOP_OFFLINE": "true",
            "TRAINHOP_REPORT_EVERY_S": "1",
            "TRAINHOP_KAGGLE_ENDPOINT": kaggle,
        }
        command = [sys.executable, "-m", "orchestrator.entrypoints.cli", "up", "--data-dir", str(data), "--port", "0"]
        self.process = subprocess.Popen(command, cwd=checkout, env=self.environment)
        wait_for((data / "server.url").exists, "the server")
        self.url = (data / "server.url").read_text().strip()
        token = (data / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=f"{self.url}/api/v1", trust_env=False, timeout=60, headers=headers)
        wait_for(self._answers, "an answer")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/me").is_success
        return False

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """JSON of an answer; raises with the server's words."""
        answer = self.client.request(method, path, json=body, **more)
        if not answer.is_success:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def job(self, ident: str) -> dict[str, Any]:
        """The job as the API shows it."""
        return self.call("GET", f"/jobs/{ident}")

    def python(self, program: str) -> Any:
        """JSON that a program of the checkout's code prints."""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=self.checkout, env=self.environment, stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)

    def lose_power(self) -> None:
        """End the server and its workers at once."""
        self.process.kill()
        for note in (self.data / "sessions").glob("*/pid.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(note.read_text())["pid"], signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"waited {PATIENCE_S:.0f} s for {what}")


def main() -> None:
    """Make the archive from the checkout that is named on the command line."""
    checkout = Path(sys.argv[1]).resolve()
    make_model(MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        data.mkdir(mode=0o700)
        with emulated_kaggle(checkout) as kaggle:
            server = OldServer(checkout, data, kaggle)
            try:
                facts, wheel = fill(server)
            finally:
                server.lose_power()
        pack(data, wheel, facts)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1024:.0f} KiB")


@contextlib.contextmanager
def emulated_kaggle(checkout: Path) -> Iterator[str]:
    """The address of the checkout's emulator of Kaggle, on which ada has an account."""
    command = [sys.executable, "-m", "tests.emulators.kaggle", "--account", "ada:KGAT_ada"]
    process = subprocess.Popen(
        command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait()


def make_model(folder: Path) -> None:
    """A Llama of 9,000 parameters with the tokenizer of the tests."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.tiny_model import byte_tokenizer

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **tokens)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fill(server: OldServer) -> tuple[dict[str, Any], bytes]:
    """Do what the docstring of this module says; the facts, and the wheel of the notebooks."""
    call = server.call
    ada = call("POST", "/members", {"name": "ada", "role": "member"})["id"]
    ada_token = call("POST", "/tokens", {"member": "ada", "name": "laptop", "days": 36_500})["secret"]
    kaggle = {"provider": "kaggle", "name": "ada-kaggle", "owner": "ada", "config": {"username": "ada"}}
    call("POST", "/accounts", kaggle | {"credentials": "KGAT_ada"})
    call("POST", "/notifications", {"url": "json://127.0.0.1:9/hook", "topics": ["failed"]})
    rows = [{"prompt": f"Where is {n}?", "completion": f"It is {n} stops down the line."} for n in range(ROWS)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    dataset = call("POST", "/datasets", params={"name": "stops.jsonl"}, content=content)
    spec = {
        "base_model": str(MODEL),
        "datasets": [{"path": f"sha256:{dataset['sha256']}"}],
        "lora_r": 2,
        "sequence_len": 64,
        "global_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "val_set_size": 0.1,
        "checkpoint": {"max_interval_s": 0.3, "keep": 2},
    }

    def submit(name: str, **changes: Any) -> str:
        return call("POST", "/jobs", spec | {"name": name} | changes)["id"]

    finished = submit("finished")
    wait_for(lambda: server.job(finished)["state"] == "succeeded", "the first job")
    (pool,) = [a for a in call("GET", "/accounts")["items"] if a["provider"] == "local"]
    call("PATCH", f"/accounts/{pool['id']}", {"paused": True})
    jobs = {"finished": finished, "queued": submit("queued", placement={"providers": ["kaggle"]})}
    for name, verb in (("paused", "pause"), ("cancelled", "cancel")):
        jobs[name] = submit(name)
        call("POST", f"/jobs/{jobs[name]}:{verb}")
    notebooks: dict[str, Any] = {}
    for name in ("installing", "running", "unopened"):
        jobs[name] = submit(name, placement={"providers": ["colab"]})
        made = call("POST", f"/jobs/{jobs[name]}:notebook", params={"reach": "http"})
        notebooks[name] = made["notebook"]
    codes = {name: _code(document) for name, document in notebooks.items()}
    tickets = {name: call("POST", "/claims", _claim(codes[name]))["ticket"] for name in ("installing", "running")}
    running = _start(server, tickets["running"])
    wheel = server.python(
        "import base64, json; from worker import bundle; "
        "print(json.dumps(base64.b64encode(bundle.build().data).decode()))"
    )
    jobs["half"] = submit("half", max_steps=150)
    call("PATCH", f"/accounts/{pool['id']}", {"paused": False})
    wait_for(lambda: (server.job(jobs["half"])["head"] or {"step": 0})["step"] >= HALF, "a checkpoint")
    facts = {
        "at": time.time(),
        "admin_token": (server.data / "admin.token").read_text().strip(),
        "ada": {"id": ada, "token": ada_token},
        "dataset": dataset["sha256"],
        "jobs": jobs,
        "heads": {name: server.job(jobs[name])["head"] for name in ("finished", "half")},
        "code": codes["unopened"],
        "tickets": tickets,
        "messages": running,
    }
    return facts, base64.b64decode(wheel)


def _code(document: dict[str, Any]) -> str:
    cell = "".join(document["cells"][1]["source"])
    found = re.search(r"thc_[\w-]+", cell)
    assert found, cell
    return found[0]


def _claim(code: str) -> dict[str, Any]:
    return {"protocol": 1, "code": code, "nonce": secrets.token_hex(8), "hardware": {"name": "a notebook"}}


def _start(server: OldServer, ticket: dict[str, Any]) -> dict[str, Any]:
    """Start a lease as its worker does; the start, and the messages that the worker would send next."""
    nonce = secrets.token_hex(16)
    start = {"protocol": 1, "nonce": nonce, "hardware": {"name": "a notebook"}}
    headers = {"Authorization": f"Bearer {ticket['token']}"}
    assignment = server.call("POST", f"/leases/{ticket['lease']}/start", start, headers=headers)
    program = f"""
import json
from worker.protocol import MetricRow, Phase, Reading, Release, Report
common = dict(lease={ticket["lease"]!r}, fence={assignment["fence"]})
values = dict(loss=2.5, grad_norm=0.5, learning_rate=1e-3, tokens=96.0, tokens_per_s=90.0)
reading = Reading(cpu_percent=50.0, rss_bytes=10**9, ram_used_bytes=10**9, disk_free_bytes=10**10)
said = [
    Report(**common, seq=1, step=0, phase=Phase.LOAD, reading=reading),
    Report(**common, seq=2, step=1, phase=Phase.TRAIN, metrics=(MetricRow(step=1, values=values),),
           ledger={{Phase.TRAIN: 1.0}}, seconds_per_step=1.0, seconds_left=3000.0, backend="hf"),
    Release(**common, seq=3, step=1, reason="drained"),
]
print(json.dumps([m.model_dump_json(exclude_defaults=True) for m in said]))
"""
    report, timed, release = server.python(program)
    return {"start": json.dumps(start), "assignment": assignment, "reports": [report, timed], "release": release}


def pack(data: Path, wheel: bytes, facts: dict[str, Any]) -> None:
    """Write the archive, without what is of no use to another server."""
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        archive.add(data, "data", filter=_plain)
        archive.add(MODEL, "model", filter=_plain)
        files = _unpacked(wheel) | {"facts.json": json.dumps(facts, indent=1).encode()}
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _unpacked(wheel: bytes) -> dict[str, bytes]:
    packed = zipfile.ZipFile(io.BytesIO(wheel))
    return {f"wheel/{name}": packed.read(name) for name in packed.namelist()}


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
