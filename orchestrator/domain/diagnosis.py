"""Expected results of a machine check, and what a difference means for the account's owner.

An account keeps its checks in `Account.image`: the newest one by machine (`cpu`, `gpu`), the one that is `running`,
what a later session found to have `changed`, the `problem` of one that could not be made, and the ids of those
of which something is `left` at the provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MACHINES = ("cpu", "gpu")
OK, FAILED = "ok", "failed"
LEAST_SHM_BYTES = 32 << 20
LATEST_LOG_S = 30.0
LEAST_KEPT = 0.99
REPORT = "report it as an issue (--out FILE saves a report)"
Check = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The expected result of one measured value, and the meaning of any other result."""

    key: str
    fits: Callable[[Any], bool]
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One probe: its title for people, what its failure means, and the values it measures when it succeeds."""

    title: str
    broken: str
    values: tuple[Expectation, ...] = ()


def _is_true(value: Any) -> bool:
    return value is True


def _at_most(most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and value <= most


def _at_least(least: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and value >= least


EXPECTED: Mapping[str, Expected] = {
    "training": Expected(
        title="training works on this image",
        broken=f"jobs would fail before their first step, so none is started on a GPU: {REPORT}, and check again",
    ),
    "equal_bytes": Expected(
        title="NF4 twice, equal bytes",
        broken="a run with hand-offs may end in other bytes than an unbroken one, but no state is lost",
        values=(
            Expectation(
                key="equal",
                fits=_is_true,
                meaning="a run with hand-offs may end in other bytes than an unbroken one, but no state is lost",
            ),
        ),
    ),
    "all_reduce": Expected(
        title="two processes communicate",
        broken=f"the two GPUs of a machine cannot train together, and sessions there would not start: {REPORT}",
        values=(
            Expectation(
                key="shm_bytes",
                fits=_at_least(LEAST_SHM_BYTES),
                meaning=f"shared memory is small, and two GPUs may fail to start together: {REPORT}",
            ),
        ),
    ),
    "time_limit": Expected(
        title="end at the time limit",
        broken="sessions do not end at their limit: watch the account's quota, and stop sessions by hand",
        values=(
            Expectation(
                key="files_kept",
                fits=_is_true,
                meaning="files are lost at the time limit: store checkpoints in Drive (`trainhop store use drive`)",
            ),
            Expectation(
                key="log_kept",
                fits=_is_true,
                meaning="the log is lost at the time limit: keep the server running, so that it saves the log",
            ),
        ),
    ),
    "cancel": Expected(
        title="cancel keeps the files",
        broken="a session can only be stopped by deleting it, which loses its files: store checkpoints in Drive "
        "(`trainhop store use drive`)",
        values=(
            Expectation(
                key="files_kept",
                fits=_is_true,
                meaning="files are lost after a cancel: store checkpoints in Drive (`trainhop store use drive`)",
            ),
        ),
    ),
    "log": Expected(
        title="lag and size of the log",
        broken="progress is not visible while a session runs: its job shows no data before the session ends",
        values=(
            Expectation(
                key="spread_s",
                fits=_at_most(LATEST_LOG_S),
                meaning="progress appears late, and a running session may seem stalled: wait before you stop one",
            ),
            Expectation(
                key="kept_share",
                fits=_at_least(LEAST_KEPT),
                meaning="long logs are truncated: keep the server running, so that it saves the log",
            ),
        ),
    ),
    "hub": Expected(
        title="downloads from Hugging Face",
        broken="models may not arrive: verify the account's phone number for internet access, or try again later; "
        "where only Xet fails, sessions use plain HTTP",
    ),
    "drive_upload": Expected(
        title="a Drive upload without sign-in",
        broken="these machines cannot upload checkpoints to Google Drive, so checkpoints are kept only in their "
        "output: sign in again (`trainhop store use drive`)",
    ),
    "inputs": Expected(
        title="staged files",
        broken=f"training data and checkpoints do not reach these machines, and no job can start: {REPORT}",
        values=(
            Expectation(
                key="layout",
                fits=lambda value: value in ("nested", "flat"),
                meaning=f"the files have an unknown layout and are found by name: {REPORT}",
            ),
        ),
    ),
    "drive_sign_in": Expected(
        title="the Drive sign-in of a notebook",
        broken="notebooks cannot reach the server through Google Drive: sign in as the Drive's owner, or give the "
        "server a public address (TRAINHOP_PUBLIC_URL)",
    ),
}


def judged(probes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The probes with their titles.

    A probe that failed, or measured values other than the expected ones, counts as failed and has a `remedy`.
    """
    return [_judged(probe) for probe in probes]


def _judged(probe: Mapping[str, Any]) -> dict[str, Any]:
    expected = EXPECTED[probe["name"]]
    found = dict(probe) | {"title": expected.title, "remedy": ""}
    if probe["status"] == FAILED:
        found["remedy"] = expected.broken
    elif probe["status"] == OK:
        data = probe["data"]
        wrong = [value.meaning for value in expected.values if value.key in data and not value.fits(data[value.key])]
        if wrong:
            found |= {"status": FAILED, "remedy": "; ".join(wrong)}
    return found


def failures(check: Check) -> list[Mapping[str, Any]]:
    """The check's failed probes."""
    return [probe for probe in check["probes"] if probe["status"] == FAILED]


def newest(image: Mapping[str, Any]) -> Check | None:
    """The newest check of an account on any machine."""
    found = [image[machine] for machine in MACHINES if machine in image]
    return max(found, key=lambda check: check["at"], default=None)


def closed(image: Mapping[str, Any], provider: str, smoke: str) -> str:
    """Why no GPU session may start: the newest check found that the set does not train, and the image has not changed.

    `smoke` is the cause that means this. Packages that could not be fetched do not close the account, because the next
    download may succeed.
    """
    check = newest(image)
    if check is None or "changed" in image:
        return ""
    for probe in failures(check):
        if probe["name"] == "training" and probe["data"].get("cause") == smoke:
            return (
                f"the check of {day(check['at'])} failed ({probe['words']}): run `trainhop doctor --{provider}` again"
            )
    return ""


def noticed(image: Mapping[str, Any], machine: str, seen: str, at: float) -> dict[str, Any] | None:
    """What an account keeps after a session ran on the image `seen`. None if the account knows this already."""
    known = image.get(machine, {}).get("image", "")
    if not known or not seen or seen == known or image.get("changed", {}).get("image") == seen:
        return None
    return {**image, "changed": {"image": seen, "at": at, "since": image[machine]["at"]}}


def changed(image: Mapping[str, Any], provider: str) -> str:
    """A sentence if the image is not the one that was checked, or nothing."""
    if "changed" not in image:
        return ""
    since = day(image["changed"]["since"])
    name = provider.capitalize()
    return f"{name}'s image changed since the last check on {since}: run `trainhop doctor --{provider}`"


def summary(image: Mapping[str, Any], provider: str) -> str:
    """An account's checks in one line. Empty if it was never checked."""
    if change := changed(image, provider):
        return change
    check = newest(image)
    if check is None:
        return str(image.get("problem", ""))
    made = [probe for probe in check["probes"] if probe["status"] in (OK, FAILED)]
    broken = ", ".join(probe["title"] for probe in failures(check))
    good = sum(probe["status"] == OK for probe in made)
    return f"checked on {day(check['at'])}: {good} of {len(made)} probes ok" + (f"; failed: {broken}" if broken else "")


def day(at: float) -> str:
    """A date in the form that sentences use."""
    found = datetime.fromtimestamp(at, UTC)
    return f"{found.day} {found:%B %Y}"
