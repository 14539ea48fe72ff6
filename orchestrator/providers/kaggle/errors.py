"""Translates Kaggle's refusals for the scheduler and for people."""

from __future__ import annotations

from orchestrator.ports.providers import CredentialsRefused, LaunchRejected, ProviderError, QuotaExhausted
from orchestrator.providers.kaggle.http import KaggleError

PAUSE_S = 120.0


def signed_out(refusal: KaggleError) -> bool:
    """Whether the credentials are not accepted."""
    return refusal.status == 401


def unverified(refusal: KaggleError) -> bool:
    """Whether the phone number is not verified. Kaggle then provides neither internet nor GPU."""
    return refusal.status == 403 and "enableinternet" in refusal.words.lower()


def used_up(refusal: KaggleError) -> bool:
    """Whether this week's GPU hours are used up. A storage quota is excluded, because a new week does not change it."""
    return "gpu quota" in refusal.words.lower()


def in_words(refusal: KaggleError) -> str:
    """A sentence with a remedy and Kaggle's own message."""
    if signed_out(refusal):
        return f"Kaggle does not accept this token ({refusal.words}). Create a new one at kaggle.com/settings/api"
    if unverified(refusal):
        return (
            "Kaggle gives this account no internet and no GPU. Verify its phone number at kaggle.com/settings "
            f"({refusal.words})"
        )
    if refusal.status == 429:
        return f"Kaggle's rate limit is reached ({refusal.words})"
    return str(refusal)


def as_launch_error(refusal: KaggleError, *, now: float, refresh_at: float | None) -> ProviderError:
    """The scheduler's error for a refused launch. `refresh_at` is the time at which the week's quota is reset."""
    text, said = in_words(refusal), refusal.words.lower()
    if signed_out(refusal) or unverified(refusal):
        return CredentialsRefused(text)
    if refusal.status == 429:
        return QuotaExhausted(text, until=now + (refusal.retry_after or PAUSE_S))
    if "session count" in said:
        return QuotaExhausted(f"all sessions of this Kaggle account are in use ({refusal.words})", until=now + PAUSE_S)
    if used_up(refusal):
        return QuotaExhausted(
            f"this week's GPU hours of this Kaggle account are used up ({refusal.words})", until=refresh_at
        )
    return LaunchRejected(text)
