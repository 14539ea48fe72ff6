"""Uploads of API v2: resumable sessions with 308 and ranges, and the two kinds that come in one request."""

from __future__ import annotations

import email.parser
import email.policy
import json
import re

from tests.emulators.drive.faults import Rule
from tests.emulators.drive.state import GRANULE, Contents, File, Problem, UploadSession
from tests.emulators.drive.tokens import Tokens
from tests.emulators.drive.wire import Cut, Reply, Request, flipped

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class UploadsApi:
    def __init__(self, contents: Contents, tokens: Tokens) -> None:
        self._contents, self._tokens = contents, tokens
        self.anonymous = True
        self.newest: File | None = None

    def answer(self, request: Request, rule: Rule) -> Reply:
        ident = request.path.removeprefix("/upload/drive/v2/files").strip("/") or None
        upload = request.query.get("upload_id")
        if upload is not None:
            if "authorization" in request.headers or not self.anonymous:
                self._tokens.check(request)
            if request.method == "DELETE":
                self._contents.sessions.pop(upload, None)
                return Reply(499)
            return self._chunk(request, self._contents.session(upload), rule)
        self._tokens.check(request)
        if rule.cut is not None and not rule.done:
            raise Cut
        kind = request.query.get("uploadType", "media")
        if kind == "resumable":
            return self._open(request, ident)
        metadata, content = _two_parts(request) if kind == "multipart" else ({}, request.body())
        if ident is None:
            return self._made(self._contents.insert(metadata, content))
        return Reply.of(
            self._contents.resource(self._contents.update(ident, metadata, request.headers.get("if-match"), content))
        )

    def _open(self, request: Request, ident: str | None) -> Reply:
        metadata = request.json()
        size = request.headers.get("x-upload-content-length")
        if "x-upload-content-type" in request.headers:
            metadata.setdefault("mimeType", request.headers["x-upload-content-type"])
        session = self._contents.open_session(metadata, int(size) if size else None, ident)
        where = f"{self._contents.address}{request.path}?uploadType=resumable&upload_id={session.id}"
        return Reply(200, b"", {"Location": where, "X-GUploader-UploadID": session.id})

    def _made(self, file: File) -> Reply:
        self.newest = file
        return Reply.of(self._contents.resource(file))

    def _chunk(self, request: Request, session: UploadSession, rule: Rule) -> Reply:
        if session.result is not None:
            request.drain()
            return Reply.of(self._contents.resource(self._contents.get(session.result)))
        asked = _RANGE.fullmatch(request.headers.get("content-range", ""))
        if asked is None:
            asked = _RANGE.fullmatch(f"bytes 0-{request.left - 1}/{request.left}" if request.left else "bytes */0")
            assert asked is not None
        total = None if asked[3] == "*" else int(asked[3])
        if session.size is not None and total not in (None, session.size):
            raise Problem(400, "invalid", f"{total} bytes announced, the session was opened for {session.size}")
        if asked[1] is None:
            return self._finished(session, rule) if total == session.received else _go_on(session)
        start, end = int(asked[1]), int(asked[2]) + 1
        if start != session.received or end - start != request.left:
            return _go_on(session)
        if end != total and request.left % GRANULE:
            raise Problem(400, "badRequest", "Chunks must be multiples of 256 KiB")
        self._contents.require_space(end)
        self._store(request, session, rule)
        return self._finished(session, rule) if session.received == total else _go_on(session)

    def _store(self, request: Request, session: UploadSession, rule: Rule) -> None:
        whole = session.received + request.left
        with self._contents.spool(session).open("ab") as file:
            for piece in request.pieces(rule.cut):
                file.write(flipped(piece, rule.flip, file.tell()))
            if rule.cut is not None and file.tell() < whole:
                kept = file.tell() - file.tell() % GRANULE
                file.truncate(kept)
                self._contents.received(session, kept)
                raise Cut
        self._contents.received(session, whole)

    def _finished(self, session: UploadSession, rule: Rule) -> Reply:
        spool = self._contents.spool(session)
        if rule.truncate and spool.exists():
            with spool.open("r+b") as file:
                file.truncate(max(0, session.received - rule.truncate))
        return self._made(self._contents.finish(session))


def _go_on(session: UploadSession) -> Reply:
    return Reply(308, b"", {"Range": f"bytes=0-{session.received - 1}"} if session.received else {})


def _two_parts(request: Request) -> tuple[dict[str, object], bytes]:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body())
    metadata, content = message.iter_parts()
    return json.loads(metadata.get_content()), content.get_payload(decode=True) or b""  # pyright: ignore[reportReturnType]
