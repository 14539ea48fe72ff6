"""HTTP calls to one server. All failures of a call are one exception. The command line uses it too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

from trainhop.errors import Error
from trainhop.polling import state_word

if TYPE_CHECKING:
    import httpx

DEFAULT_FOLDER = "~/.local/share/trainhop"
TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
PAGE = 200
"""Maximum number of items that the server returns in one page."""
SHORTEST_PART = 4
"""Shortest prefix or suffix of a job id, without its `job-`, that selects the job."""


class Connection:
    """Calls `/api/v1` of one server with one token."""

    NAMED_BY = "Client(url)"
    """How another server is named, for people."""

    def __init__(self, url: str, token: str) -> None:
        import httpx

        self.url, self.token = url.rstrip("/"), token
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    @classmethod
    def find(cls, url: str | None = None, token: str | None = None, folder: Path | None = None) -> Self:
        """A connection to the server at `url`, else at `TRAINHOP_SERVER_URL`, else to the one of the data `folder`.

        The token is the one given, else `TRAINHOP_TOKEN`, else the admin's in the folder. Raises `Error` if no server
        is known.
        """
        folder = data_folder(folder)
        url = url or os.environ.get("TRAINHOP_SERVER_URL") or _line(folder / "server.url")
        token = token or os.environ.get("TRAINHOP_TOKEN") or _line(folder / "admin.token")
        if not url:
            raise Error(
                f"No server is running in {folder}.",
                f"start one with `trainhop up`, or name one with {cls.NAMED_BY} or TRAINHOP_SERVER_URL",
                reason="unreachable",
            )
        if not (token.isascii() and token.isprintable()):
            raise Error("The token has invalid characters. Set TRAINHOP_TOKEN to a valid token.", reason="not_allowed")
        return cls(url, token)

    def close(self) -> None:
        """Close the connections to the server."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON under `path`."""
        return self.send("GET", path, query=query).json()

    def text(self, path: str, **query: Any) -> tuple[bytes, Mapping[str, str]]:
        """The plain body under `path` and its headers."""
        response = self.send("GET", path, query=query)
        return response.content, response.headers

    def post(self, path: str, body: Any = None, *, key: str | None = None, **query: Any) -> Any:
        """POST a JSON body. With an idempotency `key` the call is retried when the connection breaks."""
        headers = {"Idempotency-Key": key} if key else {}
        for attempts_left in (2, 1, 0) if key else (0,):
            try:
                return self.send("POST", path, query=query, json=body, headers=headers).json()
            except Error as error:
                if error.reason != "unreachable" or not attempts_left:
                    raise
        raise AssertionError

    def upload(self, path: str, file: Path | bytes, **query: Any) -> Any:
        """POST a file, or bytes, as the raw body."""
        headers = {"Content-Type": "application/octet-stream"}
        with contextlib.nullcontext(file) if isinstance(file, bytes) else file.open("rb") as content:
            return self.send("POST", path, query=query, content=content, headers=headers).json()

    def patch(self, path: str, body: Any) -> Any:
        """PATCH with a JSON body. Returns the JSON of the response."""
        return self.send("PATCH", path, json=body).json()

    def put(self, path: str, body: Any) -> Any:
        """PUT a JSON body. Returns the JSON of the response."""
        return self.send("PUT", path, json=body).json()

    def delete(self, path: str, **query: Any) -> None:
        """DELETE `path`."""
        self.send("DELETE", path, query=query)

    def send(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, **more: Any) -> httpx.Response:
        """Send one request. Raises `Error` for every response that is not a success."""
        params = {k: v for k, v in (query or {}).items() if v is not None}
        with self._reachable():
            response = self._http.request(method, path, params=params, **more)
        _check(response)
        return response

    def pages(self, path: str, limit: int, **query: Any) -> list[Any]:
        """Up to `limit` items of a paged list."""
        items: list[Any] = []
        cursor = None
        while len(items) < limit:
            page = self.get(path, limit=min(limit - len(items), PAGE), cursor=cursor, **query)
            items += page["items"]
            cursor = page.get("next")
            if not cursor:
                break
        return items

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], body: Any = None) -> Generator[httpx.Response]:
        """Stream the body under `path`, or the answer to `body`. Status 416 (past the end) does not raise."""
        method = "GET" if body is None else "POST"
        with self._reachable(), self._http.stream(method, path, headers=headers, json=body) as response:
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if response.is_error:
                    response.read()
                _check(response)
            yield response

    @contextmanager
    def _reachable(self) -> Generator[None]:
        import httpx

        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL) as error:
            cause = str(error) or type(error).__name__
            raise Error(
                f"the server at {self.url} does not answer ({cause})",
                f"start one with `trainhop up`, or name another with {self.NAMED_BY} or TRAINHOP_SERVER_URL",
                reason="unreachable",
            ) from error


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    problem = _problem(response)
    message = problem.get("detail") or problem.get("title") or f"The server answered {response.status_code}"
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        message = (
            f"{message.removesuffix('.')}. Set TRAINHOP_TOKEN to a token of this server. If the data "
            "folder has no admin.token, restart the server."
        )
    errors: list[dict[str, str]] = problem.get("errors") or []
    raise Error.refused(response.status_code, message, [(e.get("pointer", ""), e.get("detail", "")) for e in errors])


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem: Any = response.json()
    except ValueError:
        return {}
    return cast("dict[str, Any]", problem) if isinstance(problem, dict) else {}


def data_folder(given: Path | None = None) -> Path:
    """The server's data folder: the option, `TRAINHOP_DATA_DIR`, or the default."""
    chosen = given or os.environ.get("TRAINHOP_DATA_DIR") or DEFAULT_FOLDER
    return Path(os.path.expanduser(str(chosen)))  # noqa: PTH111  does not fail for an unknown user


def _line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def find_job(connection: Connection, given: str) -> dict[str, Any]:
    """The job with this id or name, or the only recent job with this id prefix or suffix."""
    if given.startswith("job-"):
        try:
            return connection.get(f"/jobs/{segment(given)}")
        except Error as error:
            if error.reason not in {"not_found", "usage"}:
                raise
    newest = connection.pages("/jobs", 1000)
    found = [j for j in newest if j["name"] == given] or [j for j in newest if _is_part(given, j["id"])]
    if not found:
        raise Error(f"There is no job {given!r}. List jobs with `trainhop ls`.", reason="not_found")
    if len(found) > 1:  # of jobs with one name, one's own comes before those of colleagues
        me = connection.get("/me")["name"]
        found = [j for j in found if j["member"] == me] or found
    if len(found) > 1:
        raise Error(f"{given} matches several jobs. Use an id:", *map(_told_apart, found[:10]), reason="usage")
    return connection.get(f"/jobs/{found[0]['id']}")


def _told_apart(job: dict[str, Any]) -> str:
    return f"{job['id']}: {state_word(job['state'])}, submitted {job['created_at'][:16].replace('T', ' ')} UTC"


def _is_part(given: str, job_id: str) -> bool:
    """Whether `given` is long enough to select a job without a mistake."""
    part = given.removeprefix("job-")
    whole = job_id.removeprefix("job-")
    return len(part) >= SHORTEST_PART and (whole.startswith(part) or (part == given and whole.endswith(part)))


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")
