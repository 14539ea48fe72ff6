"""Looks for credentials where none may be, after a job on emulated Kaggle and Drive that fail and repeat them.

Every kind of credential is a word that occurs nowhere else. A service answers some requests with errors that contain
what it was sent, and a person makes mistakes with it. Then everything that was stored, logged, sent or
answered is searched, also inside archives and base64. A word that is no secret is planted beside them: where it is not
found, the search is wrong.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import contextlib
import io
import json
import lzma
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.sandbox import Sandbox, sandbox
from benchmarks.tiny_job import finished, job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama
from orchestrator.adapters.database.unit_of_work import make_engine, make_unit_of_work
from tests.emulators.drive.faults import Rule
from tests.emulators.hub import HubEmulator
from tests.emulators.judge import Fault, JudgeEmulator, always
from tests.helpers.evaluations import add_evaluation

STEPS = 12
OPEN = "inTheOpen7f3a"
"""Not a secret: the name of the job and of its data file."""
_OWN = {"admin.token", "vault.key", "secret.key"}
"""Files of the data folder that are credentials, readable only by the server's user."""
_BLOB = re.compile(rb"[A-Za-z0-9+/=_-]{60,}")
DEPTH = 3
"""Archives in archives."""


@dataclass(frozen=True)
class _Services:
    """Emulators of the hub, Kaggle and Drive, and of a judge model."""

    hub: HubEmulator
    judge: JudgeEmulator
    outside: Sandbox


def canaries(folder: Path) -> Iterator[Figure]:
    """Run the story, then search each place for each credential."""
    with HubEmulator() as hub, JudgeEmulator() as judge, sandbox(folder / "outside", _canary("KGAT_")) as outside:
        tokens = outside.drive.tokens
        tokens.client_secret, tokens.refresh_tokens = _canary("GOCSPX-"), {_canary("1//")}
        kinds = {"Drive client secret": tokens.client_secret, "Drive refresh token": min(tokens.refresh_tokens)}
        kinds |= {"Kaggle token": outside.token, "hub token": _canary("hf_"), "password of a channel": _canary("pw")}
        kinds["key of a judge model"] = judge.key = _canary("sk-")
        hub.accounts[kinds["hub token"]] = "ann"
        settings = {"allowed_folders": json.dumps([str(folder)]), "hub_endpoint": hub.endpoint, **outside.settings}
        answers: list[bytes] = []
        with lab(folder / "lab", **settings, report_every_s=1) as server:
            server.client.event_hooks["response"] = [lambda answer: _keep(answer, answers)]
            kinds["member token"] = _story(server, _Services(hub, judge, outside), kinds, folder)
            _read_all(server)
            kinds["admin token"] = (server.data / "admin.token").read_text().strip()
            kinds |= {f"Drive access token {n}": token for n, token in enumerate(tokens.issued, 1)}
        places = _places(server.data, outside, answers)
    yield from _found(places, kinds)


def _found(places: Mapping[str, list[bytes]], kinds: Mapping[str, str]) -> Iterator[Figure]:
    seen: list[str] = []
    for place, contents in places.items():
        hits = words_in(contents, {**kinds, OPEN: OPEN})
        seen += [place] if OPEN in hits else []
        hits -= {OPEN}
        yield Figure(name=f"credentials found in {place}", value=", ".join(sorted(hits)) or 0, bar="0", ok=not hits)
    ok = set(seen) >= {"answers", "database", "kernels"}
    bar = "answers, database, kernels"
    yield Figure(name="places where an open word is found", value=", ".join(seen), bar=bar, ok=ok)
    yield Figure(name="credentials searched for", value=len(kinds), bar=">= 8", ok=len(kinds) >= 8)
    texts = {place: len(contents) for place, contents in places.items()}
    ok = all(texts.values()) and sum(texts.values()) >= 100
    yield Figure(name="files, logs and answers searched", value=texts, bar=">= 100, some in each place", ok=ok)


def _canary(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


def _keep(answer: httpx.Response, answers: list[bytes]) -> None:
    """All answers but the one that tells a new token, once, to its owner."""
    if answer.request.method != "POST" or not answer.request.url.path.endswith("/tokens"):
        answers.append(answer.read())


def _story(server: Lab, services: _Services, kinds: Mapping[str, str], folder: Path) -> str:
    """Mistakes with credentials, then a job whose services repeat what they were sent. Returns a member's token."""
    _mistakes(server, kinds)
    services.hub.rules.add("whoami", status=500, body=kinds["hub token"])
    server.client.put("/hub-token", json={"token": kinds["hub token"]})
    server.put("/hub-token", {"token": kinds["hub token"]})
    services.outside.move_in(server)
    server.post("/notifications", {"url": f"json://ann:{kinds['password of a channel']}@trainhop.invalid/hook"})
    server.post("/members", {"name": "ann"})
    token = server.post("/tokens", {"member": "ann", "name": "laptop"})["secret"]
    words = f"bad token {kinds['Kaggle token']}"
    kaggle, drive = services.outside.kaggle.rules, services.outside.drive.rules
    kaggle.add("SaveKernel", status=500, body={"code": 500, "message": words})
    kaggle.add("GetKernelSessionStatus", status=500, reason=words, times=2)
    kaggle.add("ListKernelSessionOutput", status=400, body=f"<html>{words}</html>")
    drive.add(Rule(pattern="upload", status=500, reason=kinds["Drive refresh token"], times=2))
    drive.add(Rule(pattern="/token", status=401, reason=kinds["Drive client secret"], after=1))
    model = make_tiny_llama(folder / "model")
    data = server.upload(write_rows(folder / f"{OPEN}.jsonl"))
    job = server.post("/jobs", job_file(model, data, "lora") | {"name": OPEN, "max_steps": STEPS})["id"]
    server.wait_for(lambda: finished(server, job), "the job's end", 600, 0.2)
    _judge(server, services.judge, job)
    return token


def _judge(server: Lab, judge: JudgeEmulator, job: str) -> None:
    """An endpoint that repeats its key is added and fails, so that the judgement is paused."""
    wanted = {"name": "judge", "url": judge.url, "model": judge.model, "key": judge.key, "consent": True}
    refused = server.client.post("/judge-endpoints", json=wanted | {"key": f"{judge.key}x"})
    if refused.status_code != HTTPStatus.UNPROCESSABLE_ENTITY:
        raise RuntimeError(f"the judge took a wrong key: {refused.text}")
    server.post("/judge-endpoints", wanted)
    engine = make_engine(f"sqlite:///{server.data / 'trainhop.db'}")
    add_evaluation(make_unit_of_work(engine), job, 10, owner=server.get("/me")["id"])
    engine.dispose()
    repeats = {"status": 401, "body": judge.key.encode(), "headers": {"WWW-Authenticate": judge.key}}
    judge.conduct, judge.faults = always(judge.key), [Fault(status=400, body=judge.key.encode()), Fault(**repeats)]
    path = f"/evaluations/{job}/judgements"
    server.post(path, {"endpoint": "judge"})
    server.wait_for(lambda: server.get(path)["items"][0]["state"] == "paused", "the judgement's end", 60, 0.2)
    _ask(server, path)


def _mistakes(server: Lab, kinds: Mapping[str, str]) -> None:
    """Every credential where it does not belong. Each request is refused."""
    for word in kinds.values():
        for method, path, body in (
            ("POST", "/accounts", {"provider": "kaggle", "credentials": [word]}),
            ("POST", "/accounts", {"provider": word, "credentials": "x"}),
            ("POST", "/accounts", {"provider": "kaggle", "credentials": word, "config": {"slots": word}}),
            ("PUT", "/stores/drive", {"credentials": f'{{"refresh_token": "{word}"'}),
            ("PUT", "/stores/drive", {"credentials": json.dumps({"client_secret": word, "type": "service_account"})}),
            ("PUT", "/hub-token", {"token": {"is": word}}),
            ("PUT", "/hub-token", {"token": f"x{word}"}),
            ("POST", "/judge-endpoints", {"name": "j", "url": f"https://ann:{word}@127.0.0.1/v1", "model": "m"}),
            ("POST", "/judge-endpoints", {"name": "j", "url": "http://127.0.0.1:9/v1", "model": "m", "key": word}),
            ("POST", "/notifications", {"url": f"nonsense://ann:{word}@here"}),
        ):
            answer = server.client.request(method, path, json=body)
            if answer.is_success:
                raise RuntimeError(f"{method} {path} took a wrong credential: {answer.text}")
        server.client.get("/me", headers={"Authorization": f"Bearer {word}"})


def _read_all(server: Lab) -> None:
    """Every list of the API, every record of the jobs, and every page."""
    for path in (
        "me",
        "jobs",
        "accounts",
        "stores",
        "datasets",
        "members",
        "tokens",
        "notifications",
        "hub-token",
        "judge-endpoints",
    ):
        _ask(server, f"/{path}")
    for channel in server.get("/notifications")["items"]:
        _ask(server, f"/notifications/{channel['id']}/deliveries")
    pages = ["/", "/fleet", "/submit", "/people", "/notifications", "/metrics", "/readyz"]
    for job in server.get("/jobs")["items"]:
        for kind in ("", "/sessions", "/events", "/checkpoints", "/metrics", "/samples", "/adapter"):
            _ask(server, f"/jobs/{job['id']}{kind}")
        for checkpoint in server.get(f"/jobs/{job['id']}/checkpoints")["items"]:
            _ask(server, f"/jobs/{job['id']}/checkpoints/{checkpoint['sha256']}")
        for session in server.get(f"/jobs/{job['id']}/sessions")["items"]:
            _ask(server, f"/sessions/{session['id']}/log")
            pages.append(f"/jobs/{job['id']}/sessions/{session['id']}")
        pages += [f"/jobs/{job['id']}", f"/evaluations/{job['id']}/judge"]
    address = str(server.client.base_url).removesuffix("/api/v1/")
    link = server.post("/login-links")["url"]
    for page in (link[link.index("/login") :], *pages):
        _ask(server, address + page)


def _ask(server: Lab, address: str) -> None:
    """The hook keeps the answer. One that is an error would hide what is searched."""
    if (answer := server.client.get(address)).is_error:
        raise RuntimeError(f"{address} answered {answer.status_code}")


def _places(data: Path, outside: Sandbox, answers: list[bytes]) -> dict[str, list[bytes]]:
    """All that was written, by place."""
    files = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name not in _OWN}
    database = [files.pop(path) for path in list(files) if ".db" in path.name]
    logs = [files.pop(path) for path in list(files) if path.suffix == ".log"]
    logs.append((data.parent / "server.log").read_bytes())
    return {
        "database": database,
        "logs": logs,
        "other files of the data folder": list(files.values()),
        "kernels": [json.dumps(seen.said).encode() for seen in outside.kaggle.seen("SaveKernel")],
        "datasets and outputs": [p.read_bytes() for p in outside.kaggle.world.folder.rglob("*") if _is_file(p)],
        "checkpoints and adapters": [outside.drive.bytes_of(file) for file in outside.drive.files()],
        "answers": answers,
    }


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def words_in(contents: Iterable[bytes], kinds: Mapping[str, str]) -> set[str]:
    """The kinds whose word is in one of these: as it is, in an archive, or in base64."""
    wanted = {kind: word.encode() for kind, word in kinds.items()}
    layers = (layer for content in contents for layer in _layers(content, DEPTH))
    return {kind for layer in layers for kind, word in wanted.items() if word in layer}


def _layers(content: bytes, depth: int) -> Iterator[bytes]:
    yield content
    if depth:
        for inner in _inner(content):
            yield from _layers(inner, depth - 1)


def _inner(content: bytes) -> Iterator[bytes]:
    if content.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    for unpack in (bz2.decompress, lzma.decompress, zlib.decompress):
        with contextlib.suppress(lzma.LZMAError, zlib.error, OSError, ValueError):
            yield unpack(content)
    for blob in _BLOB.findall(content):
        with contextlib.suppress(binascii.Error):
            yield base64.b64decode(blob.translate(_URL_SAFE) + b"==")


_URL_SAFE = bytes.maketrans(b"-_", b"+/")
