"""What is written to the emulated hub: repositories, large files, commits; who may write where."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from tests.emulators.hub.state import Commit, RefusedError, Repo

if TYPE_CHECKING:
    from tests.emulators.hub.server import HubEmulator

_NAME = r"([\w.-]+/[\w.-]+)"
_LARGE = (".safetensors", ".bin", ".model")
_PAGE = 50
Answer = dict[str, Any]


class Writes:
    """Routes of the hub that write. `roles` are `read`, `write` or a fine-grained token's scopes, by token.

    `orgs` are the organisations of an account, each with its role there.
    """

    def __init__(self, hub: HubEmulator) -> None:
        self._hub, self._lock = hub, threading.Lock()
        self.roles: dict[str, str | list[Answer]] = {}
        self.orgs: dict[str, dict[str, str]] = {}
        self._objects: dict[str, bytes] = {}
        self._uploads: dict[str, tuple[str, int]] = {}
        self._stored: dict[str, dict[str, tuple[str, int]]] = {}
        self._routes: tuple[tuple[str, Callable[..., Any]], ...] = (
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (rf"POST /api/models/{_NAME}/preupload/main", self._preupload),
            (rf"POST /{_NAME}\.git/info/lfs/objects/batch", self._batch),
            (rf"POST /api/models/{_NAME}/commit/main", self._commit),
            (rf"POST /api/models/{_NAME}/paths-info/main", self._paths),
            (rf"POST /api/models/{_NAME}/lfs-files/batch", self._free),
        )

    def rights(self, account: str, token: str) -> Answer:
        """What `whoami` says of the account's organisations and its token."""
        role = self.roles.get(token, "write")
        said: Answer = {"role": role} if isinstance(role, str) else {"role": "fineGrained"}
        if not isinstance(role, str):
            said["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": role}
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.orgs.get(account, {}).items()]
        return {"orgs": orgs, "auth": {"type": "access_token", "accessToken": said}}

    def commits(self, repo: str) -> list[Commit]:
        """The commits of a repository that were pushed after the first one, oldest first."""
        found = self._hub.repos.get(("model", repo))
        return found.history[1:] if found is not None else []

    def add(self, repo: Repo, account: str) -> Repo:
        """Put a repository of this account there, with one commit."""
        repo.readers.add(account)
        repo.history.append(Commit(repo.commit, "initial commit"))
        repo.snapshots[repo.commit] = repo.files
        return self._hub.add(repo)

    def push(self, repo: str, title: str, files: Mapping[str, bytes]) -> str:
        """A commit of somebody else."""
        return self._landed(self._hub.repos["model", repo], {"summary": title}, dict(files))

    def history(self, repo: Repo, revision: str, page: int) -> tuple[list[Answer], int, dict[str, str]]:
        """A page of commits up to a revision, newest first, with the header that names the next page."""
        oids = [one.oid for one in repo.history]
        end = len(oids) if revision == "main" else oids.index(revision) + 1
        found = [
            {"id": one.oid, "title": one.title, "message": one.message, "authors": [], "date": "2026-01-01T00:00:00Z"}
            for one in reversed(repo.history[:end])
        ]
        more = len(found) > _PAGE * (page + 1)
        link = f'<{self._hub.endpoint}/api/models/{repo.id}/commits/{revision}?p={page + 1}>; rel="next"'
        return found[_PAGE * page : _PAGE * (page + 1)], 200, {"Link": link} if more else {}

    def answer(self, request: str, body: bytes, account: str | None, token: str) -> Any:
        """Carry out a request that writes."""
        if upload := re.fullmatch(r"PUT /lfs/(\w+)", request):
            return self._put(upload[1], body)
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        for pattern, route in self._routes:
            if found := re.fullmatch(pattern, request):
                return route(*found.groups(), body, account, token)
        raise RefusedError(404, "Not found")

    def _may_write(self, owner: str, account: str, token: str) -> None:
        is_there = owner == account or self.orgs.get(account, {}).get(owner, "read") != "read"
        if not is_there or self.roles.get(token) == "read":
            raise RefusedError(403, "You don't have the rights to do this.")

    def _create(self, body: bytes, account: str, token: str) -> Answer:
        asked = json.loads(body)
        owner = asked["organization"] or account
        self._may_write(owner, account, token)
        name = f"{owner}/{asked['name']}"
        with self._lock:
            if ("model", name) in self._hub.repos:
                raise RefusedError(409, f"You already created this model repo: {name}")
            private = asked.get("visibility") == "private"
            self.add(Repo(id=name, files={".gitattributes": b"*.safetensors filter=lfs\n"}, private=private), account)
        return {"url": f"{self._hub.endpoint}/{name}"}

    def _validate(self, body: bytes, _account: str, _token: str) -> Answer:
        head = json.loads(body)["content"].split("---\n")[1]
        try:
            yaml.safe_load(head)
        except yaml.YAMLError as error:
            raise RefusedError(400, "Invalid YAML") from error
        return {"errors": [], "warnings": []}

    def _preupload(self, name: str, body: bytes, account: str, _token: str) -> Answer:
        asked, repo = json.loads(body), self._hub.repo("model", name, account)
        ignored = asked.get("gitIgnore", repo.files.get(".gitignore", b"").decode()).split()
        files: list[Answer] = []
        for file in asked["files"]:
            path = file["path"]
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(_LARGE) else "regular",
                    "shouldIgnore": any(fnmatch(path, pattern) for pattern in ignored),
                    "oid": repo.etag(path) if path in repo.files else None,
                }
            )
        return {"files": files}

    def _batch(self, name: str, body: bytes, account: str, token: str) -> Answer:
        self._may_write(name.split("/", maxsplit=1)[0], account, token)
        objects: list[Answer] = []
        for one in json.loads(body)["objects"]:
            entry: Answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self._objects:
                secret = secrets.token_hex(16)
                self._uploads[secret] = (one["oid"], one["size"])
                entry["actions"] = {"upload": {"href": f"{self._hub.elsewhere}/lfs/{secret}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _put(self, secret: str, body: bytes) -> Answer:
        if secret not in self._uploads:
            raise RefusedError(403, "AccessDenied")
        oid, size = self._uploads[secret]
        if (hashlib.sha256(body).hexdigest(), len(body)) != (oid, size):
            raise RefusedError(400, "XAmzContentSHA256Mismatch")
        self._objects[oid] = body
        return {}

    def _commit(self, name: str, body: bytes, account: str, token: str) -> Answer:
        repo = self._hub.repo("model", name, account)
        self._may_write(name.split("/", maxsplit=1)[0], account, token)
        header: Answer = {}
        files: dict[str, bytes] = {}
        deleted: set[str] = set()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                deleted.add(value["path"])
            elif value["oid"] in self._objects:
                files[value["path"]] = data = self._objects[value["oid"]]
                self._stored.setdefault(name, {})[value["oid"]] = (value["path"], len(data))
            else:
                raise RefusedError(400, f"The object {value['oid']} was not uploaded")
        with self._lock:
            if header.get("parentCommit", repo.commit) != repo.commit:
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            if missed := deleted - set(repo.files):
                raise RefusedError(404, f"A file with this name doesn't exist: {sorted(missed)}", "EntryNotFound")
            oid = self._landed(repo, header, files, deleted)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self._hub.endpoint}/{name}/commit/{oid}"}

    def _paths(self, name: str, body: bytes, account: str, _token: str) -> list[Answer]:
        asked, repo = parse_qs(body.decode()), self._hub.repo("model", name, account)
        return [entry for entry in repo.tree() if entry["path"] in asked["paths"]]

    def large_files(self, repo: Repo) -> list[Answer]:
        """Large files that use space, also those of older commits."""
        return [
            {"fileOid": oid, "oid": oid, "filename": path, "pushedAt": "2026-01-01T00:00:00.000Z", "ref": "main"}
            | {"size": size}
            for oid, (path, size) in self._stored.get(repo.id, {}).items()
        ]

    def used(self, repo: str) -> int:
        """Bytes of large files that count."""
        return sum(size for _, size in self._stored.get(repo, {}).values())

    def _free(self, name: str, body: bytes, account: str, token: str) -> Answer:
        self._may_write(name.split("/", maxsplit=1)[0], account, token)
        asked, repo = json.loads(body)["deletions"], self._hub.repo("model", name, account)
        if asked["rewriteHistory"]:
            raise RefusedError(501, "This emulator rewrites no history")
        for oid in asked["sha"]:
            self._stored[name].pop(oid)
            self._objects.pop(oid, None)
            repo.lost.add(oid)
        return {}

    def _landed(self, repo: Repo, header: Answer, files: dict[str, bytes], deleted: Collection[str] = ()) -> str:
        oid = secrets.token_hex(20)
        repo.files = {name: data for name, data in {**repo.files, **files}.items() if name not in deleted}
        repo.snapshots[oid] = repo.files
        repo.history.append(Commit(oid, header["summary"], header.get("description", "")))
        return oid
