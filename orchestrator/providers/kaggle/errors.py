"""What Kaggle's refusals mean for the scheduler, and what a person is told."""

from __future__ import annotations

from orchestrator.ports.providers import CredentialsRefused, LaunchRejected, ProviderError, QuotaExhausted
from orchestrator.providers.kaggle.http import KaggleError

PAUSE_S = 120.0


def signed_out(refusal: KaggleError) -> bool:
    """The credentials are not accepted."""
    return refusal.status == 401


def unverified(refusal: KaggleError) -> bool:
    """The account has no verified phone number, without which Kaggle gives neither internet nor GPU."""
    return refusal.status == 403 and "enableinternet" in refusal.words.lower()


def used_up(refusal: KaggleError) -> bool:
    """This week's GPU hours are spent; of storage Kaggle speaks as a quota, too, and no week gives more of it."""
    return "gpu quota" in refusal.words.lower()


def in_words(refusal: KaggleError) -> str:
    """A sentence with a remedy, around Kaggle's own words."""
    if signed_out(refusal):
        return f"Kaggle does not accept the stored token ({refusal.words}): make a new one at kaggle.com/settings/api"
    if unverified(refusal):
        return (
            "Kaggle gives this account neither internet nor GPU: verify its phone number at kaggle.com/settings "
            f"({refusal.words})"
        )
    if refusal.status == 429:
        return f"Kaggle asks for a pause ({refusal.words})"
    return str(refusal)


def as_launch_error(refusal: KaggleError, *, now: float, refresh_at: float | None) -> ProviderError:
    """What a refused launch is to the scheduler. `refresh_at` is when the week's quota starts anew."""
    text, said = in_words(refusal), refusal.words.lower()
    if signed_out(refusal) or unverified(refusal):
        return CredentialsRefused(text)
    if refusal.status == 429:
        return QuotaExhausted(text, until=now + (refusal.retry_after or PAUSE_S))
    if "session count" in said:
        return QuotaExhausted(f"all sessions of this Kaggle account are taken ({refusal.words})", until=now + PAUSE_S)
    if used_up(refusal):
        return QuotaExhausted(
            f"this week's GPU hours of this Kaggle account are used up ({refusal.words})", until=refresh_at
        )
    return LaunchRejected(text)
