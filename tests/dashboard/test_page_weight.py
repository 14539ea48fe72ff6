"""What a browser fetches for the page of a job stays as small as the docs say."""

import re

from benchmarks.page_weight import STEPS, trained_job, weigh
from tests.docs.snippets import ROOT

TOLERANCE_KIB, MAX_KIB = 1.5, 60.0
CLAIM = re.compile(r"(\d+) KiB compressed; with its HTML and a curve of ([\d,]+) steps it is (\d+) KiB")


def test_the_page_of_a_job_weighs_what_the_docs_say(show, tmp_path):
    """Guard: a static file that grew, or one that a page loads besides, fails here until the docs say so."""
    (claim,) = CLAIM.findall(" ".join((ROOT / "docs" / "operations.md").read_text().split()))
    job, machine = trained_job(show)
    found = weigh(show, job)
    print(found)
    assert int(claim[1].replace(",", "")) == STEPS
    assert abs(found["static"] - int(claim[0])) <= TOLERANCE_KIB
    assert abs(found["all"] - int(claim[2])) <= TOLERANCE_KIB
    assert machine.save(STEPS, tmp_path).json()["committed"]
    assert machine.finish(STEPS).status_code == 204
    assert max(found["all"], weigh(show, job)["all"]) <= MAX_KIB
