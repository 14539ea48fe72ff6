"""The notebook itself: one line of explanation and one cell, as nbformat 4.5 says it. It holds a one-time code and no credential."""

from __future__ import annotations

import json
import re
from typing import Any

from worker.bundle import Wheel

_EXPLANATION = """\
**{name}**: run the cell below (Shift+Enter) to train this job here until it is done or this session ends. \
Stop it at any time with the stop button: everything is saved first and the job goes on elsewhere. \
The code in the cell works once, within {hours:.0f} hours."""

_CELL = """\
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
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        raise SystemExit("What the server sent is not what this notebook was made for: make a new one.")
    path = pathlib.Path(tempfile.mkdtemp(), WHEEL)
    path.write_bytes(wheel)
    sys.path.insert(0, str(path))
    from worker.notebook import run
    run(CODE, server=SERVER)
"""


def document(*, name: str, code: str, server: str, wheel: Wheel, hours: float) -> dict[str, Any]:
    """A notebook for Colab (with a GPU), Kaggle and Jupyter; JSON-able."""
    title = " ".join(re.sub(r"[^\w .,:()+-]", " ", name).split()) or "the job"
    source = _CELL.format(
        name=title,
        server=json.dumps(server),
        code=json.dumps(code),
        wheel=json.dumps(wheel.name),
        sha256=json.dumps(wheel.sha256),
    )
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
            {
                "cell_type": "markdown",
                "id": "about",
                "metadata": {},
                "source": _EXPLANATION.format(name=title, hours=hours),
            },
            {
                "cell_type": "code",
                "id": "train",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            },
        ],
    }


def file_name(job_name: str) -> str:
    """A file name that every system takes."""
    return (re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")[:60] or "job") + ".ipynb"
