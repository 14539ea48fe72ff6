"""The notebook file (nbformat 4.5): an explanation and one cell. It has a one-time code and no credential."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from worker.shared.places import SIGN_IN_CODE, notebook_metadata
from worker.shared.wheel import Wheel

_EXPLANATION = """\
**{name}**: run the cell below (Shift+Enter) to train this job until it is finished or this session ends. \
Stop it at any time with the stop button: it saves a checkpoint and the job resumes on another machine. \
The code in the cell works once, within {hours:.0f} hours.{more}"""

_SIGNING_IN = " Sign in as **{owner}**. The job's files are in the Drive of this account."

_CALLING = """\
#@title Train {name}
import hashlib, pathlib, sys, tempfile, urllib.request

SERVER, CODE = {server}, {code}
WHEEL, SHA256 = {wheel}, {sha256}
try:
    wheel = urllib.request.urlopen(f"{{SERVER}}/api/v1/worker/{{SHA256}}/{{WHEEL}}", timeout=60).read()
except OSError as error:
    gone = getattr(error, "code", None) == 404
    print("This notebook belongs to another version of the server. Create a new one." if gone else
          f"Could not reach the server at {{SERVER}} ({{error}}). Nothing was changed. Check that this runtime "
          "has internet access and that the server is running, then run this cell again.")
else:
"""

_WRITING = """\
#@title Train {name}
import hashlib, pathlib, sys, tempfile, urllib.request
import google.auth, google.auth.transport.requests

CODE = {code}
DRIVE = {drive}
WHEEL, SHA256 = {wheel}, {sha256}
{sign_in}try:
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/drive"])
    credentials.refresh(google.auth.transport.requests.Request())
    request = urllib.request.Request(DRIVE["wheel"], headers={{"Authorization": f"Bearer {{credentials.token}}"}})
    wheel = urllib.request.urlopen(request, timeout=60).read()
except (OSError, google.auth.exceptions.GoogleAuthError) as error:
    gone = getattr(error, "code", None) in (403, 404)
    print("This notebook's files are not in the Drive that you are signed in to. Sign in as {owner}. "
          "If you have, the notebook has expired or was run before. Create a new one." if gone else
          f"Could not reach Google Drive ({{error}}). Nothing was changed. Check that this runtime has internet access "
          "and that you are signed in, then run this cell again.")
else:
"""

_TRAINING = """\
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        raise SystemExit("The downloaded worker does not match this notebook. Create a new notebook.")
    path = pathlib.Path(tempfile.mkdtemp(), WHEEL)
    path.write_bytes(wheel)
    sys.path.insert(0, str(path))
    import trainhop
    sys.path.append(sys.path.pop(0))  # your own files come first again, also a file worker.py
    trainhop.notebook.run(CODE, {reach})
"""


@dataclass(frozen=True, kw_only=True)
class Mailbox:
    """The URLs of the documents that the notebook exchanges, and the account that owns them."""

    addresses: dict[str, str]
    owner: str


def document(*, name: str, code: str, reach: str | Mailbox, wheel: Wheel, hours: float) -> dict[str, Any]:
    """A notebook as JSON that requests a GPU from hosted editors. `reach` is the server's address, or a mailbox."""
    title = " ".join(re.sub(r"[^\w .,:()+-]", " ", name).split()) or "the job"
    values = {
        "name": title,
        "code": json.dumps(code),
        "wheel": json.dumps(wheel.name),
        "sha256": json.dumps(wheel.sha256),
    }
    if isinstance(reach, Mailbox):
        owner = re.sub(r"[^\w.@+-]", "", reach.owner) or "its owner"
        source = _WRITING.format(
            **values, drive=json.dumps(reach.addresses, indent=4), owner=owner, sign_in=SIGN_IN_CODE
        )
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
            **notebook_metadata(),
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "cells": [
            about | {"source": _EXPLANATION.format(name=title, hours=hours, more=more)},
            train | {"source": source},
        ],
    }


def file_name(job_name: str) -> str:
    """A file name that is valid on every system."""
    return (re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")[:60] or "job") + ".ipynb"
