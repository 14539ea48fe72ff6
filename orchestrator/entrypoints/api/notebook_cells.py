"""The cell that checks a notebook's machine: the worker, its order, and the code that starts it."""

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
import trainhop
sys.path.append(sys.path.pop(0))  # your own files come first again, also a file worker.py
trainhop.notebook.check(ORDER, home)
'''


def source(order: Mapping[str, Any]) -> str:
    """The Python code of the cell."""
    return _CELL.format(order=json.dumps(order), worker=base64.encodebytes(wheel.build().data).decode())
