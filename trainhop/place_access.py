"""Which shared place a cell uses, and the tokens for it. Tokens are never printed.

Kaggle's and Colab's secrets can be read by the kernel alone, so the kernel hands them on in its process's environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from trainhop.errors import Error

if TYPE_CHECKING:
    from worker.shared.shared_places import Credentials

HUB_TOKEN, DRIVE_TOKEN = "HF_TOKEN", "TRAINHOP_DRIVE_TOKEN"
OWN = "hf://~/"
"""The address of a repository of the token's own account begins with this."""
ASK_HUB = (
    "There is no Hugging Face token here. Create a fine-grained one at huggingface.co/settings/tokens that may write "
    "to this one repository, and store it as the secret HF_TOKEN: in Colab under the key in the side bar, in Kaggle "
    "under Add-ons > Secrets, elsewhere as the environment variable HF_TOKEN."
)


def choose(place: str | None, slug: str, where: str) -> tuple[str, str]:
    """The address of the place, and why it was chosen. `where` is `colab`, `kaggle` or `jupyter`."""
    if place is not None:
        if not place.strip():
            raise Error(
                "place is empty. Write hf://OWNER/NAME, drive://FOLDER or the path of a folder.", reason="usage"
            )
        return place.strip(), "as asked"
    if hub_token(where) is not None:
        return f"{OWN}trainhop-{slug}", "a Hugging Face token is here, and every machine can reach the Hub"
    if where == "colab":
        return f"drive://trainhop-{slug}", "there is no Hugging Face token, and Colab can sign you in to Google Drive"
    folder = Path("trainhop-runs", slug)
    return str(folder), "there is no Hugging Face token; another machine cannot go on from a folder of this one"


def slug(name: str) -> str:
    """The part of an address that names a job."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "run"


def variables(address: str, where: str) -> dict[str, str]:
    """The environment that the process needs to reach the place. Asks the person to sign in if that is needed."""
    found: dict[str, str] = {}
    token = hub_token(where)
    if token is not None:
        found[HUB_TOKEN] = token  # for the base model, too
    if address.startswith("hf://") and token is None and not os.environ.get("HF_ENDPOINT"):
        raise Error(ASK_HUB, reason="usage")
    if address.startswith("drive://") and where == "colab" and DRIVE_TOKEN not in os.environ:
        from google.colab import auth  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

        auth.authenticate_user()  # pyright: ignore[reportUnknownMemberType]
    return found


def hub_token(where: str) -> str | None:
    """The token of the Hugging Face Hub: from the environment, the place's secrets, or an earlier `hf auth login`."""
    if found := os.environ.get(HUB_TOKEN, "").strip():
        return found
    secret: Callable[[], str | None] = {"colab": _colab_secret, "kaggle": _kaggle_secret}.get(where, lambda: None)
    if found := (secret() or "").strip():
        return found
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    with suppress(OSError):
        return (home / "token").read_text().strip() or None
    return None


def _colab_secret() -> str | None:
    with suppress(Exception):  # no such secret, not granted to this notebook, or no answer of the page
        from google.colab import userdata  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

        return userdata.get(HUB_TOKEN)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return None


def _kaggle_secret() -> str | None:
    with suppress(Exception):  # no such secret, or not attached to this notebook
        from kaggle_secrets import (  # pyright: ignore[reportMissingImports]
            UserSecretsClient,  # pyright: ignore[reportUnknownVariableType]
        )

        return UserSecretsClient().get_secret(HUB_TOKEN)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return None


# --- in the cell's process ---


def credentials(address: str) -> Credentials:
    """What the place at this address needs."""
    from worker.shared.shared_places import Credentials

    drive = _drive_token() if address.startswith("drive://") else None
    return Credentials(
        hub_token=os.environ.get(HUB_TOKEN),
        drive_token=drive,
        hub_endpoint=os.environ.get("HF_ENDPOINT"),
        drive_endpoint=os.environ.get("TRAINHOP_DRIVE_ENDPOINT"),
        drive_settle_s=float(settle) if (settle := os.environ.get("TRAINHOP_DRIVE_SETTLE_S")) else None,
    )


def _drive_token() -> Callable[[], str]:
    """A token given as a variable, or that of the machine's sign-in to Google, renewed when it expires."""
    if given := os.environ.get(DRIVE_TOKEN):
        return lambda: given
    from worker.shared.shared_places import RefusedError

    try:
        from google.auth.transport.requests import Request

        found = import_module("google.auth").default(scopes=["https://www.googleapis.com/auth/drive"])[0]
    except Exception as error:
        raise RefusedError(
            "Google Drive needs a sign-in. In Colab the cell asks for it. Elsewhere install google-auth and run "
            f"`gcloud auth application-default login --scopes=https://www.googleapis.com/auth/drive` ({error})"
        ) from error

    def token() -> str:
        if not found.valid:
            found.refresh(Request())
        return str(found.token)

    return token
