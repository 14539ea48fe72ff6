"""The notebook itself: one line of explanation and one cell, as nbformat 4.5 says it. It holds a one-time code and no credential."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from worker.shared.wheel import Wheel

_EXPLANATION = """\
**{name}**: run the cell below (Shift+Enter) to train this job here until it is done or this session ends. \
Stop it at any time with the stop button: everything is saved first and the job goes on elsewhere. \
The code in the cell works once, within {hours:.0f} hours.{more}"""

_SIGNING_IN = " You are asked to sign in: choose **{owner}**, whose Drive holds the job's files."

_CALLING = """\
#@title Train {name}
import hashlib, pathlib, sys, tempfile, urllib.request

SERVER, CODE = {server}, {code}
WHEEL, SHA256 = {wheel}, {sha256}
try:
    wheel = urllib.request.urlopen(f"{{SERVER}}/api/v1/worker/{{SHA256}}/{{WHEEL}}", timeout=60).read()
except OSError as error:
    gone = getattr(error, "code", None) == 404
    print("This notebook is from another version of its server: make a new one." if gone else
          f"The server at {{SERVER}} cannot be reached from here ({{error}}). Nothing has happened: see that this runtime "
          "has internet access and the server is up, then run this cell again.")
else:
"""

_WRITING = """\
#@title Train {name}
import hashlib, pathlib, sys, tempfile, urllib.request
import google.auth, google.auth.transport.requests

CODE = {code}
DRIVE = {drive}
WHEEL, SHA256 = {wheel}, {sha256}
try:
    from google.colab import auth
    auth.authenticate_user()
except ImportError:
    pass  # elsewhere: gcloud auth application-default login --scopes=https://www.googleapis.com/auth/drive
try:
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/drive"])
    credentials.refresh(google.auth.transport.requests.Request())
    request = urllib.request.Request(DRIVE["wheel"], headers={{"Authorization": f"Bearer {{credentials.token}}"}})
    wheel = urllib.request.urlopen(request, timeout=60).read()
except (OSError, google.auth.exceptions.GoogleAuthError) as error:
    gone = getattr(error, "code", None) in (403, 404)
    print("This notebook's files are not in the Drive that you are signed in to: sign in as {owner}, and if you have, "
          "the notebook is too old or was run before: make a new one." if gone else
          f"Google Drive cannot be reached from here ({{error}}). Nothing has happened: see that this runtime has internet "
          "access and that you are signed in, then run this cell again.")
else:
"""

_TRAINING = """\
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        raise SystemExit("What arrived is not what this notebook was made for: make a new one.")
    path = pathlib.Path(tempfile.mkdtemp(), WHEEL)
    path.write_bytes(wheel)
    sys.path.insert(0, str(path))
    from worker.notebook import run
    run(CODE, {reach})
"""


@dataclass(frozen=True, kw_only=True)
class Mailbox:
    """Addresses of the documents by which the notebook speaks, and the account that they lie in."""

    addresses: dict[str, str]
    owner: str


def document(*, name: str, code: str, reach: str | Mailbox, wheel: Wheel, hours: float) -> dict[str, Any]:
    """A notebook for Colab (with a GPU), Kaggle and Jupyter; JSON-able. `reach` is the server's address, or a mailbox."""
    title = " ".join(re.sub(r"[^\w .,:()+-]", " ", name).split()) or "the job"
    values = {
        "name": title,
        "code": json.dumps(code),
        "wheel": json.dumps(wheel.name),
        "sha256": json.dumps(wheel.sha256),
    }
    if isinstance(reach, Mailbox):
        owner = re.sub(r"[^\w.@+-]", "", reach.owner) or "its owner"
        source = _WRITING.format(**values, drive=json.dumps(reach.addresses, indent=4), owner=owner)
        source += _TRAINING.format(reach="drive=DRIVE, credentials=credentials")
        more = _SIGNING_IN.format(owner=owner)
    else:
        source = _CALLING.format(**values, server=json.dumps(reach)) + _TRAINING.format(reach="server=SERVER")
        more = ""
    about = {"cell_type": "markdown", "id": "about", "metadata": {}}
    train = {"cell_type": "code", "id": "train", "metadata": {}, "execution_count": None, "outputs": []}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"gpuType": "T4", "provenance": []},
            "kaggle": {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": True},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "cells": [
            about | {"source": _EXPLANATION.format(name=title, hours=hours, more=more)},
            train | {"source": source},
        ],
    }


def file_name(job_name: str) -> str:
    """A file name that every system takes."""
    return (re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")[:60] or "job") + ".ipynb"
