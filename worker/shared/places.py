"""The places where a worker runs, and what is particular to each. No other file of the worker names them.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

PlaceName = Literal["colab", "kaggle", "jupyter"]
"""Where a notebook runs. The values are part of the protocol and of stored claims."""
EDITORS = "Colab, Kaggle or Jupyter"
"""A text that names the places where people can run a notebook."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place. Only this place has the environment variable `variable` and the loaded module `module`.

    `enable_gpu` tells a person where to request a GPU. `notebook` is this place's entry in the `metadata` of a notebook
    file. `secrets` are variables of the place that training does not need. `release` is the variable that names its
    image. The value of the variable `session` contains the number of the session before its last dash.
    """

    variable: str
    module: str = ""
    enable_gpu: str
    notebook: dict[str, Any]
    secrets: tuple[str, ...] = ()
    release: str = ""
    session: str = ""


PLACES: dict[PlaceName, Place] = {
    "colab": Place(
        variable="COLAB_RELEASE_TAG",
        module="google.colab",
        enable_gpu="in the menu choose Runtime > Change runtime type > T4 GPU",
        notebook={"gpuType": "T4", "provenance": []},
        release="COLAB_RELEASE_TAG",
    ),
    "kaggle": Place(
        variable="KAGGLE_KERNEL_RUN_TYPE",
        enable_gpu="in the side bar choose Session options > Accelerator > GPU T4 x2",
        notebook={"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": True},
        secrets=("KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_API_V1_TOKEN", "KAGGLE_DATA_PROXY_TOKEN"),
        session="KAGGLE_CONTAINER_NAME",
    ),
}
FOREIGN_SECRETS = frozenset(name for place in PLACES.values() for name in place.secrets)
SIGN_IN_CODE = """\
try:
    from google.colab import auth
    auth.authenticate_user()
except ImportError:
    pass  # elsewhere: gcloud auth application-default login --scopes=https://www.googleapis.com/auth/drive
"""
"""Python code of a notebook's cell. It signs the person in to Google if the place supports that."""
_SESSION = re.compile(r"-(\d+)-\w+$")


class NoSignInError(Exception):
    """This place cannot sign a person in to Google. The message names the places that can."""


def here() -> PlaceName:
    """Where this process runs."""
    for name, place in PLACES.items():
        if place.variable in os.environ or (place.module and place.module in sys.modules):
            return name
    return "jupyter"


def enable_gpu(name: str) -> str:
    """How a person enables a GPU there. Empty if that is unknown."""
    return next((place.enable_gpu for known, place in PLACES.items() if known == name), "")


def notebook_metadata() -> dict[str, Any]:
    """The entries for each place in a notebook file, by name."""
    return {name: place.notebook for name, place in PLACES.items()}


def image_release() -> str:
    """The image of this machine, from the place's variable. Empty if there is none."""
    return next((os.environ[p.release].strip() for p in PLACES.values() if os.environ.get(p.release, "").strip()), "")


def session_number() -> int | None:
    """The number by which this session can be cancelled, from the name of its container."""
    for place in PLACES.values():
        if found := _SESSION.search(os.environ.get(place.session, "")):
            return int(found[1])
    return None


def sign_in() -> None:
    """Let the person who runs this kernel sign in to Google. Raises `NoSignInError`."""
    try:
        from google.colab import auth  # pyright: ignore[reportMissingImports] - only Colab has it

    except ImportError as error:
        raise NoSignInError(
            f"this is not a Colab runtime ({error}): open the cell at colab.research.google.com"
        ) from error
    auth.authenticate_user()
