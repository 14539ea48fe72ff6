"""A small HTTP client for the command line; every way a call can fail becomes one exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from http.client import REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import httpx

DEFAULT_FOLDER = "~/.local/share/trainhop"
TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
SHORTEST_PART = 4
"""Characters of an id, without its `job-`, that may stand for the whole."""


class Exit(IntEnum):
    """What the process tells its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5


_BY_STATUS = {
    400: Exit.USAGE,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.NOT_FOUND,
    405: Exit.USAGE,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.USAGE,
    502: Exit.UNREACHABLE,
    503: Exit.UNREACHABLE,
    504: Exit.UNREACHABLE,
}


class CommandError(Exception):
    """Ends a command with `code`; each of `lines` is printed on stderr."""

    def __init__(self, code: Exit, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code, self.lines = code, lines


class ProblemError(CommandError):
    """The server refused. `problems` are its `(JSON pointer, sentence)` pairs."""

    def __init__(self, code: Exit, message: str, problems: list[tuple[str, str]]) -> None:
        lines = [f"{where(pointer)}: {detail}" for pointer, detail in problems]
        if len(problems) == 1 and message != f"{problems[0][0]}: {problems[0][1]}" and problems[0][1] in message:
            lines = [message]
        elif message != "; ".join(f"{pointer}: {detail}" for pointer, detail in problems[:3]):
            lines = [message, *lines]  # otherwise it is the server's own summary of these lines
        super().__init__(code, *lines)
        self.message, self.problems = message, problems


def where(pointer: str) -> str:
    """A JSON pointer the way people write it: `/datasets/0/path` is `datasets[0].path`."""
    text = ""
    for part in pointer.strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        text += f"[{key}]" if key.isdigit() else f".{key}" if text else key
    return text or "the file"


class Client:
    """Calls `/api/v1` of one server with one token."""

    def __init__(self, url: str, token: str) -> None:
        import httpx

        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    def get(self, path: str, **query: Any) -> Any:
        """The JSON under `path`."""
        return self.send("GET", path, query=query).json()

    def text(self, path: str, **query: Any) -> tuple[bytes, Mapping[str, str]]:
        """The plain body under `path` and its headers."""
        response = self.send("GET", path, query=query)
        return response.content, response.headers

    def post(self, path: str, body: Any = None, *, key: str | None = None, **query: Any) -> Any:
        """The answer to a JSON body. With an idempotency `key` a broken connection is tried again."""
        headers = {"Idempotency-Key": key} if key else {}
        for attempts_left in (2, 1, 0) if key else (0,):
            try:
                return self.send("POST", path, query=query, json=body, headers=headers).json()
            except CommandError as error:
                if error.code is not Exit.UNREACHABLE or not attempts_left:
                    raise
        raise AssertionError

    def upload(self, path: str, file: Path, **query: Any) -> Any:
        """The answer to a file sent as the raw body."""
        with file.open("rb") as stream:
            return self.send(
                "POST", path, query=query, content=stream, headers={"Content-Type": "application/octet-stream"}
            ).json()

    def patch(self, path: str, body: Any) -> Any:
        """The answer to a JSON body."""
        return self.send("PATCH", path, json=body).json()

    def put(self, path: str, body: Any) -> Any:
        """The answer to a JSON body."""
        return self.send("PUT", path, json=body).json()

    def delete(self, path: str, **query: Any) -> None:
        """Remove what lies under `path`."""
        self.send("DELETE", path, query=query)

    def send(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, **more: Any) -> httpx.Response:
        """One request; raises `CommandError` for every answer that is not a success."""
        params = {k: v for k, v in (query or {}).items() if v is not None}
        with _reachable(self.url):
            response = self._http.request(method, path, params=params, **more)
        _check(response)
        return response

    def pages(self, path: str, limit: int, **query: Any) -> list[Any]:
        """Up to `limit` items of a list that comes in pages."""
        items: list[Any] = []
        cursor = None
        while len(items) < limit:
            page = self.get(path, limit=min(limit - len(items), 200), cursor=cursor, **query)
            items += page["items"]
            cursor = page.get("next")
            if not cursor:
                break
        return items

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """What lies under `path`, to be read while it arrives; 416 (nothing is left of it) is an answer, too."""
        with _reachable(self.url), self._http.stream("GET", path, headers=headers) as response:
            if response.status_code != REQUESTED_RANGE_NOT_SATISFIABLE:
                if response.is_error:
                    response.read()
                _check(response)
            yield response


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise CommandError(
            Exit.UNREACHABLE,
            f"the server at {url} does not answer ({reason})",
            "start one with `trainhop up`, or name another with --server or TRAINHOP_SERVER_URL",
        ) from error


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    code = _BY_STATUS.get(response.status_code, Exit.FAILED)
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    message = problem.get("detail") or problem.get("title") or f"the server answered {response.status_code}"
    if response.status_code == 401:
        message = (
            f"{message}; set TRAINHOP_TOKEN to a token of this server (without admin.token, its next start makes one)"
        )
    errors = problem.get("errors") or []
    raise ProblemError(code, message, [(e.get("pointer", ""), e.get("detail", "")) for e in errors])


def data_folder(given: Path | None = None) -> Path:
    """The server's data folder: as given, from `TRAINHOP_DATA_DIR`, or the default one."""
    return Path(given or os.environ.get("TRAINHOP_DATA_DIR") or DEFAULT_FOLDER).expanduser()


def connect(context: typer.Context) -> Client:
    """A client for the server this command line is pointed at; the token never comes from the command line itself."""
    options = context.find_root().params
    folder = data_folder(options.get("data_dir"))
    url = options.get("server") or _line(folder / "server.url")
    token = os.environ.get("TRAINHOP_TOKEN") or _line(folder / "admin.token")
    if not url:
        raise CommandError(
            Exit.UNREACHABLE,
            f"no server is known: {folder} has none running",
            "start one with `trainhop up`, or name one with --server or TRAINHOP_SERVER_URL",
        )
    if not (token.isascii() and token.isprintable()):
        raise CommandError(Exit.NOT_ALLOWED, "the token holds characters that no token has; set TRAINHOP_TOKEN anew")
    return Client(url, token)


def _line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def find_job(client: Client, given: str) -> dict[str, Any]:
    """The job with this id, or the only one of the newest with this name, or whose id begins or ends with it."""
    if given.startswith("job-"):
        try:
            return client.get(f"/jobs/{segment(given)}")
        except CommandError as error:
            if error.code not in {Exit.NOT_FOUND, Exit.USAGE}:
                raise
    newest = client.pages("/jobs", 1000)
    found = [j for j in newest if j["name"] == given] or [j for j in newest if _is_part(given, j["id"])]
    if not found:
        raise CommandError(Exit.NOT_FOUND, f"there is no job {given!r}")
    if len(found) > 1:
        raise CommandError(Exit.USAGE, f"{given} may be any of {', '.join(j['id'] for j in found[:10])}")
    return client.get(f"/jobs/{found[0]['id']}")


def _is_part(given: str, job_id: str) -> bool:
    """Long enough that a slip of the hand does not end somebody's job."""
    part = given.removeprefix("job-")
    whole = job_id.removeprefix("job-")
    return len(part) >= SHORTEST_PART and (whole.startswith(part) or (part == given and whole.endswith(part)))


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    from urllib.parse import quote

    return quote(text, safe="")
