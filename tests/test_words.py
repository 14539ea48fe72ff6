"""Identifiers keep the field's terms: names that only this project understood do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("orchestrator", "worker", "benchmarks")
REPLACED = {
    "Aside": "SingleFlight",
    "Caller": "CurrentUser",
    "Checked": "SupportsCheck",
    "Clerk": "WriteBatcher",
    "Ear": "LogReader",
    "EARLY": "OUT_OF_ORDER",
    "Fate": "ApplyResult",
    "Followed": "SupportsLogs",
    "Guesses": "RateLimit",
    "Heard": "Applied",
    "Here": "ServerDep",
    "KaggleSaid": "KaggleError",
    "LATER": "RETRY",
    "Letter": "MailboxRequest",
    "Obstacle": "Blocker",
    "Office": "NotificationContext",
    "Owned": "SupportsOwner",
    "Pace": "StepTime",
    "Postman": "MailboxPoller",
    "Pulse": "EventNotifier",
    "Tally": "Metrics",
    "Whose": "OwnerFilter",
    "as_waiting": "to_pending",
    "at_hand": "local",
    "cannot_call": "is_offline",
    "fall_back": "roll_back_head",
    "first_pace": "first_step_time",
    "give_back": "release",
    "hand_back": "release_lease",
    "kit": "offline_bundle",
    "lease_out": "create_lease",
    "look_around": "check_alerts",
    "one_way": "offline",
    "shut": "closed_reason",
    "survey": "list_capacity",
    "typical_pace": "typical_step_time",
}
OLD_LIMITS = re.compile(r"_?(MOST|LONGEST|LARGEST)_[A-Z_]+")


def test_no_replaced_name_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string} is {REPLACED.get(token.string, 'MAX_…')} now"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME and (token.string in REPLACED or OLD_LIMITS.fullmatch(token.string))
    ]
    assert not found
