"""Names of repositories on the Hugging Face hub."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_REPO = 193
"""Characters of `OWNER/NAME`. Each part has at most 96."""
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")


def repo_name(text: str) -> str:
    """The name of a repository, `OWNER/NAME`. Raises `ValueError` for what the hub does not accept."""
    text = text.strip()
    if not _REPO.fullmatch(text) or "--" in text or ".." in text or text.endswith(".git"):
        raise ValueError("must be OWNER/NAME on the Hugging Face hub: letters, digits, single - and ., and _")
    return text


RepoName = Annotated[str, Field(max_length=MAX_REPO), AfterValidator(repo_name)]
