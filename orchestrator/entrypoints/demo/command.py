"""`trainhop demo`: one real fine-tuning run through three machines, of which the first dies and the second's time is up."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.download import save_adapter
from orchestrator.entrypoints.cli.output import put_json, say, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import make_view
from orchestrator.entrypoints.cli.watch import Losses, until_final
from orchestrator.entrypoints.demo import report
from orchestrator.entrypoints.demo.director import Director
from orchestrator.entrypoints.demo.model import obtain
from orchestrator.entrypoints.demo.sandbox import BOBS_STEPS, Sandbox, SandboxDirector
from orchestrator.entrypoints.demo.server import PrivateServer


def run_demo(folder: Path, *, as_json: bool, sandbox: bool = False) -> int:
    """Run the demo in `folder`; returns the exit code. Stops everything it has started, however it ends."""
    _check_stack()
    began = time.monotonic()
    folder = folder.resolve()
    with ExitStack() as open_until_the_end:
        emulated = open_until_the_end.enter_context(Sandbox(folder)) if sandbox else None
        model = obtain(folder / "cache")
        say("starting a private server")
        settings = emulated.settings if emulated else {}
        server = open_until_the_end.enter_context(PrivateServer(folder, model.parent, settings))
        job, losses = _train(server, model, emulated)
        if job["state"] != "succeeded":
            raise CommandError(
                Exit.FAILED, f"the job {job['state']}: {job['message']}", f"logs: {server.folder}/sessions"
            )
        result = _gather(server.client, job, folder)
        samples = listed(server.client.get(f"/jobs/{job['id']}/samples"))
        sessions = listed(server.client.get(f"/jobs/{job['id']}/sessions"))
        losses.complete(listed(server.client.get(f"/jobs/{job['id']}/metrics", name="loss")), sessions)
        if emulated is not None:
            result["members"] = emulated.tell()
    picture = report.draw(folder / "loss.png", losses.by_session, sessions)
    report.tell(job, sessions, samples, to_stderr=as_json)
    say(f"adapter     {result['adapter']['path']} (PEFT folder, sha256 {result['adapter']['sha256'][:16]}...)")
    say(f"loss curve  {picture}" if picture else "loss curve  not drawn: pip install matplotlib")
    say(f"records     trainhop up --data-dir {server.folder} --port 0 serves them again")
    say(f"took        {seconds(time.monotonic() - began)}")
    if as_json:
        put_json(result)
    return Exit.OK


def _check_stack() -> None:
    missing = [
        name for name in ("torch", "transformers", "trl", "peft", "fastapi", "sqlalchemy") if not find_spec(name)
    ]
    if missing:
        raise CommandError(
            Exit.USAGE,
            f"the demo trains for real and needs {', '.join(missing)}, which this environment lacks",
            "install torch as pytorch.org says for this machine, then pip install 'trainhop[server,train,demo]'",
        )


def examples() -> Path:
    """The example files: inside the wheel, or beside the package in a checkout."""
    package = Path(orchestrator.__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent / "examples"


def _train(server: PrivateServer, model: Path, emulated: Sandbox | None) -> tuple[dict[str, Any], Losses]:
    client = server.client
    account = listed(client.get("/accounts"))[0]["id"]
    # The model lies on the disk: a worker that still asked the hub would wait for its timeout without a network.
    client.patch(f"/accounts/{account}", {"config": {"env": {"HF_HUB_OFFLINE": "1"}}})
    losses = Losses()
    with make_view(as_json=False) as view:
        if emulated is None:
            job = _submit(client, model)
            return until_final(client, job, view, losses, Director(server, account, view).look), losses
        emulated.move_in(server)
        bobs = _job_file(emulated.clients["bob"], model) | {"name": "bobs", "max_steps": BOBS_STEPS}
        director = SandboxDirector(server, account, view, emulated, bobs)
        job = _submit(emulated.clients["alice"], model)
        ended = until_final(client, job, view, losses, director.look)
        director.wait_for_bob()
        return ended, losses


def _submit(client: Client, model: Path) -> str:
    job = client.post("/jobs", _job_file(client, model), key="demo")
    say(
        f"{job['id']}: {job['total_steps']} steps of {job['name']} on this computer's CPU or GPU, a minute or so to warm up"
    )
    return job["id"]


def _job_file(client: Client, model: Path) -> dict[str, Any]:
    """The example as a request, with its data sent along."""
    file = str(examples() / "demo.yaml")
    data: dict[str, Any] = job_file.read(file) | {"base_model": str(model)}
    for dataset in data["datasets"]:
        dataset["path"] = str(examples() / Path(dataset["path"]).name)
    return job_file.send_data(client, file, job_file.check(file, data))


def _gather(client: Client, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The adapter in `folder`, and what `--json` prints."""
    target = folder / "adapter"
    if (target / "adapter_config.json").is_file():
        shutil.rmtree(target)
    save_adapter(client, job, target)
    kept = ("provider", "outcome", "first_step", "last_step", "seconds")
    sessions = listed(client.get(f"/jobs/{job['id']}/sessions"))
    return {
        "job": job["id"],
        "state": job["state"],
        "steps": job["total_steps"],
        "steps_repeated": job["steps_repeated"],
        "handoffs": job["handoffs"],
        "sessions": [{name: s[name] for name in kept} for s in sessions],
        "loss": job["loss"],
        "adapter": {"path": str(target), "sha256": job["adapter"]["sha256"], "bytes": job["adapter"]["bytes"]},
    }
