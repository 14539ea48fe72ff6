"""`python -m worker.export`: one export. The request is one JSON object on standard input, the answer one on output.

It is a process of its own, so that neither the server nor the command line loads torch. What is being done is said on
standard error, one line each. The answer is the report, or `{"error": "one sentence"}` with exit code 1. It has a
`cause` of `worker.shared.causes` if another computer may be able to make this export.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from worker.shared import causes

_MMAP_THRESHOLD = -3
"""The number of glibc's option."""


def _return_memory() -> None:
    """Let blocks of tensors go back to the system at once, so that memory does not grow with the number of layers."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def answered(text: str) -> dict[str, Any]:
    """Export as the request says. Returns the answer."""
    request: dict[str, Any] = json.loads(text)
    request |= {key: Path(request[key]) for key in ("adapter", "out")}
    from worker.export.errors import ExportError, RoomError

    try:
        from worker.export.run import Request, export

        return export(Request(**request), _say)
    except RoomError as error:
        return {"error": str(error), "cause": error.cause}
    except ExportError as error:
        return {"error": str(error)}
    except ModuleNotFoundError as error:
        words = f"the export needs {error.name}: pip install torch 'trainhop[export]'"
        return {"error": words, "cause": causes.INSTALL}
    except MemoryError:
        words = "this computer has too little free memory for the export; nothing was published"
        return {"error": words, "cause": causes.MEMORY}


def main() -> int:
    """Read the request, export, print the answer. Returns the exit code."""
    _return_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    answer = answered(sys.stdin.read())
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
