"""Connects a notebook to a server that it cannot call, through two small documents in its owner's Drive.

The worker prints signed lines. The notebook copies the unacknowledged ones into one document, and reads the server's
replies from the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from worker.notebook.connection import Next
from worker.notebook.errors import NotebookError
from worker.shared.certificates import certificates
from worker.shared.messages import Action, Finish, Grant, Release, sign_line, signed_message
from worker.shared.notebook_messages import Claimed, ClaimRequest, MailboxReply, MailboxRequest

TIMEOUT_S = 60.0
PATIENCE_S = 600.0
"""Seconds to wait for the server's first reply. The server may have to copy the data to the Drive before."""
GOODBYE_S = 90.0
ASK_EVERY_S = 2.0
WRITE_EVERY_S = 10.0


class MailboxConnection:
    """Implements `Connection` with the mailbox documents at `addresses`: `up` is ours, `down` the server's.

    `credentials` are google-auth's.
    """

    def __init__(self, addresses: dict[str, str], credentials: Any) -> None:
        self._up, self._down = addresses["up"], addresses["down"]
        self._credentials, self._every_s = credentials, WRITE_EVERY_S
        self._nonce, self._token = "", ""
        self._offset = 0
        self._lines: list[tuple[int, str]] = []
        self._next, self._written = 0.0, MailboxRequest(nonce="")

    # --- Connection ---

    def claim(self, request: ClaimRequest) -> Claimed:
        self._nonce = request.nonce
        reply = self._read()
        if reply is not None and reply.taken:
            raise NotebookError("This notebook was already run, or it is running in another tab. Create a new one.")
        message, until = MailboxRequest(nonce=request.nonce, claim=request), time.monotonic() + PATIENCE_S
        self._write(message)
        while time.monotonic() < until:
            reply = self._read()
            if reply is None or reply.nonce != self._nonce:
                time.sleep(ASK_EVERY_S)
                continue
            if reply.refused or reply.claimed is None:
                raise NotebookError(reply.refused or "The server's answer has no job. Create a new notebook.")
            ticket = reply.claimed.ticket
            self._token = ticket.token
            if ticket.assignment is not None:
                self._every_s = min(WRITE_EVERY_S, ticket.assignment.report_every_s)
            return _signed_in(reply.claimed, self._headers(), urlsplit(self._up).netloc)
        self._write(MailboxRequest(nonce=""))
        raise NotebookError(
            "The server has not answered through Google Drive. Start it (trainhop up) and run this cell again."
        )

    def outbox(self, home: Path) -> Path:
        return home / "keep" / "outbox.jsonl"

    def poll(self, log: Path) -> Next:
        if time.monotonic() < self._next:
            return Next.GO_ON
        self._next = time.monotonic() + self._every_s
        self._collect(log)
        return self._exchange()

    def flush(self, log: Path) -> bool:
        self._collect(log)
        until = time.monotonic() + GOODBYE_S
        while self._lines and time.monotonic() < until:
            if self._exchange() is Next.STOP:
                return not self._lines
            if self._lines:
                time.sleep(min(self._every_s, ASK_EVERY_S))
        return not self._lines

    def send(self, claimed: Claimed, message: Release | Finish) -> None:
        self._lines.append((message.seq, sign_line(claimed.ticket.token, message.as_line())))
        self._exchange()

    # --- documents ---

    def _collect(self, log: Path) -> None:
        """Read new signed lines from the worker's output."""
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
        """Write unacknowledged lines and read the server's reply. Nothing changes if the Drive does not respond."""
        reply = self._read()
        is_current = reply is not None and reply.nonce == self._nonce
        if reply is not None and is_current:
            self._lines = [(seq, line) for seq, line in self._lines if seq > reply.heard]
        message = MailboxRequest(nonce=self._nonce, lines=tuple(line for _, line in self._lines))
        if self._lines and not (is_current and message == self._written) and self._write(message):
            self._written = message
        if reply is None or not is_current:
            return Next.GO_ON
        if reply.over:
            return Next.STOP
        if reply.directive.action is Action.CONTINUE:
            return Next.GO_ON
        return {"paused": Next.PAUSE, "cancelled": Next.CANCEL}.get(reply.directive.reason, Next.LEAVE)

    def _read(self) -> MailboxReply | None:
        response = self._request("GET", self._down, lambda headers: {"headers": headers})
        try:
            return MailboxReply.model_validate_json(response.content) if response is not None else None
        except ValidationError:
            return None

    def _write(self, message: MailboxRequest) -> bool:
        url = self._up.replace("/drive/v2/", "/upload/drive/v2/").partition("?")[0] + "?uploadType=media"
        body = message.model_dump_json().encode()
        kind = {"Content-Type": "application/octet-stream"}
        return self._request("PUT", url, lambda headers: {"headers": headers | kind, "content": body}) is not None

    def _request(
        self, method: str, url: str, more: Callable[[dict[str, str]], dict[str, Any]]
    ) -> httpx.Response | None:
        def send(headers: dict[str, str]) -> httpx.Response:
            return httpx.request(
                method, url, timeout=TIMEOUT_S, verify=certificates(), trust_env=False, **more(headers)
            )

        try:
            response = send(self._headers())
            if response.status_code == 401:  # this machine's clock is slow, or the token was revoked
                response = send(self._headers(renewed=True))
        except (httpx.HTTPError, OSError):
            return None
        return response if response.is_success else None

    def _headers(self, *, renewed: bool = False) -> dict[str, str]:
        """Authorization of the person. Refreshed if it has expired or `renewed` is set."""
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
    """Add the person's authorization to downloads from the account's `host`.

    Large files of a model may be on other hosts, which do not receive it.
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
        "judge": tuple(map(readable, assignment.judge)),
        "resume": readable(resume) if resume is not None else None,
    }
    ticket = claimed.ticket.model_copy(update={"assignment": assignment.model_copy(update=changes)})
    return claimed.model_copy(update={"ticket": ticket})
