"""Models of the three kinds of shared place on a simulated clock, below as much of the product's own code as possible.

A folder is the product's own on a real file system. The Hub is the product's with a model of the Hub client's calls.
Google Drive is the product's, answered by a model of the requests that it sends.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import unquote

import httpx
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

from benchmarks.reach.simulation import Simulation
from worker.shared.shared_places.errors import UnknownError
from worker.shared.shared_places.google_drive import DOCUMENTS, DriveFolder
from worker.shared.shared_places.head import HEAD
from worker.shared.shared_places.hub import HubRepository
from worker.shared.shared_places.local_folder import LocalFolder
from worker.shared.shared_places.place import Place


class Model(Protocol):
    """A place as it really is."""

    @property
    def heads(self) -> list[bytes]:
        """All contents that HEAD has had, oldest first."""
        ...

    def open(self) -> Place:
        """The place as one session sees it. Called by a writer."""
        ...

    def content(self, name: str) -> bytes | None:
        """What is stored under this name now."""
        ...


# --- a folder ---


class FolderModel:
    def __init__(self, simulation: Simulation, folder: Path) -> None:
        self._simulation, self._folder = simulation, folder
        self._real = LocalFolder(folder)

    @property
    def heads(self) -> list[bytes]:
        versions = sorted((self._folder / "documents" / HEAD).iterdir())
        return [version.read_bytes() for version in versions]

    def open(self) -> Place:
        return _SlowFolder(self._simulation, self._folder)

    def content(self, name: str) -> bytes | None:
        path = self._folder / "files" / name
        return path.read_bytes() if path.exists() else None


class _SlowFolder(LocalFolder):
    """Between any two steps another session may run, and a listing may be old."""

    def __init__(self, simulation: Simulation, folder: Path) -> None:
        super().__init__(folder)
        self._simulation = simulation

    def _newest(self, name: str) -> int:
        self._simulation.travel()
        return self._simulation.state([0, *sorted(self._numbers(name))])

    def _content(self, name: str, number: int) -> bytes | None:
        self._simulation.travel()
        return super()._content(name, number)

    def swap_doc(self, name: str, expected: bytes | None, new: bytes) -> None:
        super().swap_doc(name, expected, new)
        self._cut()

    def put(self, name: str, source: Path) -> None:
        self._cut()
        with tempfile.NamedTemporaryFile(dir=source.parent) as sent:
            Path(sent.name).write_bytes(self._simulation.stored(source.read_bytes()))
            super().put(name, Path(sent.name))
        self._cut()

    def _cut(self) -> None:
        self._simulation.request(lambda: None, busy=lambda: UnknownError("io"), cut=lambda: UnknownError("io"))


# --- the Hub ---


class HubModel:
    """A repository: its commits with their files, and the bytes of large files that still exist."""

    def __init__(self, simulation: Simulation, _folder: Path) -> None:
        self.simulation = simulation
        self.commits: list[tuple[str, dict[str, bytes]]] = [("c0", {})]
        self.lost: set[str] = set()
        self._numbers = itertools.count(1)

    @property
    def heads(self) -> list[bytes]:
        found = [files[DOCUMENTS + HEAD] for _, files in self.commits if DOCUMENTS + HEAD in files]
        return [text for text, before in zip(found, [None, *found], strict=False) if text != before]

    def open(self) -> Place:
        return _ModelledHub(self)

    def content(self, name: str) -> bytes | None:
        data = self.commits[-1][1].get(name)
        return None if data is None or _sha256(data) in self.lost else data

    def land(self, operations: list[Any], parent: str | None) -> str:
        oid, files = self.commits[-1]
        if parent not in (None, oid):
            raise hub_error(412)
        files = dict(files)
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                name, content = operation.path_in_repo, _bytes(operation)
                is_small = name.startswith(DOCUMENTS)  # it is a part of the request
                files[name] = content if is_small else self.simulation.stored(content)
            else:
                files.pop(operation.path_in_repo, None)
        self.commits.append((f"c{next(self._numbers)}", files))
        return self.commits[-1][0]


class HubApi:
    """The calls of `HfApi` that the product makes."""

    endpoint, token = "http://127.0.0.1:9", "hf_x"

    def __init__(self, model: HubModel) -> None:
        self._model, self._simulation = model, model.simulation

    def ask(self, act: Any, *, writes: bool = False) -> Any:
        dice = self._simulation.dice
        return self._simulation.request(
            act,
            busy=lambda: hub_error(dice.choice((409, 429, 503))),
            cut=lambda: dice.choice((hub_error(500), httpx.RemoteProtocolError("cut"))),
            writes=writes,
        )

    def whoami(self) -> dict[str, Any]:
        return {"name": "me"}

    def repo_info(self, _repo: str) -> Any:
        return self.ask(lambda: SimpleNamespace(sha=self._simulation.state(self._model.commits)[0], private=True))

    def get_paths_info(self, _repo: str, names: list[str]) -> list[str]:
        return self.ask(lambda: [name for name in names if name in self._simulation.state(self._model.commits)[1]])

    def list_repo_tree(self, _repo: str, *, recursive: bool) -> list[Any]:
        return self.ask(lambda: [_entry(*item) for item in self._simulation.state(self._model.commits)[1].items()])

    def create_commit(
        self, _repo: str, operations: list[Any], *, commit_message: str, parent_commit: str | None
    ) -> Any:
        """Without a change the client returns the newest commit and compares no parent."""
        newest = self._model.commits[-1][1]
        adds = [op for op in operations if isinstance(op, CommitOperationAdd)]
        if adds and all(newest.get(op.path_in_repo) == _bytes(op) for op in adds):
            return self.ask(lambda: SimpleNamespace(oid=self._model.commits[-1][0]))
        return self.ask(lambda: SimpleNamespace(oid=self._model.land(operations, parent_commit)), writes=True)

    def list_lfs_files(self, _repo: str) -> list[Any]:
        def listed() -> list[Any]:
            stored = {name: data for _, files in self._model.commits for name, data in files.items()}
            return [
                SimpleNamespace(filename=n, oid=_sha256(d)) for n, d in stored.items() if n.endswith(".safetensors")
            ]

        return self.ask(listed)

    def permanently_delete_lfs_files(self, _repo: str, files: list[Any], *, rewrite_history: bool) -> None:
        self.ask(lambda: self._model.lost.update(file.oid for file in files), writes=True)


class _ModelledHub(HubRepository):
    def __init__(self, model: HubModel) -> None:
        self._model = model
        super().__init__("me/run", api=HubApi(model))

    def _pieces(self, name: str, revision: str, start: int, end: int | None) -> Iterator[bytes]:
        commits = dict(self._model.commits)
        with self._translated():
            data = self._api.ask(lambda: commits[revision].get(name))
            if data is None or _sha256(data) in self._model.lost:
                raise hub_error(404)
            yield data[start:end]


def hub_error(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("", response=httpx.Response(status, request=httpx.Request("POST", "http://127.0.0.1:9")))


def _entry(name: str, data: bytes) -> Any:
    lfs = SimpleNamespace(sha256=_sha256(data)) if name.endswith(".safetensors") else None
    return SimpleNamespace(path=name, size=len(data), lfs=lfs)


def _bytes(operation: CommitOperationAdd) -> bytes:
    with operation.as_file() as file:
        return file.read()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Google Drive ---


class DriveModel:
    """Files by id; each has a title, a time of creation, an etag and content. A new file is listed a little late."""

    LAG_S = 2.0

    def __init__(self, simulation: Simulation, _folder: Path) -> None:
        self.simulation = simulation
        self.files: dict[str, dict[str, Any]] = {}
        self.written: dict[str, list[bytes]] = {}
        self._numbers = itertools.count(1)

    @property
    def heads(self) -> list[bytes]:
        """Of the oldest file with this name: the others were created at the same time and did not win."""
        found = sorted((f for f in self.files.values() if f["title"] == DOCUMENTS + HEAD), key=_age)
        return self.written[found[0]["id"]] if found else []

    def open(self) -> Place:
        return _ModelledDrive(self)

    def content(self, name: str) -> bytes | None:
        found = sorted((f for f in self.files.values() if f["title"] == name), key=_age)
        return found[0]["content"] if found else None

    def insert(self, about: dict[str, Any], content: bytes) -> httpx.Response:
        if about["id"] in self.files:
            return httpx.Response(409)
        created, parent = f"{self.simulation.now:012.3f}", about.get("parents", [{"id": "root"}])[0]["id"]
        file = {"id": about["id"], "title": about["title"], "createdDate": created, "etag": "1", "parent": parent}
        self.files[about["id"]] = file | {"content": content, "mimeType": about.get("mimeType", "")}
        self.written[about["id"]] = [content]
        return httpx.Response(200, json={"id": about["id"]})

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Carry out one request of API v2."""
        verb, path = request.method, request.url.path.partition("/drive/v2/files")[2].strip("/")
        if path == "generateIds":
            return httpx.Response(200, json={"ids": [f"id{next(self._numbers)}"]})
        if not path:
            return self._listed(request) if verb == "GET" else self.insert(*_parts(request))
        file = self.files.get(path)
        return httpx.Response(404) if file is None else self._one(verb, file, request)

    def _one(self, verb: str, file: dict[str, Any], request: httpx.Request) -> httpx.Response:
        if verb == "DELETE":
            del self.files[file["id"]]
            return httpx.Response(204)
        if verb == "PUT":
            return self._replaced(file, request)
        if request.url.params.get("alt") == "media":
            start, _, end = request.headers.get("range", "bytes=0-9999999").removeprefix("bytes=").partition("-")
            return httpx.Response(200, content=file["content"][int(start) : int(end) + 1])
        sizes = {"fileSize": str(len(file["content"])), "sha256Checksum": _sha256(file["content"])}
        return httpx.Response(200, json={"etag": file["etag"], **sizes})

    def _replaced(self, file: dict[str, Any], request: httpx.Request) -> httpx.Response:
        if request.headers["if-match"] != file["etag"]:
            return httpx.Response(412)
        file |= {"etag": str(int(file["etag"]) + 1), "content": request.content}
        self.written[file["id"]].append(request.content)
        return httpx.Response(200, json={"etag": file["etag"]})

    def _listed(self, request: httpx.Request) -> httpx.Response:
        parent = unquote(request.url.params["q"]).split("'")[1]
        shown = [
            {
                **{key: file[key] for key in ("id", "title", "createdDate", "etag")},
                "fileSize": str(len(file["content"])),
            }
            for file in self.files.values()
            if file["parent"] == parent and self._is_listed(file)
        ]
        return httpx.Response(200, json={"items": shown})

    def _is_listed(self, file: dict[str, Any]) -> bool:
        return self.simulation.now - float(file["createdDate"]) > self.simulation.dice.uniform(0, self.LAG_S)


class _ModelledDrive(DriveFolder):
    def __init__(self, model: DriveModel) -> None:
        self._model = model
        client = httpx.Client(transport=httpx.MockTransport(self._send), trust_env=False)
        super().__init__("run", lambda: "token", client=client, sleep=model.simulation.sleep)

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._model.simulation.request(
                lambda: self._model.answer(request),
                busy=lambda: _StatusError(429),
                cut=lambda: self._model.simulation.dice.choice((_StatusError(503), httpx.RemoteProtocolError("cut"))),
                writes=request.method != "GET",
            )
        except _StatusError as error:
            return httpx.Response(error.args[0])

    def put(self, name: str, source: Path) -> None:
        """In one request: the upload in pieces has no part in who wins."""
        if not self._files(name):
            about = {"id": self._new_id(name), "title": name, "parents": [{"id": self._folder()}]}
            content = self._model.simulation.stored(source.read_bytes())
            self._model.simulation.request(
                lambda: self._model.insert(about, content),
                busy=lambda: UnknownError("cut"),
                cut=lambda: UnknownError("cut"),
                writes=True,
            )
            self._ids[name] = about["id"]


class _StatusError(Exception):
    """An answer with this status."""


def _age(file: dict[str, Any]) -> tuple[str, str]:
    return file["createdDate"], file["id"]


def _parts(request: httpx.Request) -> tuple[dict[str, Any], bytes]:
    if "multipart" not in request.headers["content-type"]:
        return json.loads(request.content), b""
    about, content = [part.partition(b"\r\n\r\n")[2] for part in request.content.split(b"--trainhop-document")[1:3]]
    return json.loads(about), content.removesuffix(b"\r\n")


MODELS: dict[str, type[FolderModel | HubModel | DriveModel]] = {
    "folder": FolderModel,
    "hub": HubModel,
    "drive": DriveModel,
}
