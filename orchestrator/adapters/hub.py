"""Access to the Hugging Face hub with a member's token or without one, never with the operator's token."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.adapters.hub_access import no_write
from orchestrator.adapters.hub_data_files import files_of_split
from orchestrator.adapters.hub_errors import BENCHMARK, REFUSED, HubRequest, in_words, offline
from orchestrator.adapters.model_config import positions
from orchestrator.adapters.weight_names import MAX_BYTES, modules_of_file, modules_of_index
from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError
from orchestrator.ports.catalog import BaseModel, DatasetFile, ModelFile
from worker.shared.loopback import HOSTS
from worker.shared.memory_estimate import Shape
from worker.shared.model_support import model_type

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

HUB = "https://huggingface.co"
TIMEOUT_S = 10.0
MODULES_S = 5.0
"""Limit for the names of a model's modules, and for each wait on the way to them."""
MAX_FILES = 256
MAX_SMALL_BYTES = 64 << 20
"""Total bytes of a model's small files, which pass through the server.

The hub stores no file above 10 MB in this way.
"""
MAX_CONFIG_BYTES = 4 << 20
MAX_BENCHMARK_BYTES, MAX_DATASET_BYTES = 256 << 20, 4 << 30
AT_ONCE = 8
MAX_REMEMBERED = 1_000
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_CODE = ("*.py",)


class Hub:
    """Looks up models and datasets. `endpoint` is the address of an emulator on this computer, for tests.

    A `token` of None means no token. The client would otherwise use one from the environment or the home folder, and
    members would read with the operator's rights.
    """

    def __init__(
        self,
        *,
        is_offline: bool,
        endpoint: str | None = None,
        cache: Path | None = None,
        modules_s: float = MODULES_S,
        most_bytes: int = MAX_BENCHMARK_BYTES,
        most_data_bytes: int = MAX_DATASET_BYTES,
    ) -> None:
        self._modules_s, self._most_bytes, self._most_data_bytes = modules_s, most_bytes, most_data_bytes
        self._is_offline, self._endpoint, self._cache = is_offline, endpoint or HUB, cache
        self._public: set[str] = set()

    @property
    def is_offline(self) -> bool:
        """Whether the client is set to offline mode."""
        return self._is_offline

    def model(
        self, name: str, token: str | None, check: Callable[[dict[str, Any]], None], *, with_modules: bool = False
    ) -> BaseModel:
        """The model, pinned to a commit. `check` may refuse its configuration.

        `with_modules` reads the names of its modules too, where the hub gives them in time. Raises `InvalidError` or
        `UnavailableError`.
        """
        if self._is_offline:
            return BaseModel(name=name)
        repo, _, _ = name.partition("@")
        with in_words(self._request(name, token)):
            info = self._info(name, token)
            config = json.loads(self._read(repo, info.sha or "", "config.json", token, MAX_CONFIG_BYTES))
            check(config)
            shape, kind, limits = Shape.of(config), model_type(config), positions(config)
        pinned = f"{repo}@{info.sha}"
        self._remember(pinned, info)
        size = info.safetensors.total if info.safetensors else None
        modules = self._modules(repo, info, token) if with_modules else frozenset[str]()
        return BaseModel(name=pinned, parameters=size, shape=shape, kind=kind, modules=modules, **limits)

    def has_chat_template(self, name: str, token: str | None) -> bool | None:
        """Whether the pinned model comes with a chat template. None offline. Raises as `model`."""
        if self._is_offline:
            return None
        repo, _, commit = name.partition("@")
        with in_words(self._request(name, token)):
            files = {sibling.rfilename for sibling in self._info(name, token).siblings or ()}
            if CHAT_TEMPLATE in files or TOKENIZER_CONFIG not in files:
                return CHAT_TEMPLATE in files
            config = dict(json.loads(self._read(repo, commit, TOKENIZER_CONFIG, token, MAX_SMALL_BYTES)))
        return bool(config.get("chat_template"))

    def files(self, name: str, token: str, *, with_code: bool) -> tuple[ModelFile, ...]:
        """The files that a machine needs of a gated or private model, readable without the token.

        Empty for a public model.
        """
        if self._is_offline:
            return ()
        repo, _, _ = name.partition("@")
        try:
            with in_words(self._request(name, token)):
                info = self._info(name, token, files_metadata=True)
                self._remember(name, info)
                if name in self._public:
                    return ()
                commit = info.sha or ""
                wanted = {s.rfilename: s for s in info.siblings or () if _is_wanted(s.rfilename, with_code=with_code)}
                index = self._read(repo, commit, _INDEX, token, MAX_SMALL_BYTES) if _INDEX in wanted else None
                used = [wanted[n] for n in _without_spare_weights(wanted, index)]
                if len(used) > MAX_FILES:
                    raise InvalidError(f"{name} has more than {MAX_FILES} files. Choose one with fewer, larger files.")
                small = self._small_files(repo, commit, token, [s for s in used if s.lfs is None])
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    large = list(pool.map(lambda s: self._large_file(repo, commit, token, s), filter(_is_large, used)))
        except UnavailableError:
            if name in self._public:  # it was public when the hub last answered
                return ()
            raise
        return (*small, *large)

    def dataset(self, name: str, split: str, token: str | None, subset: str | None = None) -> tuple[DatasetFile, ...]:
        """Download the data file of this split, or all its shards. Raises `InvalidError`, `UnavailableError`."""
        chosen, request = partial(files_of_split, name, split, subset=subset), self._request(name, token, "/path")
        return self._download(name, token, request, chosen, most_bytes=self._most_data_bytes)

    def benchmark(self, name: str, pattern: str, token: str | None) -> DatasetFile:
        """Download the one file with such a name. Raises `InvalidError`, `UnavailableError`."""
        chosen, request = partial(_one_like, name, pattern), self._request(name, token, BENCHMARK)
        return self._download(name, token, request, chosen, most_bytes=self._most_bytes)[0]

    def _download(
        self,
        name: str,
        token: str | None,
        request: HubRequest,
        chosen: Callable[[list[str]], Sequence[str]],
        *,
        most_bytes: int,
    ) -> tuple[DatasetFile, ...]:
        if self._is_offline:
            raise offline(request)
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        repo, _, revision = name.partition("@")
        with in_words(request):
            info = self._api(token).dataset_info(repo, revision=revision or None, timeout=TIMEOUT_S)
            wanted = chosen([s.rfilename for s in info.siblings or ()])
            at: dict[str, Any] = {"repo_type": "dataset", "revision": info.sha, "endpoint": self._endpoint}
            # A member without access is refused here. Otherwise a refused download would fall back to the cached file
            # of another member.
            urls = [hf_hub_url(repo, file, **at) for file in wanted]
            sizes = [get_hf_file_metadata(u, token=token or False, timeout=TIMEOUT_S).size or 0 for u in urls]
            if sum(sizes) > most_bytes:
                what = f"{wanted[0]} of {repo} has" if len(wanted) == 1 else f"The shards of {repo} have"
                words = f"{what} more than {most_bytes >> 20} MiB. Choose another revision."
                raise InvalidError(words, [(request.pointer, words)])
            paths = [hf_hub_download(repo, f, token=token or False, cache_dir=self._cache, **at) for f in wanted]
        files = zip(paths, wanted, strict=True)
        return tuple(DatasetFile(path=Path(path), name=file, revision=info.sha or "") for path, file in files)

    def whose(self, token: str) -> str:
        """The name of the account that the token belongs to.

        Raises `InvalidError` with an explanation if the hub does not accept the token.
        """
        if self._is_offline:
            words = "This server is set to stay offline, so it cannot check a token and needs none."
            raise InvalidError(words, [("/token", words)])
        name = self._me(token, "/token").get("name")
        if not isinstance(name, str):
            raise InvalidError(REFUSED, [("/token", REFUSED)])
        return name[:100]

    def refuse_without_write(self, repo: str, token: str) -> None:
        """Raise `InvalidError` if the token's account may not write to the repository `OWNER/NAME`."""
        words = "This server is set to stay offline, so it cannot push to Hugging Face. Leave hub_model_id out."
        if self._is_offline or (words := no_write(self._me(token, "/hub_model_id"), repo)):
            raise InvalidError(words, [("/hub_model_id", words)])

    def _me(self, token: str, pointer: str) -> dict[str, Any]:
        """What the hub says of the token and its account."""
        request = HubRequest(name="the token", page=f"{HUB}/settings/tokens", pointer=pointer, signed_in=True)
        return dict(self.ask("/api/whoami-v2", token, request))

    def ask(self, path: str, token: str | None, request: HubRequest, **query: Any) -> Any:
        """The hub's answer to one plain question, as JSON. Raises `InvalidError` or `UnavailableError`."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if self._is_offline:
            raise offline(request)
        with in_words(request):
            headers = build_hf_headers(token=token or False)
            answer = get_session().get(self._endpoint + path, params=query, headers=headers, timeout=TIMEOUT_S)
            hf_raise_for_status(answer)
            return answer.json()

    def _api(self, token: str | None) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, token=token or False)

    def _info(self, name: str, token: str | None, **more: Any) -> ModelInfo:
        repo, _, revision = name.partition("@")
        return self._api(token).model_info(repo, revision=revision or None, timeout=TIMEOUT_S, **more)

    def _request(self, name: str, token: str | None, pointer: str = "/base_model") -> HubRequest:
        kind = "" if pointer == "/base_model" else "datasets/"
        page = f"{HUB}/{kind}{name.partition('@')[0]}"
        return HubRequest(name=name, page=page, pointer=pointer, signed_in=token is not None)

    def _remember(self, pinned: str, info: ModelInfo) -> None:
        """Remember that a model is public, so that it can be used while the hub is unreachable.

        The machine may already have such a model.
        """
        if info.gated or info.private:
            self._public.discard(pinned)
            return
        if len(self._public) >= MAX_REMEMBERED:
            self._public.clear()
        self._public.add(pinned)

    def _small_files(self, repo: str, commit: str, token: str, siblings: Iterable[RepoSibling]) -> list[ModelFile]:
        found: list[ModelFile] = []
        left = MAX_SMALL_BYTES
        for sibling in siblings:
            data = self._read(repo, commit, sibling.rfilename, token, left)
            sha256 = hashlib.sha256(data).hexdigest()
            found.append(ModelFile(name=sibling.rfilename, sha256=sha256, size=len(data), data=data))
            left -= len(data)
        return found

    def _read(self, repo: str, commit: str, file: str, token: str | None, most_bytes: int) -> bytes:
        """A file's bytes, read into memory. No file of a gated model stays in a folder that others can read."""
        data = bytearray()
        with self._pieces(repo, commit, file, token, TIMEOUT_S) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > most_bytes:
                    words = f"{file} of {repo} is too large. Choose another model."
                    raise InvalidError(words, [("/base_model", words)])
        return bytes(data)

    @contextlib.contextmanager
    def _pieces(
        self, repo: str, commit: str, file: str, token: str | None, timeout_s: float, **more_headers: str
    ) -> Iterator[Iterator[bytes]]:
        """A file in pieces. The answer and each of them may take `timeout_s` seconds."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(repo, file, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(token=token or False) | more_headers
        with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as answer:
            if answer.is_error:
                answer.read()
            hf_raise_for_status(answer)
            yield answer.iter_bytes()

    def _modules(self, repo: str, info: ModelInfo, token: str | None) -> frozenset[str]:
        """Names of the modules that have parameters, from the index of the weights or the header of the one file.

        Empty if the model has neither, or the hub does not give it in time.
        """
        files = {sibling.rfilename for sibling in info.siblings or ()}
        file = next((name for name in (_INDEX, _WEIGHTS) if name in files), None)
        if file is None:
            return frozenset()
        named = modules_of_index if file == _INDEX else modules_of_file
        beginning = {"Range": f"bytes=0-{MAX_BYTES - 1}", "Accept-Encoding": "identity"}
        with (
            contextlib.suppress(TrainhopError),
            in_words(self._request(repo, token)),
            self._pieces(repo, info.sha or "", file, token, self._modules_s, **beginning) as pieces,
        ):
            return named(_in_time(pieces, self._modules_s))
        return frozenset()

    def _large_file(self, repo: str, commit: str, token: str, sibling: RepoSibling) -> ModelFile:
        """The URL to which the hub redirects for this file. It needs no sign-in for a limited time."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        file, known = sibling.rfilename, sibling.lfs
        assert known is not None
        url = hf_hub_url(repo, file, revision=commit, endpoint=self._endpoint)
        found = get_hf_file_metadata(url, token=token, timeout=TIMEOUT_S)
        if found.etag != known.sha256 or found.size != known.size:
            raise UnavailableError(
                f"Hugging Face gave contradictory sizes or hashes for {file} of {repo}. Try again later."
            )
        if not self._is_elsewhere(found.location):
            raise UnavailableError(f"Hugging Face gave no download URL for {file} of {repo}. Try again later.")
        return ModelFile(name=file, sha256=known.sha256, size=known.size, url=found.location)

    def _is_elsewhere(self, location: str) -> bool:
        """Whether a machine may use this URL: it must be on another host than the one that requires the token."""
        there, hub = urlsplit(location), urlsplit(self._endpoint)
        if there.username is not None or there.hostname in (None, hub.hostname):
            return False
        return there.scheme == "https" or (hub.hostname in HOSTS and there.hostname in HOSTS)


def _in_time(pieces: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    until = time.monotonic() + seconds
    for piece in pieces:
        if time.monotonic() > until:
            raise UnavailableError("Hugging Face sends the names of the model's modules too slowly.")
        yield piece


def _is_large(sibling: RepoSibling) -> bool:
    return sibling.lfs is not None


def _is_wanted(name: str, *, with_code: bool) -> bool:
    if "/" in name or name.startswith("consolidated"):
        return False
    return any(fnmatch(name, pattern) for pattern in (*_WANTED, *(_CODE if with_code else ())))


def _without_spare_weights(wanted: Mapping[str, RepoSibling], index: bytes | None) -> list[str]:
    """The files without the weights that loading the model would ignore.

    Loading follows the index if there is one, otherwise it reads the single file.
    """
    weights = {name for name in wanted if name.endswith(".safetensors")}
    used = weights
    if index is not None:
        used = {str(name) for name in dict(json.loads(index)["weight_map"]).values()}
        if lacking := sorted(used - weights):
            words = f"The model has no file {lacking[0][:100]}, which its index lists. Choose another revision."
            raise InvalidError(words, [("/base_model", words)])
    elif _WEIGHTS in weights:
        used = {_WEIGHTS}
    return [name for name in wanted if name not in weights or name in used]


def _one_like(name: str, pattern: str, files: list[str]) -> list[str]:
    wanted = [file for file in files if fnmatch(file, pattern)]
    if len(wanted) != 1:
        message = (
            f"{name} has {len(wanted)} files like {pattern}, and the benchmark needs one. Choose another revision."
        )
        raise InvalidError(message, [(BENCHMARK, message)])
    return wanted
