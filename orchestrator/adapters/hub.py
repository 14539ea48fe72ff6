"""The Hugging Face hub, asked by the server alone: with a member's token, or with none, never with the operator's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.adapters.hub_errors import REFUSED, Asked, in_words, offline
from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.ports.providers import BaseModel, DatasetFile, ModelFile
from worker.shared.memory_estimate import Shape

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

HUB = "https://huggingface.co"
TIMEOUT_S = 10.0
MAX_FILES = 256
MAX_SMALL_BYTES = 64 << 20
"""Of a model's small files together, which pass through the server; the hub keeps none above 10 MB that way."""
MAX_CONFIG_BYTES = 4 << 20
AT_ONCE = 8
MAX_REMEMBERED = 1_000
_INDEX = "model.safetensors.index.json"
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_CODE = ("*.py",)
_DATA = (".jsonl", ".csv", ".parquet", ".json")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Hub:
    """Looks models and datasets up. `endpoint` is the address of an emulator on this computer, for tests.

    A `token` of None is no token: the client's habit of taking one from the environment or the home folder is off, so that
    no member reads with the rights of whoever started the server.
    """

    def __init__(self, *, is_offline: bool, endpoint: str | None = None, cache: Path | None = None) -> None:
        self._is_offline, self._endpoint, self._cache = is_offline, endpoint or HUB, cache
        self._public: set[str] = set()

    @property
    def is_offline(self) -> bool:
        """Whether nobody may be asked."""
        return self._is_offline

    def model(self, name: str, token: str | None, check: Callable[[dict[str, Any]], None]) -> BaseModel:
        """The model, pinned to a commit; `check` may refuse its configuration. Raises `InvalidError`, `UnavailableError`."""
        if self._is_offline:
            return BaseModel(name=name)
        repo, _, _ = name.partition("@")
        with in_words(self._asked(name, token)):
            info = self._info(name, token)
            config = json.loads(self._read(repo, info.sha or "", "config.json", token, MAX_CONFIG_BYTES))
            check(config)
            shape = Shape.of(config)
        pinned = f"{repo}@{info.sha}"
        self._remember(pinned, info)
        size = info.safetensors.total if info.safetensors else None
        return BaseModel(name=pinned, parameters=size, shape=shape)

    def files(self, name: str, token: str, *, with_code: bool) -> tuple[ModelFile, ...]:
        """What a machine needs of a gated or private model, readable without the token; nothing of one for everybody."""
        if self._is_offline:
            return ()
        repo, _, _ = name.partition("@")
        try:
            with in_words(self._asked(name, token)):
                info = self._info(name, token, files_metadata=True)
                self._remember(name, info)
                if name in self._public:
                    return ()
                commit = info.sha or ""
                wanted = {s.rfilename: s for s in info.siblings or () if _is_wanted(s.rfilename, with_code=with_code)}
                index = self._read(repo, commit, _INDEX, token, MAX_SMALL_BYTES) if _INDEX in wanted else None
                used = [wanted[n] for n in _without_spare_weights(wanted, index)]
                if len(used) > MAX_FILES:
                    raise InvalidError(f"{name} has more than {MAX_FILES} files: name one in fewer, larger files")
                small = self._small_files(repo, commit, token, [s for s in used if s.lfs is None])
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    large = list(pool.map(lambda s: self._large_file(repo, commit, token, s), filter(_is_large, used)))
        except UnavailableError:
            if name in self._public:  # as it was when it was last asked for
                return ()
            raise
        return (*small, *large)

    def dataset(self, name: str, split: str, token: str | None) -> DatasetFile:
        """The one data file of this split, brought here. Raises `InvalidError`, `UnavailableError`."""
        asked = self._asked(name, token, "/path")
        if self._is_offline:
            raise offline(asked)
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        repo, _, revision = name.partition("@")
        with in_words(asked):
            info = self._api(token).dataset_info(repo, revision=revision or None, timeout=TIMEOUT_S)
            wanted = _one_file(name, split, [s.rfilename for s in info.siblings or ()])
            at: dict[str, Any] = {"repo_type": "dataset", "revision": info.sha, "endpoint": self._endpoint}
            # Who may not read it is refused here: a download that is refused falls back on what others have brought.
            get_hf_file_metadata(hf_hub_url(repo, wanted, **at), token=token or False, timeout=TIMEOUT_S)
            path = hf_hub_download(repo, wanted, token=token or False, cache_dir=self._cache, **at)
        return DatasetFile(path=Path(path), name=wanted)

    def whose(self, token: str) -> str:
        """The name of the account that the token belongs to; raises `InvalidError` in words for one that is not accepted."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        asked = Asked(name="the token", page=f"{HUB}/settings/tokens", pointer="/token", signed_in=True)
        if self._is_offline:
            words = "this server is set to stay offline: no token can be tried, and none is needed"
            raise InvalidError(words, [("/token", words)])
        with in_words(asked):
            answer = get_session().get(
                f"{self._endpoint}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=TIMEOUT_S
            )
            hf_raise_for_status(answer)
            name = answer.json().get("name")
        if not isinstance(name, str):
            raise InvalidError(REFUSED, [("/token", REFUSED)])
        return name[:100]

    def _api(self, token: str | None) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, token=token or False)

    def _info(self, name: str, token: str | None, **more: Any) -> ModelInfo:
        repo, _, revision = name.partition("@")
        return self._api(token).model_info(repo, revision=revision or None, timeout=TIMEOUT_S, **more)

    def _asked(self, name: str, token: str | None, pointer: str = "/base_model") -> Asked:
        kind = "datasets/" if pointer == "/path" else ""
        page = f"{HUB}/{kind}{name.partition('@')[0]}"
        return Asked(name=name, page=page, pointer=pointer, signed_in=token is not None)

    def _remember(self, pinned: str, info: ModelInfo) -> None:
        """So that a hub which is away keeps nobody from a model that anybody may read, and may be on the machine already."""
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
        """A file's bytes, in memory: nothing of a gated model is left in a folder that others read."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(repo, file, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(token=token or False)
        data = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as answer:
            if answer.is_error:
                answer.read()
            hf_raise_for_status(answer)
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > most_bytes:
                    words = f"{file} of {repo} is larger than such a file may be; name another model"
                    raise InvalidError(words, [("/base_model", words)])
        return bytes(data)

    def _large_file(self, repo: str, commit: str, token: str, sibling: RepoSibling) -> ModelFile:
        """Where the hub sends whoever may read the file: an address that needs no sign-in, for a while."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        file, known = sibling.rfilename, sibling.lfs
        assert known is not None
        url = hf_hub_url(repo, file, revision=commit, endpoint=self._endpoint)
        found = get_hf_file_metadata(url, token=token, timeout=TIMEOUT_S)
        if found.etag != known.sha256 or found.size != known.size:
            raise UnavailableError(f"the Hugging Face hub says two things of {file} of {repo}: try again later")
        if not self._is_elsewhere(found.location):
            raise UnavailableError(f"the Hugging Face hub gives no address for {file} of {repo}: try again later")
        return ModelFile(name=file, sha256=known.sha256, size=known.size, url=found.location)

    def _is_elsewhere(self, location: str) -> bool:
        """Whether a machine may be sent there: a host of the hub's choice, other than the one where a token is asked for."""
        there, hub = urlsplit(location), urlsplit(self._endpoint)
        if there.username is not None or there.hostname in (None, hub.hostname):
            return False
        return there.scheme == "https" or (hub.hostname in _LOOPBACK and there.hostname in _LOOPBACK)


def _is_large(sibling: RepoSibling) -> bool:
    return sibling.lfs is not None


def _is_wanted(name: str, *, with_code: bool) -> bool:
    if "/" in name or name.startswith("consolidated"):
        return False
    return any(fnmatch(name, pattern) for pattern in (*_WANTED, *(_CODE if with_code else ())))


def _without_spare_weights(wanted: Mapping[str, RepoSibling], index: bytes | None) -> list[str]:
    """The files without weights that loading the model would leave aside: it follows the index, or takes the one file."""
    weights = {name for name in wanted if name.endswith(".safetensors")}
    used = weights
    if index is not None:
        used = {str(name) for name in dict(json.loads(index)["weight_map"]).values()}
        if lacking := sorted(used - weights):
            words = f"the model's index names {lacking[0][:100]}, which is not there; name another revision"
            raise InvalidError(words, [("/base_model", words)])
    elif "model.safetensors" in weights:
        used = {"model.safetensors"}
    return [name for name in wanted if name not in weights or name in used]


def _one_file(name: str, split: str, files: list[str]) -> str:
    data = [f for f in files if f.endswith(_DATA)]
    wanted = [f for f in data if split in Path(f).name] or (data if len(data) == 1 else [])
    if len(wanted) != 1:
        message = f"{name} has {len(wanted)} data files for split '{split}'; download it and upload one file"
        raise InvalidError(message, [("/path", message)])
    return wanted[0]
