"""One call to Colab through its official client, in that client's own environment: a request on stdin, an answer on stdout.

`python -I bridge.py`; Python 3.12 and `google-colab-cli`, and nothing of ours. Requests and answers are JSON objects. `ask` says
what is wanted; `credential` is an authorized-user object, `endpoint` an address on this computer in Colab's place, or null.
An answer is `{"ok": ...}` or `{"refused": KIND, "words": ...}`; no answer at all means that nothing is known. The client writes
into HOME only, which whoever calls has made for this one call and removes.
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
from colab_cli.runtime import ColabRuntime
from colab_cli.state import SessionState
from google.auth.transport.requests import AuthorizedSession

XSSI = ")]}'\n"
GRANTED = 4
PART_BYTES = 8 << 20
"""The contents API takes a file in one request, as base64 in JSON."""
EXEC_S = 300.0
HERE = "content"


class RefusedError(Exception):
    """A refusal by its kind; the words are Colab's."""

    def __init__(self, kind: str, words: str = "") -> None:
        super().__init__(words)
        self.kind = kind


class _StartedError(Exception):
    """The cell has said that the worker runs: nobody has to listen any longer."""


class _Session(AuthorizedSession):
    """Reads what the official client passes over: why an assignment was not made."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().request(method, url, *args, **kwargs)
        if method == "POST" and "/tun/m/assign?" in url and answer.ok:
            said = json.loads(answer.text.removeprefix(XSSI))
            if said.get("outcome", GRANTED) != GRANTED or not said.get("endpoint"):
                raise RefusedError(f"outcome {said.get('outcome')}")
        return answer


def client_of(asked: dict[str, Any]) -> Client:
    """The official client, signed in as the account's owner."""
    endpoint = asked["endpoint"]
    login = google.oauth2.credentials.Credentials(
        None,
        refresh_token=asked["credential"]["refresh_token"],
        client_id=asked["credential"]["client_id"],
        client_secret=asked["credential"]["client_secret"],
        token_uri=f"{endpoint}/token" if endpoint else "https://oauth2.googleapis.com/token",
    )
    session = _Session(login)
    session.trust_env = False
    return Client(ColabEnvironment(domain=endpoint, api=endpoint) if endpoint else Prod(), session)


# --- what can be asked ------------------------------------------------------------------------------------


def usage(client: Client, _asked: dict[str, Any]) -> dict[str, Any]:
    """Compute units: what is left, what an hour costs now, and how many machines run."""
    found = client.get_consumption_user_info()
    return {
        "balance": found.paid_compute_units_balance,
        "hourly": found.consumption_rate_hourly,
        "machines": found.assignments_count,
    }


def launch(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """Take a machine, bring the bundle there and start it; whatever goes wrong, the machine is given back."""
    money = usage(client, asked)
    if money["balance"] <= 0:
        raise RefusedError("balance", f"{money['balance']:.2f}")
    made = client.assign(*_wanted(asked))
    started = False
    try:
        machine = Machine(made.runtime_proxy_info.url, made.runtime_proxy_info.token)
        machine.await_answer(asked["ready_s"])
        machine.bring(Path(asked["bundle"]), f"{asked['name']}.zip")
        machine.start(asked["code"], asked["mark"])
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


def look(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """For each session: `gone`, `runs`, `silent`, or how its worker has ended. Only Colab's own list says that one is gone."""
    found = {a.endpoint: a.runtime_proxy_info for a in client.list_assignments()}
    seen: dict[str, Any] = {}
    for each in asked["sessions"]:
        info = found.get(each["machine"])
        if info is None:
            seen[each["name"]] = "gone"
            continue
        try:
            seen[each["name"]] = Machine(info.url, info.token).end_of(each["name"]) or "runs"
        except requests.RequestException:
            seen[each["name"]] = "silent"
    return seen


def read(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """What is new in a session's log since `segment` and `offset`, its outbox once it has ended, and how it ended."""
    found = {a.endpoint: a.runtime_proxy_info for a in client.list_assignments()}
    info = found.get(asked["machine"])
    if info is None:
        raise RefusedError("gone")
    return Machine(info.url, info.token).read(asked["name"], asked["segment"], asked["offset"])


def release(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """Give a session's machine back, also one whose name is not known; nothing happens if there is none."""
    endpoint = asked.get("machine") or _found(client, asked)
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


def _wanted(asked: dict[str, Any]) -> tuple[uuid.UUID, Variant, Accelerator]:
    """Colab gives a machine to a notebook: the session's own number is one, so that asking twice takes one machine."""
    accelerator = Accelerator(asked["accelerator"])
    variant = Variant.DEFAULT if accelerator is Accelerator.NONE else Variant.GPU
    return uuid.uuid5(uuid.NAMESPACE_URL, f"trainhop:{asked['name']}"), variant, accelerator


def _found(client: Client, asked: dict[str, Any]) -> str | None:
    found = client._get_assignment(*_wanted(asked))  # noqa: SLF001  there is no public way to look without taking
    return found.endpoint if isinstance(found, Assignment) else None


# --- one machine ------------------------------------------------------------------------------------------


class Machine:
    """The Jupyter server of one machine."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self._files = ContentsClient(SessionState(name="trainhop", token=token, url=url, endpoint=""))

    def await_answer(self, within_s: float) -> None:
        """A machine that was just taken may take its time."""
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
        """Bring a file, in parts."""
        part = Path.home() / "part"
        with source.open("rb") as file:
            for number, data in enumerate(iter(lambda: file.read(PART_BYTES), b"")):
                part.write_bytes(data)
                self._files.upload(str(part), f"{HERE}/{name}.{number:05d}")

    def start(self, code: str, mark: str) -> None:
        """Run a cell until it says `mark`; the kernel goes on with it, and stays as long as it runs."""
        runtime = ColabRuntime(self._url, self._token)

        def hear(output: dict[str, Any]) -> None:
            if mark in "".join(output.get("text", "")):
                raise _StartedError

        try:
            outputs = runtime.execute_code(code, output_hook=hear, timeout=EXEC_S)
        except _StartedError:
            return  # the end of this process closes the connection; asked to, the client takes ten seconds
        last = outputs[-1] if outputs else {}
        raise RefusedError("cell", str(last.get("evalue") or last.get("text") or "it said nothing")[:300])

    def end_of(self, name: str) -> dict[str, Any] | None:
        """How the worker ended, None while it runs."""
        found = self._content(f"{HERE}/{name}/ended.json")
        return json.loads(found) if found else None

    def read(self, name: str, segment: int, offset: int) -> dict[str, Any]:
        """See `read`. What ended before the log is listed has said all that it will say."""
        ended = self.end_of(name)
        with contextlib.suppress(FileNotFoundError):
            listed = [e["name"] for e in self._files.list_dir(f"{HERE}/{name}")["content"]]
            numbers = sorted(int(n[4:]) for n in listed if re.fullmatch(r"log\.\d{5}", n))
            found = bytearray()
            for number in (n for n in numbers if n >= segment):
                data = self._content(f"{HERE}/{name}/log.{number:05d}") or b""
                found += data[offset if number == segment else 0 :]
                segment, offset = number, len(data)
            outbox = self._content(f"{HERE}/{name}/outbox.jsonl") if ended else None
            return {
                "text": base64.b64encode(found).decode(),
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
        return here.read_bytes()


# --- refusals ---------------------------------------------------------------------------------------------


def refusal_of(error: Exception) -> tuple[str, str]:
    """Kind and words. Of what is no refusal only the type is told: its text may hold an address with a token in it."""
    match error:
        case RefusedError():
            return error.kind, str(error)
        case TooManyAssignmentsError():
            return "412", ""
        case google.auth.exceptions.RefreshError() if _is_refused(error):
            return "signin", str(error.args[0] if error.args else error)[:300]
        case ColabRequestError():
            return str(error.response.status_code), (error.response_body or "")[:300]
        case _:
            return "fault", type(error).__name__


def _is_refused(error: google.auth.exceptions.RefreshError) -> bool:
    """Whether it was the token service or the library that said no.

    'Later' says nothing about the sign-in, nor does a page, which the library calls a refusal whatever its status.
    """
    in_form = len(error.args) > 1
    return not error.retryable and (in_form or str(error).startswith("Reauth"))


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    try:
        answer: dict[str, Any] = {"ok": ASKS[asked["ask"]](client_of(asked), asked)}
    except Exception as error:  # noqa: BLE001  sorted there
        kind, words = refusal_of(error)
        answer = {"refused": kind, "words": words}
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # a websocket's thread is not waited for


if __name__ == "__main__":
    main()
