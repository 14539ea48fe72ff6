"""What a browser fetches for the page of a job, compressed: its HTML, its curve and every static file that it names.

    python -m benchmarks.page_weight --json

Sizes are in KiB as sent, without headers. The job has 20,000 steps; the curve of a longer one is thinned out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import httpx

from tests.helpers.page_server import PageServer, page_server, steps
from tests.http.http_client import Machine

STEPS = 20_000
STATIC = re.compile(r"""["'](/static/[^"'#]+)""")
DEFERRED = re.compile(r'data-script="[^"]*"')
"""The script of a form, which a browser loads once a person goes there."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line, for programs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-weight-") as folder, page_server(Path(folder)) as server:
        found = weigh(server, trained_job(server)[0])
    print(json.dumps(found) if asked.json else json.dumps(found, indent=2))
    return 0


def trained_job(server: PageServer) -> tuple[str, Machine]:
    """The id of a running job with a curve, and its machine."""
    job = server.api.admin.submit(max_steps=STEPS)
    machine = server.machine()
    for first in range(1, STEPS + 1, 100):
        steps(machine, first, first + 99, total=STEPS)
    return job["id"], machine


def weigh(server: PageServer, job: str) -> dict[str, float]:
    """KiB of the HTML, of the curve, of the static files, and of all together."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60, follow_redirects=True) as browser:
        browser.get(server.link()).raise_for_status()
        page = f"/jobs/{job}"
        html = DEFERRED.sub("", browser.get(page).raise_for_status().text)
        named = set(STATIC.findall(html)) | _named_by_scripts(browser, html)
        parts = {
            "html": _sent(browser, page),
            "curve": _sent(browser, f"{page}/curve.json"),
            "static": sum(_sent(browser, address) for address in named),
        }
    return {name: round(size / 1024, 1) for name, size in (parts | {"all": sum(parts.values())}).items()}


def _named_by_scripts(browser: httpx.Client, html: str) -> set[str]:
    scripts = [address for address in STATIC.findall(html) if ".js" in address]
    return {found for address in scripts for found in STATIC.findall(browser.get(address).text)}


def _sent(browser: httpx.Client, address: str) -> int:
    """Bytes of an answer's body on the wire."""
    with browser.stream("GET", address, headers={"Accept-Encoding": "gzip"}) as answer:
        answer.raise_for_status()
        return sum(len(part) for part in answer.iter_raw())


if __name__ == "__main__":
    sys.exit(main())
