"""The server as the agent of a joined machine sees it."""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from worker.agent.uplink import detail_of, is_ours
from worker.joined.membership import MachineError, Membership
from worker.shared.certificates import certificates
from worker.shared.joined_messages import WAIT_S, Joined, JoinRequest, MachineReport, Orders

TIMEOUT_S = 30.0
M = TypeVar("M", bound=BaseModel)
_REFUSED = frozenset({400, 403, 404, 409, 421, 422})


class Away(Exception):
    """There was no usable answer. It is unknown whether the server did anything."""


class Left(MachineError):
    """The server no longer knows this machine."""


class Server:
    """Calls of one machine. Each may raise `Away`, `Left` or `MachineError` with the server's own words."""

    def __init__(self, address: str, membership: Membership | None = None) -> None:
        self.address = address.rstrip("/")
        self.ahead_s = 0.0
        """How far this machine's clock is ahead of the server's."""
        token = {"Authorization": f"Bearer {membership.token}"} if membership is not None else {}
        self._client = httpx.Client(headers=token, timeout=TIMEOUT_S, verify=certificates(), trust_env=False)
        self._place = f"/machines/{membership.account}" if membership is not None else "/machines"

    def join(self, request: JoinRequest) -> Joined:
        """Exchange the code for a place."""
        return self._read(self._send("POST", "", request), Joined)

    def report(self, report: MachineReport) -> Orders:
        """Send the report, and get the orders."""
        return self._read(self._send("POST", "/report", report), Orders)

    def await_orders(self, seconds: float = WAIT_S) -> None:
        """Return when there are new orders, or after this time."""
        self._send("GET", f"/orders?seconds={seconds:g}")

    def leave(self) -> None:
        """Give the place up."""
        self._send("POST", "/leave")

    def worker(self, name: str, sha256: str) -> bytes:
        """The server's worker as a wheel."""
        return self._called("GET", f"/worker/{sha256}/{name}").content

    def close(self) -> None:
        """Close the connections. A call that waits in another thread ends with `Away`."""
        self._client.close()

    def _send(self, method: str, path: str, message: BaseModel | None = None) -> httpx.Response:
        return self._called(method, f"{self._place}{path}", message)

    def _called(self, method: str, path: str, message: BaseModel | None = None) -> httpx.Response:
        body = message.model_dump_json().encode() if message is not None else None
        kind = {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = self._client.request(method, f"{self.address}/api/v1{path}", content=body, headers=kind)
        except (httpx.HTTPError, RuntimeError) as error:  # a closed client raises the latter
            raise Away(f"{self.address} does not answer ({type(error).__name__}: {error})") from error
        if answer.is_success:
            self._compare_clocks(answer)
            return answer
        if not is_ours(answer):
            raise Away(f"what answers at {self.address} is not a Trainhop server ({answer.status_code})")
        if answer.status_code == 401:
            raise Left(
                f"The server at {self.address} no longer knows this machine. Delete its folder, and join again with "
                "a new code."
            )
        words = detail_of(answer).partition(": ")[2]
        raise (MachineError if answer.status_code in _REFUSED else Away)(words)

    def _compare_clocks(self, answer: httpx.Response) -> None:
        with suppress(ValueError, TypeError, KeyError):
            self.ahead_s = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()

    def _read(self, answer: httpx.Response, kind: type[M]) -> M:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise Away(f"the answer of {self.address} cannot be read; it may have another version") from error
