"""A Google Drive to test against: API v2 on a loopback port, with real bytes, quotas, checksums, and faults on demand.

    with Drive(folder) as drive:                      # a thread of this process
        drive.rules.add(Rule("PUT /upload", status=503, done=True))
        Settings(drivers={"drive": {"endpoint": drive.url}}, ...)

    python -m tests.emulators.drive --port 8700 --data-dir /tmp/drive     # a process of its own

What is there: files insert, get, list, update, trash, untrash and delete; uploads as resumable sessions, in one part or
in two; downloads with ranges; generateIds; about; etags and `If-Match`; `/auth` and `/token` (code with PKCE, refresh).
A session URL works without a credential until `anonymous` is switched off. What is not there: permissions, shared
drives, revisions, changes, batches, API v3.
"""

from tests.emulators.drive.faults import Chaos, Rule, Rules
from tests.emulators.drive.server import Drive

__all__ = ["Chaos", "Drive", "Rule", "Rules"]
