"""Messages as signed lines of a session's output, so that no other program can write one.

Standard library only: the script that starts a worker uses this before anything is installed.
"""

from __future__ import annotations

import hashlib
import hmac

LINE_MARK = "@trainhop"


def signed(token: str, message: str) -> str:
    """A message as one line of a session's output: mark, HMAC-SHA256 under the lease's token, JSON."""
    return f"{LINE_MARK} {hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()} {message}"
