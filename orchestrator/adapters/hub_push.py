"""Pushes a folder to the Hugging Face hub: one atomic commit, or none. Runs in a process of its own.

Repeating is safe. The commit has a parent, so that it is refused if anything came before it, and its title has the id
of the push. An answer that was lost is found again in the history.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.adapters.hub_access import no_write
from orchestrator.adapters.hub_client import BusyError, LostError, own_client
from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError
from orchestrator.ports.publishing import Publication, Published

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import CommitOperationAdd, ModelInfo

MAX_COMMITS = 200
"""Commits of a repository that are searched for an own one."""
_OF_AN_EMPTY_REPOSITORY = frozenset({".gitattributes"})


@dataclass(frozen=True, kw_only=True)
class _Commit:
    id: str
    title: str


def publish(endpoint: str, publication: Publication) -> Published:
    """Implements `ports.publishing.Publisher.publish`, in this process, with the client of `own_client`."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=publication.token)
    with _in_words(publication.repo):
        if words := no_write(_me(api), publication.repo):
            raise InvalidError(words)
        info = _look(api, publication.repo)
        if info is None:
            api.create_repo(publication.repo, private=not publication.is_public, exist_ok=True)
            info = _look(api, publication.repo)
        if info is None or not info.sha:
            raise UnavailableError(f"Hugging Face does not show {publication.repo} yet.")
        commits = _history(api, publication.repo, "main")
        if (own := _own(commits, publication.push_id)) is not None:
            return Published(commit_id=own.id, is_new=True)
        _refuse_foreign(info, commits, publication)
        return _commit(api, publication, info.sha)


def _me(api: HfApi) -> dict[str, Any]:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    answer = get_session().get(f"{api.endpoint}/api/whoami-v2", headers=build_hf_headers(token=api.token))
    hf_raise_for_status(answer)
    return dict(answer.json())


def _look(api: HfApi, repo: str) -> ModelInfo | None:
    """The repository, or None if there is none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    if info.id.lower() != repo.lower():
        raise InvalidError(f"{repo} was renamed to {info.id[:200]} on Hugging Face. Push to that name, or another one.")
    return info


def _history(api: HfApi, repo: str, revision: str) -> list[_Commit]:
    """The newest commits, newest first."""
    from huggingface_hub.utils import build_hf_headers, paginate

    found = paginate(
        f"{api.endpoint}/api/models/{repo}/commits/{revision}",
        params={},
        headers=build_hf_headers(token=api.token),
    )
    return [_Commit(id=str(one["id"]), title=str(one["title"])) for one in islice(found, MAX_COMMITS)]


def _own(commits: Sequence[_Commit], push_id: str) -> _Commit | None:
    return next((commit for commit in commits if push_id in commit.title), None)


def _refuse_foreign(info: ModelInfo, commits: Sequence[_Commit], publication: Publication) -> None:
    repo = publication.repo
    if not info.private and not publication.is_public:
        raise InvalidError(f"{repo} is public. Push with --public if the adapter may be public, or make it private.")
    files = {sibling.rfilename for sibling in info.siblings or ()}
    is_akin = commits and any(push_id in commits[0].title for push_id in publication.akin)
    if not (files <= _OF_AN_EMPTY_REPOSITORY or is_akin or publication.replace):
        raise InvalidError(
            f"{repo} exists and has files that were not pushed from this job or its model. Choose another repository, "
            "or push with --replace, which keeps them and overwrites those of the same name."
        )


def _commit(api: HfApi, publication: Publication, parent: str) -> Published:
    """Upload the large files, then make the one commit on top of `parent`."""
    with ExitStack() as files:
        operations = _operations(publication.folder, files)
        # Without its own rules for ignored files, the repository's would leave files out.
        api.preupload_lfs_files(publication.repo, operations, free_memory=False, gitignore_content="")
        try:
            made = api.create_commit(
                publication.repo,
                operations,
                commit_message=publication.title,
                commit_description=publication.description,
                parent_commit=parent,
            )
        except Exception as error:
            if not _may_have_landed(error):
                raise
            own = _own(_history(api, publication.repo, "main"), publication.push_id)
            if own is None:
                raise
            return Published(commit_id=own.id, is_new=True)
    # Without a changed file the client makes no commit and says that the newest one, of whomever, is the new one.
    is_new = _own(_history(api, publication.repo, made.oid)[:1], publication.push_id) is not None
    return Published(commit_id=made.oid, is_new=is_new)


def _operations(folder: Path, files: ExitStack) -> list[CommitOperationAdd]:
    """All files of the folder. They are open files, because the client uploads paths in another way than by LFS."""
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(
            path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=files.enter_context(path.open("rb"))
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _may_have_landed(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    is_refused = isinstance(error, HfHubHTTPError) and error.response.status_code != 412
    return not is_refused and not isinstance(error, (ValueError, TrainhopError))


@contextmanager
def _in_words(repo: str) -> Generator[None]:
    """Turn the client's errors into words. Its own texts are left out, because they contain addresses."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrainhopError):
            raise
        raise _meant(error, repo) from None


def _busy(error: BusyError, repo: str) -> str:
    if error.status == 409:
        return f"Another change of {repo} is in progress (HTTP 409)."
    return f"Hugging Face is busy (HTTP {error.status})."


def _meant(error: Exception, repo: str) -> TrainhopError:
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:  # the client wraps what happens during an upload
        if isinstance(cause, BusyError):
            return UnavailableError(_busy(cause, repo), retry_after_s=cause.retry_after_s)
        if isinstance(cause, LostError):
            return UnavailableError(f"Could not reach Hugging Face ({cause}).")
        if isinstance(cause, HfHubHTTPError):
            return _answered(cause.response.status_code, repo)
        cause = cause.__cause__
    if isinstance(error, OSError):
        return UnavailableError(f"The files for {repo} could not be read ({type(error).__name__}).")
    return InvalidError(f"Hugging Face does not accept the files for {repo} ({type(error).__name__}).")


def _answered(status: int, repo: str) -> TrainhopError:
    if status == 412:
        return UnavailableError(f"{repo} was changed by another client during the push (HTTP 412).")
    words = {
        400: f"Hugging Face does not accept the files for {repo} (HTTP 400).",
        401: "Hugging Face does not accept your token. Set one that can write with `trainhop hub login`.",
        402: f"Hugging Face wants a payment for {repo}: your storage may be used up (HTTP 402).",
        403: f"Hugging Face does not let you write to {repo} (HTTP 403). Check the permissions of your token.",
        404: f"{repo} was not found on Hugging Face. Check the name and the permissions of your token.",
        413: f"The files for {repo} are too large for Hugging Face (HTTP 413).",
    }
    return InvalidError(words.get(status, f"Hugging Face refused the push to {repo} (HTTP {status})."))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    akin, folder = frozenset(request["akin"]), Path(request["folder"])
    publication = Publication(**(request["publication"] | {"akin": akin, "folder": folder}))
    try:
        with own_client():
            return {"published": asdict(publish(request["endpoint"], publication))}
    except InvalidError as error:
        return {"refused": str(error)}
    except UnavailableError as error:
        return {"later": str(error), "retry_after_s": error.retry_after_s}


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
