"""Third-party files of the pages: `python -m orchestrator.entrypoints.static.vendor [--refresh]`.

Without `--refresh` the committed files are compared with `vendor.lock.json`. With it they are downloaded again by `npm
pack`, and the tarball must match the integrity in the lock. An entry without an integrity gets the tarball's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCK = HERE / "vendor.lock.json"
FILES = HERE / "vendor"


def faults() -> list[str]:
    """One sentence for each committed file that differs from the lock or is not listed in it."""
    wanted = {name: digest for entry in json.loads(LOCK.read_text()) for name, digest in entry["sha256"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES.iterdir()}
    missing = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    foreign = [f"{name} is not in the lock" for name in found.keys() - wanted.keys()]
    return missing + foreign + [f"{n} was changed" for n in wanted.keys() & found.keys() if wanted[n] != found[n]]


def refresh() -> None:
    """Fetch each package of the lock, check it, replace its files and record their hashes."""
    entries: list[dict[str, Any]] = json.loads(LOCK.read_text())
    FILES.mkdir(exist_ok=True)
    for entry in entries:
        with tempfile.TemporaryDirectory() as folder:
            tarball = _pack(entry, Path(folder))
            digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
            if entry.setdefault("integrity", f"sha512-{digest}") != f"sha512-{digest}":
                raise SystemExit(f"{entry['npm']}@{entry['version']} differs from the lock")
            with tarfile.open(tarball) as archive:
                entry["sha256"] = {name: _take(archive, source, name) for name, source in entry["files"].items()}
    LOCK.write_text(json.dumps(entries, indent=2) + "\n")


def _pack(entry: dict[str, Any], folder: Path) -> Path:
    command = ["npm", "pack", "--silent", f"{entry['npm']}@{entry['version']}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / done.stdout.split()[-1]


def _take(archive: tarfile.TarFile, source: str, name: str) -> str:
    file = archive.extractfile(f"package/{source}")
    if file is None:
        raise SystemExit(f"the package has no {source}")
    data = file.read()
    (FILES / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Refresh with `--refresh`, then check. The exit code is 1 when a file differs."""
    if "--refresh" in sys.argv[1:]:
        refresh()
    problems = faults()
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
