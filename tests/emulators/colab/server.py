"""The emulated control plane: routes, faults, and the switches that tests turn."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.emulators.colab.machine import Kernel, Machine
from tests.emulators.drive.faults import Rules
from tests.emulators.drive.state import Problem
from tests.emulators.drive.tokens import Tokens
from tests.emulators.drive.wire import Reply, Request, Server
from tests.helpers import forked_process

XSSI = ")]}'\n"
SUCCESS = 4
VARIANTS = {"DEFAULT": 0, "GPU": 1, "TPU": 2}


class Colab:
    """One person's Colab on `endpoint`. `outcome`, while set, is the denial of every assignment; `entitled` what it may
    have.

    `python` runs the machines' servers, `kernel` their kernels, which also find the variables in `environment`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        python: str | None = None,
        kernel: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        balance: float = 100.0,
    ) -> None:
        self.folder, self.python, self.balance = folder, python, balance
        forks = forked_process.machine_variables() if kernel == sys.executable else {}
        self._kernel = Kernel(python=kernel, environment=forks | dict(environment or {}))
        self.rules, self.tokens = Rules(), Tokens()
        self.machines: dict[str, Machine] = {}
        self.taken: list[Machine] = []
        self.outcome: int | None = None
        self.entitled = {"NONE", "T4", "L4"}
        self.most = 2
        self.requests: list[str] = []
        self._xsrf: set[str] = set()
        self._lock = threading.Lock()
        self._server = Server(0, self._answer)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        for machine in list(self.machines.values()):
            machine.end()

    def authorized_user(self) -> dict[str, str]:
        """Credentials that work here; the address for tokens in them is a trap."""
        return self.tokens.authorized_user(self.endpoint) | {"token_uri": "https://elsewhere.example/token"}

    def vanish(self, endpoint: str) -> None:
        """A machine is taken away in the middle of its work."""
        with self._lock:
            self.machines.pop(endpoint).end()

    # --- one request ---

    def _answer(self, request: Request) -> Reply:
        self.requests.append(request.line)
        rule = self.rules.pick(request.line)
        if rule.status is not None and not rule.done:
            request.drain()
            return Reply(rule.status, rule.reason.encode())
        try:
            answer = self._route(request)
        except Problem as problem:
            return Reply(problem.status, str(problem).encode())
        if rule.delay_s:
            time.sleep(rule.delay_s)  # after it was carried out: somebody waits for the answer in vain
        return Reply(rule.status, rule.reason.encode()) if rule.status is not None else answer

    def _route(self, request: Request) -> Reply:
        if request.path == "/token":
            return self.tokens.exchange(request)
        self.tokens.check(request)
        if request.query.get("authuser") != "0":
            raise Problem(400, "badRequest", "authuser is missing")
        _, _, what = request.path.partition("/tun/m/")
        what, _, endpoint = what.partition("/")
        act = {
            "assign": self._assign,
            "assignments": self._assignments,
            "unassign": lambda r: self._unassign(r, endpoint),
            "ccu-info": self._ccu_info,
        }.get(what)
        if act is None:
            raise Problem(404, "notFound", "no such page")
        return Reply(200, (XSSI + json.dumps(act(request))).encode(), {"Content-Type": "application/json"})

    def _ccu_info(self, _: Request) -> dict[str, Any]:
        return {
            "currentBalance": self.balance,
            "consumptionRateHourly": 1.96 * len(self.machines),
            "assignmentsCount": len(self.machines),
        }

    def _assignments(self, _: Request) -> dict[str, Any]:
        return {"assignments": [self._listed(m) for m in self.machines.values()]}

    def _assign(self, request: Request) -> dict[str, Any]:
        nbh, accelerator = request.query["nbh"], request.query.get("accelerator", "NONE")
        variant = request.query.get("variant", "DEFAULT")
        if len(nbh) != 44:
            raise Problem(400, "badRequest", "nbh")
        with self._lock:
            found = next((m for m in self.machines.values() if m.nbh == nbh), None)
            if found is not None:
                return self._listed(found)
            if request.method == "GET":
                return {"acc": accelerator, "nbh": nbh, "p": False, "token": self._new_xsrf(), "variant": variant}
            self._check_xsrf(request)
            if accelerator not in self.entitled:
                raise Problem(400, "badRequest", f"{accelerator} is not available")
            if len(self.machines) >= self.most:
                raise Problem(412, "conditionNotMet", "Precondition Failed")
            if self.outcome is not None:
                return {"outcome": self.outcome}
            made = Machine(self.folder, nbh, accelerator, self.python, self._kernel)
            self.machines[made.endpoint] = made
            self.taken.append(made)
            return self._listed(made) | {"outcome": SUCCESS, "fit": 5400}

    def _unassign(self, request: Request, endpoint: str) -> dict[str, Any]:
        with self._lock:
            if endpoint not in self.machines:
                raise Problem(404, "notFound", "no such assignment")
            if request.method == "GET":
                return {"token": self._new_xsrf()}
            self._check_xsrf(request)
            self.machines.pop(endpoint).end()
            return {}

    def _new_xsrf(self) -> str:
        self._xsrf.add(made := secrets.token_hex(8))
        return made

    def _check_xsrf(self, request: Request) -> None:
        """Each counts once."""
        try:
            self._xsrf.remove(request.headers.get("x-goog-colab-token", ""))
        except KeyError:
            raise Problem(403, "forbidden", "XSRF") from None

    def _listed(self, machine: Machine) -> dict[str, Any]:
        return {
            "accelerator": machine.accelerator,
            "endpoint": machine.endpoint,
            "variant": VARIANTS["DEFAULT" if machine.accelerator == "NONE" else "GPU"],
            "machineShape": 0,
            "runtimeProxyInfo": {"token": machine.token, "tokenExpiresInSeconds": 3600, "url": machine.url},
        }
