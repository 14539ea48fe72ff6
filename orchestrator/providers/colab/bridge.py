"""One call to Colab through its official client, in that client's environment: a request on stdin, a reply on stdout.

Run as `python -I bridge.py`. It needs Python 3.12 and `google-colab-cli`, and imports no code of this server. Requests
and replies are JSON objects. `ask` names the operation. `credential` is an authorized-user object. `endpoint` is the
address of an emulator on this computer, or null. A reply is `{"ok": ...}` or `{"refused": KIND, "words": ...}`. Without
a reply the outcome is unknown. The client writes into HOME only. The caller creates HOME for this one call and removes
it.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.auth.exceptions
import google.oauth2.credentials
import requests
from colab_cli.client import (
    Accelerator,
    Assignment,
    Client,
    ColabEnvironment,
    ColabRequestError,
    Prod,
    TooManyAssignmentsError,
    Variant,
)
from colab_cli.contents import ContentsClient
from colab_cli.state import SessionState
from google.auth.transport.requests import AuthorizedSession

XSSI = ")]}'\n"
GRANTED = 4
PART_BYTES = 8 << 20
"""The contents API takes a file in one request, as base64 in JSON."""
MAX_BYTES = 64 << 20
"""Maximum bytes that are read of one file."""
EXEC_S = 300.0
HERE = "content"


class RefusedError(Exception):
    """A refusal with its kind and Colab's message."""

    def __init__(self, kind: str, words: str = "") -> None:
        super().__init__(words)
        self.kind = kind


class _StartedError(Exception):
    """The cell has reported that the worker runs, so its output is not needed any longer."""


class _Session(AuthorizedSession):
    """Reads the reason why Colab made no assignment, which the official client ignores."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().request(method, url, *args, **kwargs)
        if method == "POST" and "/tun/m/assign?" in url and answer.ok:
            reply = json.loads(answer.text.removeprefix(XSSI))
            if reply.get("outcome", GRANTED) != GRANTED or not reply.get("endpoint"):
                raise RefusedError(f"outcome {reply.get('outcome')}")
        return answer


def login_of(request: dict[str, Any]) -> google.oauth2.credentials.Credentials:
    """The sign-in of the account's owner."""
    endpoint = request["endpoint"]
    return google.oauth2.credentials.Credentials(
        None,
        refresh_token=request["credential"]["refresh_token"],
        client_id=request["credential"]["client_id"],
        client_secret=request["credential"]["client_secret"],
        token_uri=f"{endpoint}/token" if endpoint else "https://oauth2.googleapis.com/token",
    )


def client_of(login: google.oauth2.credentials.Credentials, endpoint: str) -> Client:
    """The official client, signed in."""
    session = _Session(login)
    session.trust_env = False
    return Client(ColabEnvironment(domain=endpoint, api=endpoint) if endpoint else Prod(), session)


# --- operations -------------------------------------------------------------------------------------------


def usage(client: Client, _asked: dict[str, Any]) -> dict[str, Any]:
    """The remaining compute units, the current cost of an hour, and the number of running machines."""
    info = client.get_consumption_user_info()
    return {
        "balance": info.paid_compute_units_balance,
        "hourly": info.consumption_rate_hourly,
        "machines": info.assignments_count,
    }


def launch(client: Client, request: dict[str, Any]) -> dict[str, Any]:
    """Assign a machine, upload the bundle and start it. After any error the machine is released."""
    money = usage(client, request)
    if money["balance"] <= 0:
        raise RefusedError("balance", f"{money['balance']:.2f}")
    made = client.assign(*_wanted(request))
    started = False
    try:
        machine = Machine(made.runtime_proxy_info.url, made.runtime_proxy_info.token)
        machine.await_answer(request["ready_s"])
        machine.bring(Path(request["bundle"]), f"{request['name']}.zip")
        machine.start(request["code"], request["mark"])
        started = True
    finally:
        if not started:
            _give_back(client, made.endpoint)
    return {"machine": made.endpoint}


def _give_back(client: Client, endpoint: str) -> None:
    try:
        client.unassign(endpoint)
    except Exception as error:
        raise RefusedError("left behind", type(error).__name__) from error


def look(client: Client, request: dict[str, Any]) -> dict[str, Any]:
    """The state of each session: `gone`, `runs`, `silent`, or how its worker ended.

    A session is `gone` only if Colab does not list its machine.
    """
    machines = {a.endpoint: a.runtime_proxy_info for a in client.list_assignments()}
    seen: dict[str, Any] = {}
    for each in request["sessions"]:
        info = machines.get(each["machine"])
        if info is None:
            seen[each["name"]] = "gone"
            continue
        try:
            seen[each["name"]] = Machine(info.url, info.token).end_of(each["name"]) or "runs"
        except requests.RequestException:
            seen[each["name"]] = "silent"
    return seen


def read(client: Client, request: dict[str, Any]) -> dict[str, Any]:
    """A session's log since `segment` and `offset`, how it ended, and its outbox once it has ended."""
    machines = {a.endpoint: a.runtime_proxy_info for a in client.list_assignments()}
    info = machines.get(request["machine"])
    if info is None:
        raise RefusedError("gone")
    return Machine(info.url, info.token).read(request["name"], request["segment"], request["offset"])


def release(client: Client, request: dict[str, Any]) -> dict[str, Any]:
    """Release a session's machine, even if its name is unknown. No error if there is no machine."""
    endpoint = request.get("machine") or _assigned(client, request)
    if endpoint is not None and endpoint in {a.endpoint for a in client.list_assignments()}:
        client.unassign(endpoint)
    return {}


ASKS: dict[str, Callable[[Client, dict[str, Any]], dict[str, Any]]] = {
    "usage": usage,
    "launch": launch,
    "look": look,
    "read": read,
    "release": release,
}


def _wanted(request: dict[str, Any]) -> tuple[uuid.UUID, Variant, Accelerator]:
    """Colab assigns a machine to a notebook id. The id is derived from the session.

    A repeated request therefore gets the same machine.
    """
    accelerator = Accelerator(request["accelerator"])
    variant = Variant.DEFAULT if accelerator is Accelerator.NONE else Variant.GPU
    return uuid.uuid5(uuid.NAMESPACE_URL, f"trainhop:{request['name']}"), variant, accelerator


def _assigned(client: Client, request: dict[str, Any]) -> str | None:
    assignment = client._get_assignment(*_wanted(request))  # noqa: SLF001  the public methods would assign a machine
    return assignment.endpoint if isinstance(assignment, Assignment) else None


# --- one machine ------------------------------------------------------------------------------------------


class Machine:
    """The Jupyter server of one machine."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self._files = ContentsClient(SessionState(name="trainhop", token=token, url=url, endpoint=""))

    def await_answer(self, within_s: float) -> None:
        """Wait until the machine's server responds. A new machine needs some time."""
        until = time.monotonic() + within_s
        while True:
            try:
                self._files.list_dir(HERE)
                return
            except (requests.RequestException, FileNotFoundError):
                if time.monotonic() >= until:
                    raise
            time.sleep(1.0)

    def bring(self, source: Path, name: str) -> None:
        """Upload a file in parts."""
        part = Path.home() / "part"
        with source.open("rb") as file:
            for number, data in enumerate(iter(lambda: file.read(PART_BYTES), b"")):
                part.write_bytes(data)
                self._files.upload(str(part), f"{HERE}/{name}.{number:05d}")

    def start(self, code: str, mark: str) -> None:
        """Run a cell until it prints `mark`. The kernel keeps running the cell, and exists as long as the cell runs."""
        from colab_cli.runtime import ColabRuntime  # a third of all imports, and only a launch needs it

        runtime = ColabRuntime(self._url, self._token)

        def hear(output: dict[str, Any]) -> None:
            if mark in "".join(output.get("text", "")):
                raise _StartedError

        try:
            outputs = runtime.execute_code(code, output_hook=hear, timeout=EXEC_S)
        except _StartedError:
            return  # the end of this process closes the connection, which would take the client ten seconds
        last = outputs[-1] if outputs else {}
        raise RefusedError("cell", str(last.get("evalue") or last.get("text") or "no message")[:300])

    def end_of(self, name: str) -> dict[str, Any] | None:
        """How the worker ended. None while it runs."""
        content = self._content(f"{HERE}/{name}/ended.json")
        return json.loads(content) if content else None

    def read(self, name: str, segment: int, offset: int) -> dict[str, Any]:
        """See `read`. If the worker ended before its log was listed, the log is complete."""
        ended = self.end_of(name)
        with contextlib.suppress(FileNotFoundError):
            listed = [e["name"] for e in self._files.list_dir(f"{HERE}/{name}")["content"]]
            numbers = sorted(int(n[4:]) for n in listed if re.fullmatch(r"log\.\d{5}", n))
            output = bytearray()
            for number in (n for n in numbers if n >= segment):
                data = self._content(f"{HERE}/{name}/log.{number:05d}") or b""
                output += data[offset if number == segment else 0 :]
                segment, offset = number, len(data)
            outbox = self._content(f"{HERE}/{name}/outbox.jsonl") if ended else None
            return {
                "text": base64.b64encode(output).decode(),
                "outbox": base64.b64encode(outbox).decode() if outbox is not None else None,
                "segment": segment,
                "offset": offset,
                "ended": ended,
            }
        return {"text": "", "outbox": None, "segment": segment, "offset": offset, "ended": ended}

    def _content(self, path: str) -> bytes | None:
        here = Path.home() / "content"
        try:
            self._files.download(path, str(here))
        except FileNotFoundError:
            return None
        with here.open("rb") as file:
            return file.read(MAX_BYTES)


_FAULTS: tuple[tuple[Any, str], ...] = (
    (requests.Timeout, "it does not answer in time"),
    (requests.RequestException, "there is no connection to it"),
    (google.auth.exceptions.GoogleAuthError, "Google's sign-in does not answer"),
    (OSError, "there is no connection to it"),
    ((ValueError, KeyError, TypeError, AttributeError), "its answer is not in the expected form"),
    (RuntimeError, "the connection to its kernel was lost"),
)
"""What happened, for errors that are not refusals."""


# --- refusals ---------------------------------------------------------------------------------------------


def refusal_of(error: Exception) -> tuple[str, str]:
    """Kind and message of a refusal. Other errors get words of ours, because their text may contain a token."""
    match error:
        case RefusedError():
            return error.kind, str(error)
        case TooManyAssignmentsError():
            return "412", ""
        case google.auth.exceptions.RefreshError() if _is_refused(error):
            return "signin", str(error.args[0] if error.args else error)
        case ColabRequestError():
            return str(error.response.status_code), plain(error.response_body or "")
        case _:
            return "fault", next((words for kind, words in _FAULTS if isinstance(error, kind)), "its client failed")


def plain(body: str) -> str:
    """The message in an error reply. Empty for a web page, and for a reply without a message."""
    text = body.strip().removeprefix(XSSI.strip()).strip()
    if text.startswith("<"):
        return ""
    with contextlib.suppress(ValueError):
        value: Any = json.loads(text)
        for key in ("error", "message"):
            value = value.get(key, value) if isinstance(value, dict) else value
        text = value if isinstance(value, str) else ""
    return " ".join(text.split())


def _is_refused(error: google.auth.exceptions.RefreshError) -> bool:
    """Whether the token service or the library refused the sign-in.

    A temporary error does not prove that the sign-in is invalid. An HTML page does not either, although the library
    calls it a refusal whatever its status.
    """
    in_form = len(error.args) > 1
    return not error.retryable and (in_form or str(error).startswith("Reauth"))


def main() -> None:
    """Process one request."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is not part of the reply
    login = login_of(request)
    try:
        answer: dict[str, Any] = {"ok": ASKS[request["ask"]](client_of(login, request["endpoint"]), request)}
    except Exception as error:  # noqa: BLE001  `refusal_of` classifies it
        kind, message = refusal_of(error)
        for secret in filter(None, (login.refresh_token, login.client_secret, login.token)):
            message = message.replace(secret, "***")
        answer = {"refused": kind, "words": message[:300]}
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # do not wait for the thread of a websocket


if __name__ == "__main__":
    main()
