"""`trainhop demo`: one real fine-tuning run through three machines, of which the first dies and the second's time is up."""

from __future__ import annotations

import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.entrypoints import demo_report
from orchestrator.entrypoints.commands import job_file
from orchestrator.entrypoints.commands.client import Client, CommandError, Exit
from orchestrator.entrypoints.commands.download import save_adapter
from orchestrator.entrypoints.commands.output import age, put_json, say, seconds
from orchestrator.entrypoints.commands.phrases import listed
from orchestrator.entrypoints.commands.views import View, make_view
from orchestrator.entrypoints.commands.watch import Losses, until_final
from orchestrator.entrypoints.demo_model import obtain
from orchestrator.entrypoints.demo_server import PrivateServer

KILL_AFTER = 0.25
"""Share of the steps that has to be committed before the first machine dies."""

STEPS_TO_LOSE = 3
"""Steps beyond the checkpoint that the first machine takes with it, if they are quicker than the next save."""

HAND_OFF_AT = 0.65
"""Share of the steps at which the second machine's time should be up."""

LONG_S = 12 * 3600.0


def run_demo(folder: Path, *, as_json: bool) -> int:
    """Run the demo in `folder`; returns the exit code. Stops everything it has started, however it ends."""
    _check_stack()
    began = time.monotonic()
    folder = folder.resolve()
    model = obtain(folder / "cache")
    say("starting a private server")
    with PrivateServer(folder, model.parent) as server:
        job, losses = _train(server, model)
        if job["state"] != "succeeded":
            raise CommandError(
                Exit.FAILED, f"the job {job['state']}: {job['message']}", f"logs: {server.folder}/sessions"
            )
        result = _gather(server.client, job, folder)
        samples = listed(server.client.get(f"/jobs/{job['id']}/samples"))
        sessions = listed(server.client.get(f"/jobs/{job['id']}/sessions"))
        losses.complete(listed(server.client.get(f"/jobs/{job['id']}/metrics", name="loss")), sessions)
    picture = demo_report.draw(folder / "loss.png", losses.by_session, sessions)
    demo_report.tell(job, sessions, samples, to_stderr=as_json)
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


def _train(server: PrivateServer, model: Path) -> tuple[dict[str, Any], Losses]:
    client = server.client
    account = listed(client.get("/accounts"))[0]["id"]
    # The model lies on the disk: a worker that still asked the hub would wait for its timeout without a network.
    client.patch(f"/accounts/{account}", {"config": {"env": {"HF_HUB_OFFLINE": "1"}}})
    job = _submit(client, model)
    say(
        f"{job['id']}: {job['total_steps']} steps of {job['name']} on this computer's CPU or GPU, a minute or so to warm up"
    )
    losses = Losses()
    with make_view(as_json=False) as view:
        director = Director(server, account, view)
        return until_final(client, job["id"], view, losses, director.look), losses


def _submit(client: Client, model: Path) -> dict[str, Any]:
    file = str(examples() / "demo.yaml")
    data: dict[str, Any] = job_file.read(file) | {"base_model": str(model)}
    for dataset in data["datasets"]:
        dataset["path"] = str(examples() / Path(dataset["path"]).name)
    body = job_file.send_data(client, file, job_file.check(file, data))
    return client.post("/jobs", body, key="demo")


class Director:
    """Lets the first machine die, gives the second a budget that ends in mid-run, and leaves the third alone."""

    def __init__(self, server: PrivateServer, account: str, view: View) -> None:
        self._server, self._account, self._view = server, account, view
        self._session: str | None = None
        self._killed: str | None = None
        self._released = False

    def look(self, job: dict[str, Any]) -> None:
        """Called every second with the job as it is."""
        session = job["session"]
        if session is None:
            return
        if session["id"] != self._session and session["state"] != "provisioning":
            self._session = session["id"]
            how = f"goes on from step {session['step']}" if session["step"] else "begins"
            self._view.note(f">>> {session['id']} {how}")
        if self._killed is None and self._is_time(job):
            self._kill(job)
        elif self._killed not in (None, session["id"]) and not self._released:
            # The running session keeps its short budget; the next one gets all the time it wants.
            self._released = True
            self._set_budget(LONG_S)

    @staticmethod
    def _is_time(job: dict[str, Any]) -> bool:
        """Enough is safe, and some steps beyond it are there to be lost; the next save must not come first."""
        head, session = job["head"], job["session"]
        if head is None or head["step"] < KILL_AFTER * job["total_steps"] or job["seconds_per_step"] is None:
            return False
        beyond = session["step"] - head["step"]
        late = (age(head["committed_at"]) or 0.0) > 0.8 * job["spec"]["checkpoint"]["max_interval_s"]
        return beyond >= STEPS_TO_LOSE or (beyond > 0 and late)

    def _kill(self, job: dict[str, Any]) -> None:
        session, head = job["session"], job["head"]
        budget = self._budget(job)
        self._set_budget(budget)
        if not self._server.kill(session["id"]):
            return
        self._killed = session["id"]
        self._view.note(
            f">>> {session['id']} killed (SIGKILL) at step {session['step']}; step {head['step']} is safe. "
            f"The next machine gets {seconds(budget)}"
        )

    def _budget(self, job: dict[str, Any]) -> float:
        """Seconds in which a session like the first one starts up and gets to `HAND_OFF_AT` with its last save."""
        first = listed(self._server.client.get(f"/jobs/{job['id']}/sessions"))[-1]
        ledger, step_s = first["ledger"], job["seconds_per_step"]
        start_up = 2.0 + sum(ledger.get(phase, 0.0) for phase in ("boot", "download", "load", "restore"))
        since, until = job["head"]["step"], round(HAND_OFF_AT * job["total_steps"])
        every = job["spec"]["eval_steps"] or max(1, job["total_steps"] // 5)
        pauses = (until // every - since // every) * ledger.get("eval", 0.0)
        return start_up + (until - since + 1.5) * step_s + 2.5 * pauses + 5.0

    def _set_budget(self, budget: float) -> None:
        self._server.client.patch(f"/accounts/{self._account}", {"config": {"session_s": budget}})


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
