"""How a notebook reaches a server that it cannot call: by two small documents in its owner's Drive.

The worker prints signed lines; the notebook copies those that were not heard yet into the one document and reads what the
server says from the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from worker.notebook.errors import NotebookError
from worker.notebook.reach import Next
from worker.shared.messages import Action, Finish, Grant, Release, sign_line, signed_message
from worker.shared.notebook_messages import Claimed, ClaimRequest, MailboxReply, MailboxRequest

TIMEOUT_S = 60.0
PATIENCE_S = 600.0
"""For the server's first answer: it may have to bring the data to the Drive before."""
GOODBYE_S = 90.0
ASK_EVERY_S = 2.0
WRITE_EVERY_S = 10.0


class Writing:
    """Implements `Reach` with the documents at `addresses` (`up` is ours, `down` the server's); `credentials` are google-auth's."""

    def __init__(self, addresses: dict[str, str], credentials: Any) -> None:
        self._up, self._down = addresses["up"], addresses["down"]
        self._credentials, self._every_s = credentials, WRITE_EVERY_S
        self._nonce, self._token = "", ""
        self._offset = 0
        self._lines: list[tuple[int, str]] = []
        self._next, self._written = 0.0, MailboxRequest(nonce="")

    # --- Reach ---

    def claim(self, asked: ClaimRequest) -> Claimed:
        self._nonce = asked.nonce
        found = self._read()
        if found is not None and found.taken:
            raise NotebookError(
                "this notebook was run before, or runs in another tab: a code works once, make a new one"
            )
        letter, until = MailboxRequest(nonce=asked.nonce, claim=asked), time.monotonic() + PATIENCE_S
        self._write(letter)
        while time.monotonic() < until:
            answer = self._read()
            if answer is None or answer.nonce != self._nonce:
                time.sleep(ASK_EVERY_S)
                continue
            if answer.refused or answer.claimed is None:
                raise NotebookError(answer.refused or "the server has answered without a job: make a new notebook")
            ticket = answer.claimed.ticket
            self._token = ticket.token
            if ticket.assignment is not None:
                self._every_s = min(WRITE_EVERY_S, ticket.assignment.report_every_s)
            return _signed_in(answer.claimed, self._headers(), urlsplit(self._up).netloc)
        self._write(MailboxRequest(nonce=""))
        raise NotebookError("the server has not looked into the Drive: start it (trainhop up) and run this cell again")

    def outbox(self, home: Path) -> Path:
        return home / "keep" / "outbox.jsonl"

    def tend(self, log: Path) -> Next:
        if time.monotonic() < self._next:
            return Next.GO_ON
        self._next = time.monotonic() + self._every_s
        self._collect(log)
        return self._exchange()

    def settle(self, log: Path) -> bool:
        self._collect(log)
        until = time.monotonic() + GOODBYE_S
        while self._lines and time.monotonic() < until:
            if self._exchange() is Next.STOP:
                return not self._lines
            if self._lines:
                time.sleep(min(self._every_s, ASK_EVERY_S))
        return not self._lines

    def say(self, claimed: Claimed, message: Release | Finish) -> None:
        self._lines.append((message.seq, sign_line(claimed.ticket.token, message.as_line())))
        self._exchange()

    # --- documents ---

    def _collect(self, log: Path) -> None:
        """New lines of the worker's output that are meant for the server."""
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                text = line.decode(errors="replace").rstrip("\n")
                message = signed_message(self._token, text)
                if message is not None:
                    self._lines.append((_seq(message), text))

    def _exchange(self) -> Next:
        """Say what was not heard; hear what there is to do. A Drive that does not answer changes nothing."""
        answer = self._read()
        mine = answer is not None and answer.nonce == self._nonce
        if answer is not None and mine:
            self._lines = [(seq, line) for seq, line in self._lines if seq > answer.heard]
        letter = MailboxRequest(nonce=self._nonce, lines=tuple(line for _, line in self._lines))
        if self._lines and not (mine and letter == self._written) and self._write(letter):
            self._written = letter
        if answer is None or not mine:
            return Next.GO_ON
        if answer.over:
            return Next.STOP
        if answer.directive.action is Action.CONTINUE:
            return Next.GO_ON
        return {"paused": Next.PAUSE, "cancelled": Next.CANCEL}.get(answer.directive.reason, Next.LEAVE)

    def _read(self) -> MailboxReply | None:
        answer = self._ask("GET", self._down, lambda headers: {"headers": headers})
        try:
            return MailboxReply.model_validate_json(answer.content) if answer is not None else None
        except ValidationError:
            return None

    def _write(self, letter: MailboxRequest) -> bool:
        url = self._up.replace("/drive/v2/", "/upload/drive/v2/").partition("?")[0] + "?uploadType=media"
        body = letter.model_dump_json().encode()
        kind = {"Content-Type": "application/octet-stream"}
        return self._ask("PUT", url, lambda headers: {"headers": headers | kind, "content": body}) is not None

    def _ask(self, method: str, url: str, more: Callable[[dict[str, str]], dict[str, Any]]) -> httpx.Response | None:
        def ask(headers: dict[str, str]) -> httpx.Response:
            return httpx.request(method, url, timeout=TIMEOUT_S, trust_env=False, **more(headers))

        try:
            answer = ask(self._headers())
            if answer.status_code == 401:  # a clock that is slow, or a token that was withdrawn
                answer = ask(self._headers(renewed=True))
        except (httpx.HTTPError, OSError):
            return None
        return answer if answer.is_success else None

    def _headers(self, *, renewed: bool = False) -> dict[str, str]:
        """The person's own sign-in, renewed when it has run out or that is asked for."""
        if renewed or not self._credentials.valid:
            import google.auth.exceptions
            import google.auth.transport.requests

            try:
                self._credentials.refresh(google.auth.transport.requests.Request())
            except google.auth.exceptions.GoogleAuthError as error:
                raise OSError(str(error)) from error
        return {"Authorization": f"Bearer {self._credentials.token}"}


def _seq(message: str) -> int:
    import json

    return int(json.loads(message)["seq"])


def _signed_in(claimed: Claimed, headers: dict[str, str], host: str) -> Claimed:
    """What the worker reads from the account's `host` at its start, it reads as the person who runs the notebook.

    A model's large files lie with strangers, who are not told who asks.
    """
    assignment = claimed.ticket.assignment
    if assignment is None:
        return claimed

    def readable(grant: Grant) -> Grant:
        return grant.model_copy(update={"headers": headers}) if urlsplit(grant.url or "").netloc == host else grant

    resume = assignment.resume
    changes = {
        "datasets": tuple(map(readable, assignment.datasets)),
        "model": tuple(map(readable, assignment.model)),
        "resume": readable(resume) if resume is not None else None,
    }
    ticket = claimed.ticket.model_copy(update={"assignment": assignment.model_copy(update=changes)})
    return claimed.model_copy(update={"ticket": ticket})
