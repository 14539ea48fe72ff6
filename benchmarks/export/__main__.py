"""Measures what becomes of an adapter: merge, GGUF, the check before each, pushes to the hub, and the chat.

    PYTHONPATH=FOLDER_WITH_LLAMA_CPP python -m benchmarks.export [--only ITEM,...] [--json]

The last line is the result. The exit code is 1 if a figure is not as expected.
"""

from __future__ import annotations

import sys

from benchmarks.export.chat import chat
from benchmarks.export.damage import damage
from benchmarks.export.merge import bits, memory, memory_7b
from benchmarks.export.push import push, tokens
from benchmarks.export.with_llama_cpp import smollm2, tiny
from benchmarks.report import Item, report

ITEMS: dict[str, Item] = {
    "bits": bits,
    "memory": memory,
    "memory_7b": memory_7b,
    "damage": damage,
    "push": push,
    "tokens": tokens,
    "llama_cpp_tiny": tiny,
    "llama_cpp_smollm2": smollm2,
    "chat": chat,
}

if __name__ == "__main__":
    sys.exit(report(__doc__, ITEMS))
