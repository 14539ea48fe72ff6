"""`trainhop demo --trust`: faulty data is refused, its clean copy trains, and a blind comparison judges the adapter.

The votes come from simulated raters, so the result says nothing about the adapter.
"""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import ExitStack, redirect_stdout
from http import HTTPStatus
from pathlib import Path
from typing import Any

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.evaluations import show_evaluations
from orchestrator.entrypoints.cli.findings import show_finding
from orchestrator.entrypoints.cli.output import clean, facts, put, put_json, say, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import make_view
from orchestrator.entrypoints.cli.watch import until_final
from orchestrator.entrypoints.demo.command import check_stack, example_job, examples, work_offline
from orchestrator.entrypoints.demo.faults import plant
from orchestrator.entrypoints.demo.model import obtain
from orchestrator.entrypoints.demo.raters import PREFERENCE, Rater, vote_until_closed
from orchestrator.entrypoints.demo.server import PrivateServer
from trainhop.errors import Error

CHANGES: dict[str, Any] = {"max_steps": 16, "eval_steps": 16, "val_set_size": 0.15, "sample_prompts": []}
"""A short job, and enough validation rows for an evaluation."""
EVALUATION = {"max_prompts": 40, "max_new_tokens": 48}
QUESTION = "Which answer is better? (simulated raters)"
RATERS = ("Ann (simulated)", "Ben (simulated)")
"""A fifth of the prompts need two raters."""
SIMULATED = (
    "The votes were simulated. No person has read the answers. So the verdict and the card show how Trainhop decides, "
    "and nothing about the adapter."
)
Json = dict[str, Any]


def run_trust_demo(folder: Path, *, as_json: bool) -> int:
    """Run the demo in `folder` and return the exit code. All processes it started are stopped in any case."""
    check_stack()
    began = time.monotonic()
    folder = folder.resolve()
    with ExitStack() as open_until_the_end:
        if as_json:
            open_until_the_end.enter_context(redirect_stdout(sys.stderr))
        model = obtain(folder / "cache")
        say("starting a private server")
        server = open_until_the_end.enter_context(PrivateServer(folder, model.parent, {}))
        client = server.client
        work_offline(client)
        spec = example_job(model) | CHANGES
        refused = _refused(client, spec, folder / "planted.jsonl")
        job = _trained(client, spec, refused["clean"])
        evaluation = _evaluated(client, job)
        compared = _compared(client, evaluation)
        verdict = _judged(client, job)
        _heading("The end")
        say(
            f"records     trainhop up --data-dir {shlex.quote(str(server.folder))} --port 0 shows them in the dashboard"
        )
        say(f"took        {seconds(time.monotonic() - began)}")
    if as_json:
        result = {"job": job, "evaluation": evaluation, "simulated": True, "verdict": verdict["answer"]}
        put_json({**result, "reasons": verdict["reasons"], **refused, **compared})
    return Exit.OK


def _heading(text: str) -> None:
    put()
    put(f"== {text} ==")


def _refused(client: Client, spec: Json, file: Path) -> Json:
    """Submit a job with faulty data. Returns the hash of the clean copy of its data, and the checks that stopped it."""
    _heading("1. A data file with planted faults is refused")
    put(f"planted: {plant(examples() / 'trail-guide.jsonl', file)}")
    sha256 = client.upload("/datasets", file, name=file.name, type="messages")["sha256"]
    try:
        client.post("/jobs", spec | {"datasets": [{"path": f"sha256:{sha256}", "type": "messages"}]})
    except Error as error:
        if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
            raise
        put(f"refused: {clean(error.lines[0])}")
    else:
        raise CommandError(Exit.FAILED, "The server accepted a job with planted faults in its data.")
    report = client.post(f"/datasets/{sha256}:check")
    found = [finding for finding in report["findings"] if finding["level"] != "list"]
    for finding in found:
        show_finding(finding | {"samples": finding["samples"][:1]})
    copy = client.post(f"/datasets/{sha256}:clean")
    put(f"clean copy: {copy['rows']} of {report['rows']} rows, sha256 {copy['sha256'][:16]}...")
    return {"stops": [finding["check"] for finding in found if finding["level"] == "stop"], "clean": copy["sha256"]}


def _trained(client: Client, spec: Json, sha256: str) -> str:
    """Train on the clean copy. Returns the job's id."""
    _heading("2. The clean copy trains")
    data = [{"path": f"sha256:{sha256}", "type": "messages"}]
    return _finished(client, client.post("/jobs", spec | {"datasets": data}, key="trust")["id"])


def _finished(client: Client, job_id: str) -> str:
    with make_view(as_json=False) as view:
        job = until_final(client, job_id, view)
    if job["state"] != "succeeded":
        raise CommandError(Exit.FAILED, f"The job {job['state']}: {clean(job['message'])}")
    return job_id


def _evaluated(client: Client, job: str) -> str:
    """Let base model and adapter answer the validation rows. Returns the evaluation's id."""
    _heading("3. The base model and the adapter answer the same prompts")
    put(f"answers have at most {EVALUATION['max_new_tokens']} tokens, so that it does not take long")
    made = client.post(f"/jobs/{job}:evaluate", EVALUATION, key="evaluation")["id"]
    show_evaluations({"id": _finished(client, made)}, listed(client.get(f"/jobs/{job}/evaluations")))
    return made


def _compared(client: Client, evaluation: str) -> Json:
    """Let simulated raters vote until the comparison is closed. Returns what came of it."""
    import httpx

    _heading("4. A blind comparison with simulated raters")
    made = client.post(f"/evaluations/{evaluation}/comparisons", {"plan": "small", "question": QUESTION})
    path = f"/comparisons/{made['id']}"
    put(f"{' and '.join(RATERS)} are programs that prefer {PREFERENCE}.")
    with ExitStack() as browsers:
        raters = [
            Rater(
                browsers.enter_context(httpx.Client(timeout=30.0)), client.post(f"{path}/raters", {"name": name})["url"]
            )
            for name in RATERS
        ]
        votes = vote_until_closed(raters)
    found = client.get(path)
    if found["closed_at"] is None:
        found = client.post(f"{path}:close")
    put(f"{votes} simulated votes on {found['decisive'] + found['ties']} prompts, {found['ending']}")
    put(found["result"]["words"].replace("People prefer", "The simulated raters prefer"))
    return {"votes": votes, "ending": found["ending"], "quality": found["result"]["quality"]}


def _judged(client: Client, job: str) -> Json:
    """Print the verdict and the model card. Returns the verdict."""
    _heading("5. The verdict and the model card")
    verdict = client.get(f"/jobs/{job}/verdict")
    reasons = [("reason", words) for words in verdict["reasons"]]
    facts([("verdict", verdict["answer"]), *reasons, ("next", verdict["advice"])])
    put(SIMULATED)
    put()
    card, _ = client.text(f"/jobs/{job}/card")
    for line in card.decode().splitlines():
        put(f"    {clean(line)}".rstrip())
    put()
    put(SIMULATED)
    return verdict
