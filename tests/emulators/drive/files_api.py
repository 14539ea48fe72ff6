"""API v2 without uploads: about, generateIds, and everything under `/drive/v2/files`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.emulators.drive.faults import Rule
from tests.emulators.drive.state import Contents, File, Problem, etag
from tests.emulators.drive.wire import Reply, Request

_TERM = re.compile(
    r"\s*(?:'(?P<parent>[^']+)' in parents"
    r"|trashed\s*=\s*(?P<trashed>true|false)"
    r"|(?P<field>title|mimeType)\s*(?P<op>!?=)\s*'(?P<value>(?:[^'\\]|\\.)*)'"
    r"|properties has \{(?P<property>[^}]*)\})\s*(?:and|$)"
)
_PAIR = re.compile(r"(key|value)\s*=\s*'([^']*)'")


class FilesApi:
    def __init__(self, contents: Contents, email: Callable[[], str]) -> None:
        self._contents, self._email = contents, email

    def answer(self, request: Request, rule: Rule) -> Reply:
        parts = request.path.removeprefix("/drive/v2/").strip("/").split("/")
        match request.method, parts:
            case "GET", ["about"]:
                return self._shown(request, self._about())
            case "GET", ["files", "generateIds"]:
                ids = self._contents.new_ids(int(request.query.get("maxResults", 10)))
                return Reply.of({"kind": "drive#generatedIds", "space": "drive", "ids": ids})
            case "GET", ["files"]:
                return self._shown(request, self._list(request))
            case "POST", ["files"]:
                return self._shown(request, self._contents.resource(self._contents.insert(request.json())))
            case _, ["files", ident, *verb]:
                return self._one(request, ident, verb, rule)
        raise Problem(404, "notFound", "Not Found")

    def _one(self, request: Request, ident: str, verb: list[str], rule: Rule) -> Reply:
        match request.method, verb:
            case "GET", []:
                file = self._contents.get(ident)
                if request.query.get("alt") == "media":
                    return self._content(request, file, rule)
                return self._shown(request, self._contents.resource(file), etag(file))
            case (("PUT" | "PATCH"), []):
                changed = self._contents.update(ident, request.json(), request.headers.get("if-match"))
                return self._shown(request, self._contents.resource(changed))
            case "POST", ["trash" | "untrash" as way]:
                return self._shown(request, self._contents.resource(self._contents.mark(ident, trashed=way == "trash")))
            case "DELETE", []:
                self._delete(ident)
                return Reply(204)
        raise Problem(404, "notFound", "Not Found")

    def _delete(self, ident: str) -> None:
        """One file, or with `trash` all that lies there."""
        for each in [f.id for f in self._contents.trashed()] if ident == "trash" else [ident]:
            self._contents.delete(each)

    @staticmethod
    def _shown(request: Request, data: dict[str, Any], tag: str = "") -> Reply:
        fields = request.query.get("fields")
        reply = Reply.of(selected(data, parse_fields(fields)) if fields else data)
        if tag:
            reply.headers["ETag"] = tag
        return reply

    def _about(self) -> dict[str, Any]:
        used, limit = self._contents.used, self._contents.limit
        trashed = sum(f.size for f in self._contents.trashed())
        shown: dict[str, Any] = {
            "kind": "drive#about",
            "name": "Some Body",
            "user": {"emailAddress": self._email(), "displayName": "Some Body", "permissionId": "0815"},
            "rootFolderId": self._contents.root,
            "quotaType": "UNLIMITED" if limit is None else "LIMITED",
            "quotaBytesUsed": str(used),
            "quotaBytesUsedAggregate": str(used + self._contents.others),
            "quotaBytesUsedInTrash": str(trashed),
        }
        return shown if limit is None else shown | {"quotaBytesTotal": str(limit)}

    def _list(self, request: Request) -> dict[str, Any]:
        terms = _terms(request.query.get("q", ""))
        parent = next((t["parent"] for t in terms if t["parent"]), None)
        by_name = any(t["field"] == "title" or t["property"] for t in terms)
        found = [f for f in self._contents.search(parent=parent, by_name=by_name) if all(_fits(f, t) for t in terms)]
        start, most = int(request.query.get("pageToken", 0)), int(request.query.get("maxResults", 100))
        page: dict[str, Any] = {"kind": "drive#fileList", "incompleteSearch": False}
        page["items"] = [self._contents.resource(f) for f in found[start : start + most]]
        if start + most < len(found):
            page["nextPageToken"] = str(start + most)
        return page

    def _content(self, request: Request, file: File, rule: Rule) -> Reply:
        if file.is_folder:
            raise Problem(403, "fileNotDownloadable", "Only files with binary content can be downloaded.")
        size = max(0, file.size - rule.truncate)
        headers = {"Content-Type": file.mime, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Reply(200, b"", headers, self._contents.blob(file), 0, size, flip=rule.flip)
        start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
        if start >= size:
            raise Problem(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Reply(206, b"", headers, self._contents.blob(file), start, end, flip=rule.flip)


def _terms(query: str) -> list[dict[str, str | None]]:
    terms: list[dict[str, str | None]] = []
    at = 0
    while at < len(query):
        term = _TERM.match(query, at)
        if term is None:
            raise Problem(400, "invalid", f"Invalid Value: {query[at:]}")
        terms.append(term.groupdict())
        at = term.end()
    return terms


def _fits(file: File, term: dict[str, str | None]) -> bool:
    if term["trashed"]:
        return file.trashed is (term["trashed"] == "true")
    if term["field"]:
        mine = file.title if term["field"] == "title" else file.mime
        value = re.sub(r"\\(.)", r"\1", term["value"] or "")
        return (mine == value) is (term["op"] == "=")
    if term["property"]:
        wanted = dict(_PAIR.findall(term["property"]))
        return any(p["key"] == wanted.get("key") and p["value"] == wanted.get("value") for p in file.properties)
    return True


def parse_fields(text: str) -> dict[str, Any]:
    """`a,b(c,d/e)` as nested dicts; an empty one means everything below."""
    tree: dict[str, Any] = {}
    depth, start = 0, 0
    for at, sign in enumerate(text + ","):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            _plant(tree, text[start:at].strip())
            start = at + 1
    return tree


def _plant(tree: dict[str, Any], part: str) -> None:
    name, _, inner = part.partition("(")
    path = name.split("/")
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
    tree[path[-1]] = parse_fields(inner[:-1]) if inner else {}


def selected(data: Any, tree: dict[str, Any]) -> Any:
    """Only what the `fields` parameter names."""
    if not tree or "*" in tree:
        return data
    if isinstance(data, list):
        return [selected(item, tree) for item in data]
    return {name: selected(data[name], below) for name, below in tree.items() if name in data}
