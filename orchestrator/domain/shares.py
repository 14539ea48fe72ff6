"""Links to a page of one job that need no log-in.

Times are seconds since the Unix epoch, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field

REVOKED = "This link was revoked."
EXPIRED = "This link has expired."


@dataclass(kw_only=True)
class Share:
    """A link that a member made to a page of a job. Only the hash of its secret is kept.

    `with_samples` says whether the page has the answers to the job's sample prompts. `expires_at` is None for a link
    that works until it is revoked.
    """

    id: str
    job_id: str
    member_id: str
    secret_hash: str = field(repr=False)
    with_samples: bool
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def ended(self, now: float) -> str:
        """Why the link does not work any more, as one sentence. Empty while it works."""
        if self.revoked_at is not None:
            return REVOKED
        return EXPIRED if self.expires_at is not None and self.expires_at <= now else ""
