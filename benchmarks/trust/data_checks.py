"""The planted set, its clean twin, and 10,000 rows of 20 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.trust import planted_set
from benchmarks.trust.english import English
from benchmarks.trust.planted_set import BARRED, KINDS, Planted
from worker.shared.data_checks.runner import Data, Options, Outcome, check

LEAST = 0.98
LEAST_PRECISION_OF_KEYS = 0.95
ROWS, BYTES = 10_000, 20_000_000
MAX_SECONDS, MAX_MIB = 20, 400
MAX_ROW_BYTES = 1_500
"""Memory for each row: a signature of 512 bytes, once more while all are joined, hashes, line numbers and pairs."""
_MEASURED = """
import json, re, sys, time
from pathlib import Path
if sys.argv[2] == "without languages":
    sys.modules["py3langid"] = None  # its model takes more memory for a moment than all rows together
from worker.shared.data_checks.runner import Data, check
began = time.perf_counter()
report = check(Data(path=Path(sys.argv[1]))).report
print(json.dumps({
    "seconds": time.perf_counter() - began, "cpu_s": time.process_time(), "checked": report.checked,
    # Of this program alone: the resource module counts what its parent had before it began.
    "bytes": 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]),
    "torch": "torch" in sys.modules,
}))
"""


def planted(folder: Path) -> Iterator[Figure]:
    """Recall and precision for each planted fault."""
    there = planted_set.plant(folder)
    outcome = check(Data(path=there.train), Options(validation=Data(path=there.validation)))
    yield from _copies(there, outcome)
    leaked = {place + 1 for place in outcome.named.get("leak", ())}
    yield from _exactly("exact leaks", there.exact_leaks, leaked & (there.exact_leaks | _innocent(there, leaked)), 1.0)
    yield from _exactly("near leaks", there.near_leaks, leaked & (there.near_leaks | _innocent(there, leaked)), LEAST)
    keys, persons, tokens = (
        {place + 1 for place in outcome.named.get(name, ())} for name in ("secrets", "personal_data", "template_tokens")
    )
    yield from _exactly("keys", there.keys, keys, LEAST, LEAST_PRECISION_OF_KEYS)
    yield from _exactly("personal data", there.persons, persons, LEAST, LEAST_PRECISION_OF_KEYS)
    yield from _exactly("control tokens", there.tokens, tokens, 1.0)
    stops = {found.check for found in outcome.report.findings if found.level == "stop"}
    expected = {"leak", "secrets", "template_tokens"}
    yield Figure(name="stops", value=", ".join(sorted(stops)), bar=", ".join(sorted(expected)), ok=stops == expected)
    shown = " ".join(sample.text for found in outcome.report.findings for sample in found.samples)
    leaks = sum(secret in shown for secret in _private_words(there))
    yield Figure(name="secrets and personal data in samples", value=leaks, bar="0", ok=not leaks)
    wrong = there.wrong / planted_set.ROWS
    yield Figure(
        name="rows with a wrong fact, which only an audit finds",
        value=round(wrong, 3),
        bar="0.26 to 0.28",
        ok=0.26 <= wrong <= 0.28,
    )


def _innocent(there: Planted, leaked: AbstractSet[int]) -> AbstractSet[int]:
    """Validation rows that were found although nothing was planted in them."""
    return leaked - there.exact_leaks - there.near_leaks


def _copies(there: Planted, outcome: Outcome) -> Iterator[Figure]:
    groups = _groups(outcome)
    for kind in KINDS:
        made = [(line, original) for line, (name, original) in there.copies.items() if name == kind]
        share = sum(groups.get(a) == groups.get(b) is not None for a, b in made) / len(made)
        is_barred = kind in BARRED
        yield Figure(
            name=f"copies found: {kind}",
            value=round(share, 3),
            bar=f">= {LEAST}" if is_barred else "reported",
            ok=not is_barred or share >= LEAST,
        )
    family = {line: original for line, (_, original) in there.copies.items()}
    found = [(line, groups[line]) for line in groups if groups[line] != line]
    right = sum(family.get(a, a) == family.get(b, b) for a, b in found)
    precision = right / max(1, len(found))
    yield Figure(name="copies, precision", value=round(precision, 3), bar=f">= {LEAST}", ok=precision >= LEAST)


def _groups(outcome: Outcome) -> dict[int, int]:
    """The first line of the copies that each found line belongs to."""
    first: dict[int, int] = {}

    def root(line: int) -> int:
        while first.setdefault(line, line) != line:
            line = first[line]
        return line

    pairs = [(a + 1, b + 1) for a, b in outcome.near + outcome.exact]
    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        first[high] = low
    return {line: root(line) for line in list(first)}


def _exactly(
    name: str, there: AbstractSet[int], found: AbstractSet[int], least: float, precise: float | None = None
) -> Iterator[Figure]:
    right = len(there & found)
    for what, share, bar in (
        ("recall", right / len(there), least),
        ("precision", right / max(1, len(found)), least if precise is None else precise),
    ):
        yield Figure(name=f"{name}, {what}", value=round(share, 3), bar=f">= {bar}", ok=share >= bar)


def _private_words(there: Planted) -> list[str]:
    """The longest word of each planted key and person, as it is in the file."""
    lines = there.train.read_text().splitlines()
    found = []
    for number in sorted(there.keys | there.persons):
        content = " ".join(turn["content"] for turn in json.loads(lines[number - 1])["messages"])
        begin = next(mark for mark in ("I used ", "Ask for me at ") if mark in content)
        inside = content.partition(begin)[2].partition(" for it." if begin == "I used " else " please.")[0]
        found.append(max(inside.split(), key=len))
    return found


def clean_twin(folder: Path) -> Iterator[Figure]:
    """Stops and warnings where nothing is planted."""
    train, validation = planted_set.clean_twin(folder)
    report = check(Data(path=train), Options(validation=Data(path=validation))).report
    stops = [found.check for found in report.findings if found.level == "stop"]
    warnings = [found.check for found in report.findings if found.level == "warn"]
    yield Figure(name="stops in the clean twin", value=", ".join(stops) or 0, bar="0", ok=not stops)
    yield Figure(name="warnings in the clean twin", value=", ".join(warnings) or 0, bar="<= 2", ok=len(warnings) <= 2)


def speed(folder: Path) -> Iterator[Figure]:
    """Time and memory of a process that checks 10,000 rows, and of twice as many."""
    one, two = folder / "one.jsonl", folder / "two.jsonl"
    size = _long_rows(one, ROWS, 1)
    two.write_bytes(one.read_bytes())
    _long_rows(folder / "more.jsonl", ROWS, 2)
    with two.open("ab") as file:
        file.write((folder / "more.jsonl").read_bytes())
    first, less, more = _measure(one, "all"), _measure(one, "without languages"), _measure(two, "without languages")
    assert (first["checked"], more["checked"]) == (ROWS, 2 * ROWS)
    yield Figure(name="MB of 10,000 rows", value=round(size / 1e6, 1), bar=">= 20", ok=size >= BYTES)
    # One process computes without waiting, so on a core of its own the clock shows the same.
    computing, clock = round(first["cpu_s"], 1), round(first["seconds"], 1)
    bar = f"<= {MAX_SECONDS}"
    yield Figure(name="seconds of computing, on one core", value=computing, bar=bar, ok=computing <= MAX_SECONDS)
    yield Figure(name="seconds on the clock, beside what else ran", value=clock, bar="reported", ok=True)
    mib = first["bytes"] / 2**20
    yield Figure(name="MiB of memory", value=round(mib), bar=f"<= {MAX_MIB}", ok=mib <= MAX_MIB)
    yield Figure(name="torch imported", value=first["torch"], bar="False", ok=not first["torch"])
    each = (more["bytes"] - less["bytes"]) / ROWS
    yield Figure(
        name="bytes of memory for each further row of 2,000 bytes",
        value=round(each),
        bar=f"<= {MAX_ROW_BYTES} (signatures and hashes)",
        ok=each <= MAX_ROW_BYTES,
    )


def _long_rows(path: Path, rows: int, seed: int) -> int:
    english = English(seed)
    with path.open("w") as file:
        for _ in range(rows):
            row = english.row(sentences=(3, 6))
            while len(json.dumps(row)) < BYTES // ROWS - 40:
                row["messages"][-1]["content"] += f" {english.sentence()}"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path.stat().st_size


def _measure(path: Path, what: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(path), what], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
