"""Whether an account of the Hugging Face hub may write to a repository, by what the hub says of its token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NEW = "Create one at https://huggingface.co/settings/tokens and set it with `trainhop hub login`."
_WRITES = frozenset({"repo.write", "repo.content.write"})


def no_write(me: Mapping[str, Any], repo: str) -> str:
    """Why the token may not write to the repository `OWNER/NAME`, in words. Empty if nothing speaks against it.

    `me` is the hub's answer to `whoami`. Rights that it does not tell are the hub's to refuse later.
    """
    owner, name = repo.split("/", maxsplit=1)[0], str(me.get("name"))
    orgs = {str(org.get("name")).lower(): org for org in _maps(me.get("orgs"))}
    if owner.lower() != name.lower() and owner.lower() not in orgs:
        return f"{repo} belongs to another account. Your account {name[:100]} is not {owner} and not a member of it."
    if owner.lower() in orgs and orgs[owner.lower()].get("roleInOrg") == "read":
        return f"Your role in {owner} does not allow you to write. Ask its admin, or push to another repository."
    token = _map(_map(me.get("auth")).get("accessToken"))
    if token.get("role") == "read":
        return f"Your Hugging Face token can only read, and a push needs one that can write. {_NEW}"
    fine = token.get("fineGrained")
    if token.get("role") == "fineGrained" and isinstance(fine, Mapping) and not _is_allowed(_map(fine), owner, repo):
        return f"Your Hugging Face token has no write permission for {repo}. {_NEW}"
    return ""


def _is_allowed(fine: Mapping[str, Any], owner: str, repo: str) -> bool:
    return any(
        str(_map(scope.get("entity")).get("name")).lower() in (owner.lower(), repo.lower())
        and not _WRITES.isdisjoint(map(str, scope.get("permissions") or ()))
        for scope in _maps(fine.get("scoped"))
    )


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: Any) -> Sequence[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
