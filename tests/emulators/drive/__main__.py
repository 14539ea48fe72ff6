"""`python -m tests.emulators.drive --port P --data-dir D`: serve until interrupted; credentials are left in D."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path

from tests.emulators.drive.server import Drive


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.drive")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, required=True)
    asked = parser.parse_args()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.signal(signal.SIGINT, lambda *_: over.set())
    with Drive(asked.data_dir, asked.port) as drive:
        (asked.data_dir / "authorized_user.json").write_text(json.dumps(drive.authorized_user()))
        (asked.data_dir / "client_secrets.json").write_text(json.dumps(drive.tokens.client_secrets(drive.url)))
        (asked.data_dir / "drive.url").write_text(drive.url)
        print(f"drive emulator at {drive.url}", flush=True)
        over.wait()


if __name__ == "__main__":
    main()
