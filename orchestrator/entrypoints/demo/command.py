"""`trainhop demo`: one real fine-tuning run in three sessions. The first is killed, the second hits its time limit."""

from __future__ import annotations

import shlex
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.adapter_export import run_export
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.output import put_json, say, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import make_view
from orchestrator.entrypoints.cli.watch import Losses, until_final
from orchestrator.entrypoints.demo import report
from orchestrator.entrypoints.demo.director import Director
from orchestrator.entrypoints.demo.model import obtain
from orchestrator.entrypoints.demo.sandbox import BOBS_STEPS, Sandbox, SandboxDirector
from orchestrator.entrypoints.demo.server import PrivateServer
from trainhop.download import save_adapter
from trainhop.job_file import check
from worker.shared.installation import SERVER, TRAINING, install_line, missing_modules

EXAMPLE = "demo.yaml"


def run_demo(folder: Path, *, as_json: bool, sandbox: bool = False) -> int:
    """Run the demo in `folder` and return the exit code. All processes it started are stopped in any case."""
    check_stack()
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
                Exit.FAILED, f"The job {job['state']}: {job['message']}", f"Logs: {server.folder}/sessions"
            )
        result = _gather(server.client, job, folder)
        samples = listed(server.client.get(f"/jobs/{job['id']}/samples"))
        sessions = listed(server.client.get(f"/jobs/{job['id']}/sessions"))
        losses.complete(listed(server.client.get(f"/jobs/{job['id']}/metrics", name="loss")), sessions)
        if emulated is not None:
            result["members"] = emulated.tell()
    picture = report.draw(folder / "loss.png", losses.by_session, sessions)
    report.tell(job, sessions, samples, to_stderr=as_json)
    result["export"] = _exported(folder)
    say(f"adapter     {result['adapter']['path']} (PEFT folder, sha256 {result['adapter']['sha256'][:16]}...)")
    say(f"loss curve  {picture}" if picture else "loss curve  needs matplotlib: pip install matplotlib")
    say(f"records     trainhop up --data-dir {shlex.quote(str(server.folder))} --port 0 shows them in the dashboard")
    say(f"took        {seconds(time.monotonic() - began)}")
    report.tell_how_to_use(result["adapter"]["path"], result["export"])
    if as_json:
        put_json(result)
    return Exit.OK


def _exported(folder: Path) -> dict[str, Any]:
    """The report of the adapter as GGUF model. The training is done, whatever becomes of it."""
    out = folder / "gguf"
    shutil.rmtree(out, ignore_errors=True)
    say("exporting the adapter as GGUF, for Ollama and llama.cpp")
    request = {"adapter": str(folder / "adapter"), "out": str(out), "form": "gguf", "kind": "q8_0"}
    try:
        return run_export(request)
    except CommandError as error:
        return {"error": " ".join(error.lines)}


def check_stack() -> None:
    """Raise `CommandError` if a package is missing that the demos need."""
    if missing := missing_modules((*TRAINING, "fastapi", "sqlalchemy")):
        raise CommandError(
            Exit.USAGE,
            f"The demo needs {', '.join(missing)}, which this environment does not have.",
            "Install it with: " + install_line(*SERVER, "train", "demo", torch="torch" in missing),
        )


def examples() -> Path:
    """The folder of example files: in the wheel, or beside the package in a checkout."""
    package = Path(orchestrator.__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent / "examples"


def _train(server: PrivateServer, model: Path, emulated: Sandbox | None) -> tuple[dict[str, Any], Losses]:
    client = server.client
    account = work_offline(client)
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


def work_offline(client: Client) -> str:
    """Tell workers of this computer that the model is on disk. Returns the account's id.

    Without a network, a worker that asks Hugging Face would wait for a timeout.
    """
    account = listed(client.get("/accounts"))[0]["id"]
    client.patch(f"/accounts/{account}", {"config": {"env": {"HF_HUB_OFFLINE": "1"}}})
    return account


def _submit(client: Client, model: Path) -> str:
    job = client.post("/jobs", _job_file(client, model), key="demo")
    say(f"{job['id']}: {job['total_steps']} steps of {job['name']} on this computer, training starts in about a minute")
    return job["id"]


def _job_file(client: Client, model: Path) -> dict[str, Any]:
    """The example job with its uploaded data."""
    file, data = str(examples() / EXAMPLE), example_job(model)
    for dataset in data["datasets"]:
        dataset["path"] = str(examples() / Path(dataset["path"]).name)
    return job_file.send_data(client, file, check(file, data), yes=True)


def example_job(model: Path) -> dict[str, Any]:
    """The example's job file with the model in this folder."""
    return job_file.read(str(examples() / EXAMPLE)) | {"base_model": str(model)}


def _gather(client: Client, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Download the adapter to `folder` and return the result for `--json`."""
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
