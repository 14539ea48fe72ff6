"""Publishing a folder in a repository of the Hugging Face hub, as one commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The files of `folder` for the repository `repo`, with an account's hub `token`.

    The commit's title is `title`, and it names `push_id`. A commit on top that names one of `akin` may be built upon,
    also if the repository has other files. With `replace`, any commit may. `is_public` allows a public repository, and
    makes a new one public.
    """

    repo: str
    folder: Path
    push_id: str
    title: str
    description: str
    akin: frozenset[str]
    is_public: bool
    replace: bool
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Published:
    """The commit that has the files. `is_new` is false if the repository had all of them before this push."""

    commit_id: str
    is_new: bool


class Publisher(Protocol):
    """Pushes a folder: one commit, or none."""

    def publish(self, publication: Publication) -> Published:
        """The commit that has the files, made now or by an earlier call with the same `push_id`.

        Raises `InvalidError` for what only a person can change. Raises `UnavailableError` if it may succeed later, also
        if it is not known whether the commit was made. A later call finds out.
        """
        ...
