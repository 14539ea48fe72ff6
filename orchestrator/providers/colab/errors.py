"""Translates Colab's refusals for the scheduler and for people."""

from __future__ import annotations

from orchestrator.ports.providers import CredentialsRefused, ProviderError, ProviderUnavailable, QuotaExhausted
from orchestrator.providers.colab.calls import SIGN_IN, ColabError

FULL_S, NONE_FREE_S, HOUR_S = 1800.0, 600.0, 3600.0
SPENT = (
    "this account has no Colab compute units left. Programs cannot use free Colab. Open a "
    "notebook instead (trainhop notebook JOB)"
)

_LATER = {
    "412": (
        FULL_S,
        "Colab gives this account no more machines now: too many are running, or its usage limit is reached",
    ),
    "503": (NONE_FREE_S, "Colab has no {accelerator} machine free"),
    "outcome 1": (HOUR_S, "this account's Colab quota does not cover a {accelerator} machine now"),
    "outcome 2": (
        6 * HOUR_S,
        "this account has used its time at Colab. It is available again in hours to days",
    ),
    "balance": (HOUR_S, SPENT),
}
_BY_A_PERSON = {
    "400": "Colab does not give this account a {accelerator} machine. Set another accelerator, or upgrade the plan",
    "outcome 5": "Colab has blocked this account for suspected abuse. Its owner must contact Google",
    "signin": f"Colab no longer accepts the stored sign-in. {SIGN_IN}",
    "401": f"Colab does not accept the stored sign-in. {SIGN_IN}",
    "403": "Colab refuses this account",
}


NOTHING_TAKEN = frozenset({"412", "400", "401", "403", "signin", "balance", "outcome 1", "outcome 2", "outcome 5"})
"""Refusals before a machine is assigned."""


def as_error(said: ColabError, accelerator: str, now: float) -> ProviderError:
    """The scheduler's error for a refusal: try again later, the owner must act, or the outcome is unknown."""
    tail = f" ({said.words})" if said.words and said.kind != "balance" else ""
    if said.kind in _LATER:
        wait_s, words = _LATER[said.kind]
        return QuotaExhausted(words.format(accelerator=accelerator) + tail, until=now + wait_s)
    if said.kind in _BY_A_PERSON:
        return CredentialsRefused(_BY_A_PERSON[said.kind].format(accelerator=accelerator) + tail)
    if said.kind.startswith("outcome"):
        return QuotaExhausted(f"Colab gave no machine, for an unknown reason ({said.kind})", until=now + HOUR_S)
    return ProviderUnavailable(_unknown(said, tail))


def _unknown(said: ColabError, tail: str) -> str:
    if said.kind == "cell":
        return f"the machine did not start the worker{tail}"
    if said.kind == "gone":
        return "Colab has taken the machine away"
    return f"Colab could not answer (HTTP {said.kind}){tail}" if said.kind.isdigit() else str(said)
