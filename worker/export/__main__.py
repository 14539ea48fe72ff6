"""`python -m worker.export`: one export. The request is one JSON object on standard input, the answer one on output.

It is a process of its own, so that neither the server nor the command line loads torch. What is being done is said on
standard error, one line each. The answer is the report, or `{"error": "one sentence"}` with exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

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
    from worker.export.errors import ExportError

    try:
        from worker.export.run import Request, export

        answer = export(Request(**request), _say)
    except ExportError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except ModuleNotFoundError as error:
        print(json.dumps({"error": f"the export needs {error.name}: pip install torch 'trainhop[export]'"}))
        return 1
    except MemoryError:
        print(json.dumps({"error": "this computer has too little free memory for the export; nothing was published"}))
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
