"""What a check is compared with: every probe has its expectations, and each value that differs has its meaning."""

from __future__ import annotations

import pytest

from orchestrator.domain.diagnosis import EXPECTED, changed, closed, judged, noticed, summary
from worker.doctor.outcome import FAILED, OK, PROBES, Outcome
from worker.shared import causes

DAY = 1_760_000_000.0  # 9 October 2025


def probe(name, status=OK, **data):
    return Outcome(name=name, status=status, words="words", data=data).as_dict()


def check(*probes, at=DAY, image="one"):
    return {"at": at, "image": image, "versions": {}, "probes": judged(probes)}


def test_every_probe_is_expected_something() -> None:
    assert tuple(EXPECTED) == PROBES
    for expected in EXPECTED.values():
        assert not expected.broken.endswith(".")
        assert len(expected.title) < 40


def test_a_probe_that_failed_says_what_to_do() -> None:
    for found in judged([probe(name, FAILED) for name in PROBES]):
        assert found["remedy"] == EXPECTED[found["name"]].broken


@pytest.mark.parametrize(
    ("name", "data", "meaning"),
    [
        ("equal_bytes", {"equal": False}, "may end in other bytes"),
        ("all_reduce", {"shm_bytes": 1 << 20}, "shared memory is small"),
        ("time_limit", {"files_kept": False, "log_kept": True}, "files are lost at the time limit"),
        ("time_limit", {"files_kept": True, "log_kept": False}, "the log is lost at the time limit"),
        ("cancel", {"files_kept": False}, "files are lost after a cancel"),
        ("log", {"spread_s": 90.0, "kept_share": 1.0}, "progress appears late"),
        ("log", {"spread_s": 1.0, "kept_share": 0.5}, "long logs are truncated"),
        ("inputs", {"layout": "other"}, "an unknown layout"),
    ],
)
def test_a_value_that_differs_fails_its_probe(name, data, meaning) -> None:
    """Guard: with `fits` not asked in `_judged` each of them was ok."""
    (found,) = judged([probe(name, **data)])
    assert (found["status"], meaning in found["remedy"]) == (FAILED, True)


def test_values_as_expected_change_nothing() -> None:
    found = judged(
        [
            probe("equal_bytes", equal=True),
            probe("all_reduce", shm_bytes=64 << 20),
            probe("time_limit", files_kept=True, log_kept=True),
            probe("log", spread_s=4.0, kept_share=1.0),
            probe("inputs", layout="nested"),
            probe("hub"),
        ]
    )
    assert {p["status"] for p in found} == {OK}
    assert {p["remedy"] for p in found} == {""}


def test_an_account_is_closed_by_its_newest_check_alone() -> None:
    bad = check(probe("training", FAILED, cause=causes.SMOKE))
    good = check(probe("training"), at=DAY + 1)
    assert "the check of 9 October 2025 failed (words)" in closed({"cpu": bad}, "kaggle", causes.SMOKE)
    assert closed({"cpu": bad, "gpu": good}, "kaggle", causes.SMOKE) == ""
    assert closed({"cpu": bad, "gpu": {**good, "at": DAY - 1}}, "kaggle", causes.SMOKE)
    assert closed({"cpu": check(probe("training", FAILED, cause=causes.INSTALL))}, "kaggle", causes.SMOKE) == ""
    assert closed({}, "kaggle", causes.SMOKE) == ""


def test_another_image_is_noticed_once() -> None:
    image = {"cpu": check(probe("hub"))}
    assert noticed(image, "cpu", "one", DAY) is None
    assert noticed(image, "cpu", "", DAY) is None
    assert noticed(image, "gpu", "two", DAY) is None  # no GPU machine was checked: nothing is known of its image
    new = noticed(image, "cpu", "two", DAY + 5)
    assert new is not None
    assert noticed(new, "cpu", "two", DAY + 6) is None
    words = "Kaggle's image changed since the last check on 9 October 2025: run `trainhop doctor --kaggle`"
    assert changed(new, "kaggle") == summary(new, "kaggle") == words


def test_a_check_in_one_line() -> None:
    image = {"cpu": check(probe("hub"), probe("log", FAILED), probe("cancel", "not asked"))}
    assert summary(image, "kaggle") == "checked on 9 October 2025: 1 of 2 probes ok; failed: lag and size of the log"
    assert summary({}, "kaggle") == ""
    assert summary({"problem": "Kaggle is away"}, "kaggle") == "Kaggle is away"
