"""One account's requests to Kaggle through the official `kagglesdk`. Every response is validated."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import requests
from kagglesdk import KaggleClient
from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadRequest
from kagglesdk.datasets.types.dataset_api_service import (
    ApiCreateDatasetRequest,
    ApiDatasetNewFile,
    ApiDeleteDatasetRequest,
    ApiGetDatasetStatusRequest,
)
from kagglesdk.kernels.types.kernels_api_service import (
    ApiCancelKernelSessionRequest,
    ApiDeleteKernelRequest,
    ApiGetAcceleratorQuotaStatisticsRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelSessionOutputRequest,
    ApiSaveKernelRequest,
    ApiSaveKernelResponse,
)
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from orchestrator.providers.kaggle.http import CONNECT_S, KaggleError, Wire

LOG_SILENCE_S = 120.0
"""A live log without data for so long counts as a broken connection and is opened again."""
PAGE = 200
_ABSENT = re.compile(r"permission '(kernels|kernelsessions|datasets)\.(get|delete)'", re.IGNORECASE)
"""For an object that does not exist, Kaggle often reports that access was denied."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """GPU seconds of this week, and the time of the next reset (epoch seconds)."""

    used_s: float
    reserved_s: float
    total_s: float
    refresh_at: float | None

    @property
    def left_s(self) -> float:
        """Seconds that new sessions may use."""
        return max(0.0, self.total_s - self.used_s - self.reserved_s)


@dataclass(frozen=True, kw_only=True)
class Push:
    """A script to run. `machine_shape` is empty for a machine without an accelerator.

    `datasets` and `kernels` are `owner/slug`. The output of the kernels is an input of the script.
    """

    slug: str
    source: str
    machine_shape: str
    internet: bool
    timeout_s: int
    datasets: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


class UnknownKernelError(KaggleError):
    """Kaggle does not know a kernel that should be an input."""


class Connection(Wire):
    """One account's requests to Kaggle."""

    # --- account and quota ---

    def username(self) -> str:
        """The account's user name. For a token it is requested from Kaggle."""
        known = self._credentials
        if known.token is None:
            self.quota()  # older keys cannot be introspected, so the first call shows whether they are valid
            assert known.username is not None
            return known.username
        token = known.token

        def ask(sdk: KaggleClient) -> tuple[bool, str]:
            request = IntrospectTokenRequest()
            request.token = token
            answer = sdk.security.oauth_client.introspect_token(request)
            return bool(answer.active), _text(answer.username)

        active, name = self._call("identify the token's owner", ask)
        if not active or not name:
            raise KaggleError(401, "the token is not valid (revoked, expired or mistyped)")
        return name

    def absent(self, refusal: KaggleError, owner: str) -> bool:
        """Whether this refusal means that an object of `owner` does not exist.

        With another account's token, an existing object gets the same refusal.
        """
        if refusal.status == 403 and _ABSENT.search(refusal.words):
            return self.username().lower() == owner.lower()
        return refusal.status == 404

    def quota(self) -> Quota:
        """GPU time of this account. A missing value is 0, because Kaggle omits default values."""

        def ask(sdk: KaggleClient) -> Quota:
            answer: Any = sdk.kernels.kernels_api_client.get_accelerator_quota_statistics(
                ApiGetAcceleratorQuotaStatisticsRequest()
            )
            gpu, fresh = answer.gpu_quota, answer.quota_refresh_time
            return Quota(
                used_s=_seconds(gpu.time_used) if gpu is not None else 0.0,
                reserved_s=_seconds(gpu.time_reserved) if gpu is not None else 0.0,
                total_s=_seconds(gpu.total_time_allowed) if gpu is not None else 0.0,
                refresh_at=fresh.replace(tzinfo=UTC).timestamp() if fresh is not None else None,
            )

        return self._call("return the GPU quota", ask)

    # --- kernels ---

    def push(self, owner: str, push: Push) -> None:
        """Save and run a script kernel. Every form of refusal raises `KaggleError`.

        Raises `UnknownKernelError` if one of its `kernels` does not exist (any more).
        """
        request = ApiSaveKernelRequest()
        request.slug, request.new_title = f"{owner}/{push.slug}", push.slug
        request.text, request.language, request.kernel_type = push.source, "python", "script"
        request.is_private, request.enable_internet = True, push.internet
        request.enable_gpu = bool(push.machine_shape)
        if push.machine_shape:
            request.machine_shape = push.machine_shape
        request.dataset_data_sources = list(push.datasets)
        if push.kernels:
            request.kernel_data_sources = list(push.kernels)
        request.session_timeout_seconds = push.timeout_s
        answer = self._call("start a session", lambda sdk: sdk.kernels.kernels_api_client.save_kernel(request))
        if problem := self._push_problem(push, answer):
            raise KaggleError(200, problem)
        if answer.invalid_kernel_sources:
            said = f"it does not know the kernel {', '.join(map(str, answer.invalid_kernel_sources))}"
            raise UnknownKernelError(200, self.clean(said))

    def _push_problem(self, push: Push, answer: ApiSaveKernelResponse) -> str:
        if answer.error:
            return self.clean(str(answer.error))
        for kind in ("dataset", "competition", "model"):
            refused = getattr(answer, f"invalid_{kind}_sources")
            if refused:
                return self.clean(f"it does not know the {kind} {', '.join(map(str, refused))}")
        if answer.ref and not str(answer.ref).rstrip("/").endswith(push.slug):
            return self.clean(f"it stored the session under another name: {answer.ref}")
        return ""

    def state(self, owner: str, slug: str) -> tuple[str, str]:
        """The name of the newest run's state, and the reason of a failure.

        An unknown state is returned unchanged.
        """

        def ask(sdk: KaggleClient) -> tuple[str, str]:
            request = ApiGetKernelSessionStatusRequest()
            request.user_name, request.kernel_slug = owner, slug
            try:
                answer = sdk.kernels.kernels_api_client.get_kernel_session_status(request)
            except KeyError as error:  # the SDK's error for a state that it does not know
                return self.clean(str(error.args[0])), ""
            return _name(answer.status), self.clean(_text(answer.failure_message or ""))

        return self._call("return a session's state", ask)

    def outputs(self, owner: str, slug: str) -> tuple[list[tuple[str, str]], str]:
        """`(name, signed URL)` of every file of an ended run, and its stored log as JSON."""

        def ask(sdk: KaggleClient) -> tuple[list[tuple[str, str]], str]:
            files: list[tuple[str, str]] = []
            request = ApiListKernelSessionOutputRequest()
            request.user_name, request.kernel_slug, request.page_size = owner, slug, PAGE
            log = ""
            pages: set[str] = set()
            while True:
                answer: Any = sdk.kernels.kernels_api_client.list_kernel_session_output(request)
                files += [(_text(f.file_name), _text(f.url)) for f in answer.files]
                log = log or _text(answer.log or "")
                page = _text(answer.next_page_token or "")
                if not page or page in pages:
                    return files, log
                pages.add(page)
                request.page_token = page

        return self._call("list a session's files", ask)

    def delete_kernel(self, owner: str, slug: str) -> None:
        """Delete a kernel and end its run. No error if it does not exist."""
        request = ApiDeleteKernelRequest()
        request.user_name, request.kernel_slug = owner, slug
        self._delete(
            "delete a session",
            owner,
            lambda sdk: sdk.kernels.kernels_api_client.delete_kernel(request).error_message,
        )

    def cancel(self, session_id: int) -> None:
        """Cancel a session by its own number, not its kernel's. Kaggle keeps its files.

        Every refusal raises `KaggleError`.
        """
        request = ApiCancelKernelSessionRequest()
        request.kernel_session_id = session_id
        answer = self._call(
            "cancel a session", lambda sdk: sdk.kernels.kernels_api_client.cancel_kernel_session(request)
        )
        if answer.error_message:
            raise KaggleError(200, self.clean(str(answer.error_message)))

    @contextlib.contextmanager
    def log(self, owner: str, slug: str, silence_s: float = LOG_SILENCE_S) -> Iterator[requests.Response]:
        """The whole log: live as server-sent events, and as a JSON array once the run has ended."""
        with (
            self._speaking("return a session's log"),
            self._signed_in() as session,
            session.get(
                f"{self._base}/v1/kernels/logs/stream/{owner}/{slug}",
                headers={"Accept": "text/event-stream, */*"},
                stream=True,
                timeout=(CONNECT_S, silence_s),
            ) as answer,
        ):
            if not answer.ok:
                _ = answer.content  # the message of a refusal can only be read while the stream is open
            answer.raise_for_status()
            yield answer

    # --- datasets ---

    def dataset_state(self, owner: str, slug: str) -> str | None:
        """The name of the newest version's state. None if the dataset does not exist."""

        def ask(sdk: KaggleClient) -> str:
            request = ApiGetDatasetStatusRequest()
            request.owner_slug, request.dataset_slug = owner, slug
            try:
                return _name(sdk.datasets.dataset_api_client.get_dataset_status(request).status)
            except KeyError as error:
                return self.clean(str(error.args[0]))

        try:
            return self._call("return a dataset's state", ask)
        except KaggleError as refusal:
            if refusal.status in (403, 404):  # Kaggle also returns 403 for a name that does not exist
                return None
            raise

    def create_dataset(self, owner: str, slug: str, token: str) -> None:
        """Create a private dataset from one uploaded file."""
        request, file = ApiCreateDatasetRequest(), ApiDatasetNewFile()
        file.token = token
        request.owner_slug, request.slug, request.title = owner, slug, slug
        request.license_name, request.is_private, request.files = "unknown", True, [file]
        answer = self._call("store a dataset", lambda sdk: sdk.datasets.dataset_api_client.create_dataset(request))
        if answer.error:
            raise KaggleError(200, self.clean(str(answer.error)))

    def delete_dataset(self, owner: str, slug: str) -> None:
        """Delete a dataset. No error if it does not exist."""
        request = ApiDeleteDatasetRequest()
        request.owner_slug, request.dataset_slug = owner, slug
        self._delete(
            "delete a dataset", owner, lambda sdk: sdk.datasets.dataset_api_client.delete_dataset(request).error
        )

    def upload(self, source: Path, name: str, *, sleep: Callable[[float], None] = time.sleep) -> str:
        """Upload a file to Kaggle and return its token. A broken upload is resumed."""
        size = source.stat().st_size
        request = ApiStartBlobUploadRequest()
        request.type, request.name, request.content_length = ApiBlobType.DATASET, name, size
        request.last_modified_epoch_seconds = int(source.stat().st_mtime)

        def ask(sdk: KaggleClient) -> tuple[str, str]:
            answer = sdk.blobs.blob_api_client.start_blob_upload(request)
            return _text(answer.token), _text(answer.create_url)

        token, url = self._call("open an upload", ask)
        self.send_file(url, source, sleep=sleep)
        return token

    def _delete(self, what: str, owner: str, ask: Callable[[KaggleClient], Any]) -> None:
        try:
            refusal = self._call(what, ask)
        except KaggleError as said:
            if self.absent(said, owner):
                return
            raise
        if refusal:
            raise KaggleError(200, self.clean(str(refusal)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _name(value: Any) -> str:
    return value.name if isinstance(value, Enum) else "without a name"


def _seconds(value: timedelta | None) -> float:
    return max(0.0, value.total_seconds()) if value is not None else 0.0
