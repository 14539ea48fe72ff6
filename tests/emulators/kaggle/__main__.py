"""`python -m tests.emulators.kaggle --port P --data-dir D`: the emulator by itself, until it is interrupted."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.emulators.kaggle import KaggleEmulator, Person


def main() -> int:
    """Start, print one JSON line that says where and for whom, and wait for a signal."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.kaggle", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--data-dir", type=Path, help="default: a temporary folder")
    parser.add_argument(
        "--account", action="append", metavar="NAME:TOKEN", help="repeatable; default alice:KGAT_alice, bob:KGAT_bob"
    )
    parser.add_argument("--gpu-hours", type=float, default=30.0)
    parser.add_argument("--time-factor", type=float, default=1.0, help="scales every session's time limit")
    parser.add_argument("--no-outputs-after-kill", action="store_true")
    parser.add_argument(
        "--processing-polls", type=int, default=1, help="times a dataset's status is asked before READY"
    )
    said = parser.parse_args()
    accounts = [a.partition(":") for a in said.account or ("alice:KGAT_alice", "bob:KGAT_bob")]
    with tempfile.TemporaryDirectory(prefix="kaggle-emulator-") as spare:
        emulator = KaggleEmulator(
            said.data_dir or Path(spare),
            [Person(name=name, token=token, gpu_hours=said.gpu_hours) for name, _, token in accounts],
            port=said.port,
            time_factor=said.time_factor,
            outputs_after_kill=not said.no_outputs_after_kill,
            processing_polls=said.processing_polls,
        )
        over = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
        with emulator:
            print(json.dumps({"endpoint": emulator.endpoint, "accounts": [a[0] for a in accounts]}), flush=True)
            over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
