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


def main() -> int:
    """Read the request, export, print the answer. Returns the exit code."""
    _return_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    request: dict[str, Any] = json.loads(sys.stdin.read())
    request |= {key: Path(request[key]) for key in ("adapter", "out")}
    from worker.export.errors import ExportError, RoomError

    try:
        from worker.export.run import Request, export

        answer = export(Request(**request), _say)
    except RoomError as error:
        return _refuse(str(error), error.cause)
    except ExportError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        return _refuse(f"the export needs {error.name}: pip install torch 'trainhop[export]'", causes.INSTALL)
    except MemoryError:
        words = "this computer has too little free memory for the export; nothing was published"
        return _refuse(words, causes.MEMORY)
    print(json.dumps(answer))
    return 0


def _refuse(words: str, cause: str = "") -> int:
    print(json.dumps({"error": words} | ({"cause": cause} if cause else {})))
    return 1


if __name__ == "__main__":
    sys.exit(main())
