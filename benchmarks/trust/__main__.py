"""Measures the parts that say whether data, and an adapter trained on it, can be trusted.

    python -m benchmarks.trust [--only ITEM,...] [--json]

The last line is the result. The exit code is 1 if a figure is not as expected.
"""

from __future__ import annotations

import sys

from benchmarks.report import Item, report
from benchmarks.trust.crawl import crawl
from benchmarks.trust.data_checks import clean_twin, planted, speed
from benchmarks.trust.evaluation_hops import evaluation_hops
from benchmarks.trust.paper_votes import paper_votes
from benchmarks.trust.statistics import statistics
from benchmarks.trust.wrong_rows import wrong_rows

ITEMS: dict[str, Item] = {
    "planted": planted,
    "clean_twin": clean_twin,
    "speed": speed,
    "statistics": statistics,
    "paper_votes": paper_votes,
    "crawl": crawl,
    "wrong_rows": wrong_rows,
    "evaluation_hops": evaluation_hops,
}

if __name__ == "__main__":
    sys.exit(report(__doc__, ITEMS))
