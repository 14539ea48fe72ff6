"""Valid requests for each operation, made anew: a fuzzer that only invents ids is answered 404 for ever."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.adversity.http_server import Watched
from orchestrator.domain.accounts import Actor, Role
from orchestrator.services import cell_checks
from orchestrator.services.dispatch import dispatch
from tests.helpers.evaluations import add_evaluation
from tests.http.http_client import ApiUser, Machine
from worker.shared import wheel
from worker.shared.messages import sign_line

Values = dict[str, str]

PROMPTS = 60
"""Of an evaluation: more than a blind comparison with a margin needs."""

OF_A_MANIFEST: dict[str, Any] = {
    "epoch": 0,
    "index": 0,
    "samples_seen": 0,
    "wall_seconds": 1.0,
    "micro_batch_size": 1,
    "backend": "hf",
    "precision": "fp32",
    "hardware": {},
    "versions": {},
}
"""What every manifest has besides its job, step, recipe and state."""


@dataclass(kw_only=True)
class Request:
    """What a valid request of an operation holds. `caller` is None where a header is the permission."""

    path: Values = field(default_factory=dict[str, str])
    body: Any = None
    query: dict[str, Any] = field(default_factory=dict[str, Any])
    headers: Values = field(default_factory=dict[str, str])
    caller: ApiUser | None = None


class Inputs:
    """Makes requests of a member, of an admin for what only admins may, and of machines."""

    def __init__(self, server: Watched, folder: Path) -> None:
        self._server, self._folder, self._numbers = server, folder, count()
        self.admin = server.api.admin
        self.admin.post("/members", {"name": "ann"})
        self.member = server.api.as_(self.admin.post("/tokens", {"member": "ann"}).json()["secret"])
        self.file = self.member.job_file()
        self._running = self._machine()
        self._running.save(2, folder)
        self._ended = self._machine(max_steps=2)
        self._ended.save(2, folder)
        self._ended.finish(2)
        self._account = self._new_account()
        self.channel = self._new_channel()

    def _job(self, *verbs: str, **changes: Any) -> str:
        job = self.member.post("/jobs", self.file | changes).json()["id"]
        for verb in verbs:
            assert self.member.post(f"/jobs/{job}:{verb}").is_success, verb
        return job

    def _machine(self, *, started: bool = True, **changes: Any) -> Machine:
        job = self._job(**changes)
        dispatch(self._server.api.app.context)
        request = next(r for r in reversed(self._server.pool.launched) if f"{job}" in str(r))
        machine = Machine(self._server.api, request.lease_id, request.token)
        self._server.pool.logs[machine.lease] = b"output\n" * 100
        if started:
            assert machine.start().status_code == 200
        return machine

    def _new_account(self) -> str:
        for account in self.member.get("/accounts").json()["items"]:
            if account["provider"] == "cloud":
                self.member.call("DELETE", f"/accounts/{account['id']}")
        asked = {"provider": "cloud", "credentials": "x", "name": "mine"}
        return self.member.post("/accounts", asked).json()["id"]

    def _new_channel(self) -> str:
        return self.admin.post("/notifications", {"url": "json://127.0.0.1:9/x"}).json()["channel"]["id"]

    def of(self, operation: str) -> Request:
        """A valid request of this operation, as far as one can be made without a provider or a hub."""
        made = _MAKERS.get(operation)
        return made(self) if made is not None else Request(path=self._ids(), caller=self.member)

    def _ids(self) -> Values:
        return {
            "job_id": self._ended.assignment["job"],
            "session_id": self._ended.lease,
            "sha256": self._ended.head or "",
            "account_id": self._account,
            "channel_id": self.channel,
            "provider": "colab",
            "tracker": "wandb",
            "name": "local",
        }

    def on_job(self, *verbs: str, body: Any = None) -> Request:
        """A request on a new job of the member."""
        return Request(path={"job_id": self._job(*verbs)}, body=body, caller=self.member)

    def by_admin(self, body: Any = None, **path: str) -> Request:
        """A request of the admin."""
        return Request(path={"name": "local"} | path, body=body, caller=self.admin)

    def on_dataset(self, *, new: bool = False) -> Request:
        """A request on an uploaded file."""
        sha256 = self.file["datasets"][0]["path"].removeprefix("sha256:")
        if new:
            sha256 = self.member.upload(b'{"text": "row %d"}\n' % next(self._numbers)).json()["sha256"]
        return Request(path={"sha256": sha256}, caller=self.member)

    def with_findings(self) -> Request:
        """A file with a row twice, of which a clean copy can be made."""
        row = b'{"text": "row %d"}\n' % next(self._numbers)
        return Request(path={"sha256": self.member.upload(row * 2).json()["sha256"]}, caller=self.member)

    def on_audit(self, *, first: bool = False, long: bool = False) -> Request:
        """A request on the audit of a new file, or on its first row. A `long` file has more rows than are drawn."""
        number = next(self._numbers)
        rows = b"".join(b'{"text": "row %d of file %d"}\n' % (n, number) for n in range(500 if long else 1))
        sha256 = self.member.upload(rows).json()["sha256"]
        path = {"sha256": sha256, "place": "0"}
        self.member.post(f"/datasets/{sha256}/audit", {})
        unit = self.member.get(f"/datasets/{sha256}/audit/rows/0").json()["unit"] if first else ""
        return Request(path=path, body={"unit": unit, "label": "correct"} if first else None, caller=self.member)

    def an_evaluation(self) -> Request:
        """An evaluation of the member's ended job, on a file of prompts."""
        rows = b'{"prompt": "What is %d?", "completion": "A number."}\n' * 30
        sha256 = self.member.upload(rows % tuple(range(30)), name="prompts.jsonl").json()["sha256"]
        return Request(path=self._ids(), body={"prompts": {"path": f"sha256:{sha256}"}}, caller=self.member)

    def on_evaluation(self, body: Any = None, *, by: ApiUser | None = None) -> Request:
        """A request on a finished evaluation without comparisons and judgements."""
        job, caller = self._job("cancel"), by or self.member
        add_evaluation(self._server.api.app.context.uow, job, PROMPTS, owner=caller.get("/me").json()["id"])
        return Request(path={"job_id": job}, body=body, caller=caller)

    def on_comparison(self, body: Any = None, *, closed: bool = False) -> Request:
        """A request on a new blind comparison and its one rater."""
        job = self.on_evaluation().path["job_id"]
        comparison = self.member.post(f"/evaluations/{job}/comparisons", {}).json()["id"]
        rater = self.member.post(f"/comparisons/{comparison}/raters", {"name": "Ann"}).json()["id"]
        if closed:
            self.member.post(f"/comparisons/{comparison}:close")
        path = {"job_id": job, "comparison_id": comparison, "rater_id": rater}
        return Request(path=path, body=body, caller=self.member)

    def a_judge(self) -> Request:
        """A judge endpoint to add. Only an admin's can be on this computer."""
        for endpoint in self.admin.get("/judge-endpoints").json()["items"]:
            self.admin.call("DELETE", f"/judge-endpoints/{endpoint['id']}")
        judge = self._server.judge
        return self.by_admin({"name": "judge", "url": judge.url, "model": judge.model, "key": "k", "consent": True})

    def on_judge(self, body: Any = None) -> Request:
        """A request on a new judge endpoint."""
        made = self.admin.post("/judge-endpoints", self.a_judge().body).json()
        return self.by_admin(body, endpoint_id=made["id"])

    def a_judgement(self) -> Request:
        """A judgement to start."""
        return self.on_evaluation({"endpoint": self.on_judge().path["endpoint_id"]}, by=self.admin)

    def on_judgement(self, body: Any = None, *, paused: bool = False) -> Request:
        """A request on a new judgement."""
        asked = self.a_judgement()
        made = self.admin.post(f"/evaluations/{asked.path['job_id']}/judgements", asked.body).json()["id"]
        if paused:
            self.admin.post(f"/judgements/{made}:pause")
        return replace(asked, path=asked.path | {"judgement_id": made}, body=body)

    def a_promotion(self) -> Request:
        """The ended job as a new model, which only an admin can promote without a verdict."""
        body = {"job": self._ended.assignment["job"], "force": True}
        return self.by_admin(body, name=f"model-{next(self._numbers)}")

    def a_candidate(self) -> Request:
        """The ended job as a new model that nothing is promoted of."""
        path = {"name": f"model-{next(self._numbers)}"}
        return Request(path=path, body={"job": self._ended.assignment["job"]}, caller=self.member)

    def on_model(self, body: Any = None) -> Request:
        """A request on a new model with a promoted candidate."""
        asked = self.a_promotion()
        self.admin.post(f"/models/{asked.path['name']}:promote", asked.body)
        return Request(path=asked.path, body=body, caller=self.member)

    def on_running(self) -> Request:
        """A request on a job that runs now."""
        return Request(path={"job_id": self._machine().assignment["job"]}, caller=self.member)

    def on_lease(self, kind: str, body: dict[str, Any], *, new: bool = False) -> Request:
        """A message of a machine."""
        machine = self._machine() if new else self._running
        said = body if kind in ("start", "grants") else machine.said(kind, **body)
        return Request(path={"lease_id": machine.lease}, body=said, caller=machine.caller)

    def an_offer(self) -> Request:
        """The offer of a checkpoint that was never uploaded. The answer names the reason."""
        recipe = {**self._running.assignment["spec"], "dataset_sha256": [], "train_rows": 32}
        manifest = {"job": self._running.assignment["job"], "fence": 1, "step": 3, "recipe": recipe, "state": {}}
        offer = {"key": "jobs/x", "sha256": "0" * 64, "size": 1, "manifest": manifest | OF_A_MANIFEST}
        return self.on_lease("offer", offer)

    def a_blob(self, *, write: bool) -> Request:
        """A file of a grant."""
        machine = self._machine() if write else self._running
        grant = machine.assignment["uploads" if write else "datasets"][0]
        return Request(path={"key": grant["key"]}, headers=grant["headers"], body=b"bytes" if write else None)

    def a_claim(self) -> Request:
        """A notebook's first call."""
        notebook = self.member.post(f"/jobs/{self._job()}:notebook", None).text
        code = re.search(r"thc_[\w-]+", notebook)
        hardware = {"device": "cuda", "count": 1, "memory_bytes": 2**34}
        said = {"protocol": 1, "nonce": "n", "hardware": hardware, "code": code[0] if code else ""}
        return Request(body=said)

    def a_token(self) -> Request:
        """A token to revoke."""
        made = self.member.post("/tokens", {"name": "t"}).json()
        return Request(path={"token_id": made["id"]}, caller=self.member)

    def a_member(self) -> Request:
        """A member to remove."""
        return self.by_admin(member_id=self.new_member())

    def new_member(self) -> str:
        """The id of a new member."""
        return self.admin.post("/members", {"name": f"m{next(self._numbers)}"}).json()["id"]

    def on_new_account(self) -> Request:
        """An account to disconnect."""
        account, self._account = self._new_account(), "gone"
        return Request(path={"account_id": account}, caller=self.member)

    def an_answer(self) -> Request:
        """The result of a check's cell, signed with the token of its order."""
        me = self.member.get("/me").json()
        actor = Actor(member_id=me["id"], name=me["name"], role=Role(me["role"]))
        order = cell_checks.order(self._server.api.app.context, actor, "colab")
        said = {"check": order["check"], "machine": "cpu", "versions": {}, "probes": []}
        return Request(path={"provider": "colab"}, body={"line": sign_line(order["token"], json.dumps(said))})

    def no_account(self) -> Request:
        """An account to connect."""
        self.member.call("DELETE", f"/accounts/{self._account}")
        self._account = "gone"
        return Request(body={"provider": "cloud", "credentials": "x", "name": "mine"}, caller=self.member)

    def on_account(self, body: Any = None) -> Request:
        """The member's account, connected again if it is gone."""
        if self._account == "gone":
            self._account = self._new_account()
        return Request(path={"account_id": self._account}, body=body, caller=self.member)

    def on_new_channel(self) -> Request:
        """A channel to remove."""
        return self.by_admin(channel_id=self._new_channel())

    def an_upload(self) -> Request:
        """A data file."""
        rows = b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(4))
        return Request(body=rows, query={"name": "rows.jsonl"}, caller=self.member)

    def the_wheel(self) -> Request:
        """The worker's wheel."""
        found = wheel.build()
        return Request(path={"sha256": found.sha256, "name": found.name})


_MAKERS: dict[str, Callable[[Inputs], Request]] = {
    "submit_job": lambda i: Request(body=i.file, caller=i.member),
    "plan_job": lambda i: Request(body=i.file, caller=i.member),
    "delete_job": lambda i: i.on_job("cancel"),
    "pause_job": lambda i: i.on_job(),
    "resume_job": lambda i: i.on_job("pause"),
    "cancel_job": lambda i: i.on_job(),
    "retry_job": lambda i: i.on_job("cancel"),
    "set_priority": lambda i: i.on_job(body={"priority": -1}),
    "clone_job": lambda i: i.on_job("cancel", body={"lora_r": 4}),
    "hand_over_job": Inputs.on_running,
    "make_notebook": lambda i: i.on_job(),
    "claim_job": Inputs.a_claim,
    "answer_cell_check": Inputs.an_answer,
    "worker_wheel": Inputs.the_wheel,
    "upload_dataset": Inputs.an_upload,
    "get_dataset": Inputs.on_dataset,
    "preview_dataset": Inputs.on_dataset,
    "get_data_checks": Inputs.on_dataset,
    "check_dataset": Inputs.on_dataset,
    "clean_dataset": Inputs.with_findings,
    "start_audit": lambda i: replace(i.on_dataset(new=True), body={}),
    "label_audit_row": lambda i: i.on_audit(first=True),
    "draw_audit_rows": lambda i: i.on_audit(long=True),
    **dict.fromkeys(("get_audit", "next_audit_row", "get_audit_row", "export_audit"), Inputs.on_audit),
    "delete_dataset": lambda i: i.on_dataset(new=True),
    "evaluate_job": Inputs.an_evaluation,
    "start_comparison": lambda i: i.on_evaluation({"plan": "small", "margin": 0.1}),
    "change_comparison": lambda i: i.on_comparison({"plan": "small", "margin": 0.1}),
    "add_rater": lambda i: i.on_comparison({"name": "Ben"}),
    **dict.fromkeys(
        ("list_comparisons", "get_comparison", "close_comparison", "renew_rater_link", "revoke_rater"),
        Inputs.on_comparison,
    ),
    "export_votes": lambda i: i.on_comparison(closed=True),
    "add_judge_endpoint": Inputs.a_judge,
    "change_judge_endpoint": lambda i: i.on_judge({"key": "k2"}),
    **dict.fromkeys(("consent_judge_endpoint", "remove_judge_endpoint"), Inputs.on_judge),
    "start_judgement": Inputs.a_judgement,
    **dict.fromkeys(("list_judgements", "pause_judgement"), Inputs.on_judgement),
    "resume_judgement": lambda i: i.on_judgement({"max_tokens": 5_000}, paused=True),
    "add_candidate": Inputs.a_candidate,
    "promote": Inputs.a_promotion,
    "rollback": lambda i: i.on_model({}),
    **dict.fromkeys(("get_model", "get_model_card", "get_model_provenance"), Inputs.on_model),
    "start_lease": lambda i: i.on_lease("start", {"protocol": 1, "nonce": "n1", "hardware": {}}),
    "report": lambda i: i.on_lease("report", {"step": 3, "phase": "train"}),
    "offer_checkpoint": Inputs.an_offer,
    "release_lease": lambda i: i.on_lease("release", {"step": 3, "reason": "drained"}, new=True),
    "finish_lease": lambda i: i.on_lease(
        "finish", {"step": 3, "failure": {"message": "no", "permanent": True}}, new=True
    ),
    "more_grants": lambda i: i.on_lease("grants", {"fence": 1, "kind": "checkpoint"}),
    "read_blob": lambda i: i.a_blob(write=False),
    "write_blob": lambda i: i.a_blob(write=True),
    "set_tracker": lambda i: Request(path={"tracker": "wandb"}, body={"key": "x"}, caller=i.member),
    "set_hub_token": lambda i: Request(body={"token": "hf_x"}, caller=i.member),
    "list_members": lambda i: i.by_admin(),
    "add_member": lambda i: i.by_admin({"name": f"n{next(i._numbers)}"}),  # noqa: SLF001
    "remove_member": Inputs.a_member,
    "add_token": lambda i: Request(body={"name": "t", "days": 2}, caller=i.member),
    "remove_token": Inputs.a_token,
    "add_account": Inputs.no_account,
    "change_account": lambda i: i.on_account({"paused": False}),
    "consent_account": Inputs.on_account,
    "check_account": Inputs.on_account,
    "diagnose_account": lambda i: i.on_account({"gpu": False}),
    "get_diagnosis": Inputs.on_account,
    "remove_account": Inputs.on_new_account,
    "add_channel": lambda i: i.by_admin({"url": "json://127.0.0.1:9/x"}),
    "remove_channel": Inputs.on_new_channel,
    **dict.fromkeys(("test_channel", "list_deliveries"), lambda i: i.by_admin(channel_id=i.channel)),
    "use_store": lambda i: i.by_admin({"config": {}}),
    **dict.fromkeys(("list_stores", "get_store_kind", "check_store", "try_upload"), lambda i: i.by_admin()),
}
