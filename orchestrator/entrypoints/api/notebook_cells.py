"""The cell that checks a Colab runtime: the worker itself, its order, and a few lines that start it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from worker.shared import wheel

_CELL = '''\
#@title Check this runtime for Trainhop
import base64, io, json, pathlib, sys, tempfile, zipfile

ORDER = json.loads({order!r})
home = pathlib.Path(tempfile.mkdtemp(prefix="trainhop-"))
zipfile.ZipFile(io.BytesIO(base64.b64decode("""
{worker}"""))).extractall(home / "lib")
sys.path.insert(0, str(home / "lib"))
from worker.doctor.cell import run
run(ORDER, home)
'''


def source(order: Mapping[str, Any]) -> str:
    """Python for one cell."""
    return _CELL.format(order=json.dumps(order), worker=base64.encodebytes(wheel.build().data).decode())
