"""What Colab's refusals mean for the scheduler, and what a person is told."""

from __future__ import annotations

from orchestrator.ports.providers import CredentialsRefused, ProviderError, ProviderUnavailable, QuotaExhausted
from orchestrator.providers.colab.calls import SIGN_IN, ColabSaid

FULL_S, NONE_FREE_S, HOUR_S = 1800.0, 600.0, 3600.0
SPENT = "this account has no Colab compute units left: free Colab is not used by a program, open a notebook (trainhop notebook JOB)"

_LATER = {
    "412": (FULL_S, "Colab gives this account no further machine now: too many run, or its usage limit is reached"),
    "503": (NONE_FREE_S, "Colab has no {accelerator} machine free"),
    "outcome 1": (HOUR_S, "this account's Colab quota does not cover a {accelerator} machine now"),
    "outcome 2": (
        6 * HOUR_S,
        "this account has used up its time at Colab; it says no date, and frees some in hours to days",
    ),
    "balance": (HOUR_S, SPENT),
}
_BY_A_PERSON = {
    "400": "Colab does not give this account a {accelerator} machine: set another accelerator, or get one by a plan",
    "outcome 5": "Colab has blocked this account for suspected abuse: its owner has to take that up with Google",
    "signin": f"Colab does not accept the stored sign-in any more; {SIGN_IN}",
    "401": f"Colab does not accept the stored sign-in; {SIGN_IN}",
    "403": "Colab refuses this account",
}


NOTHING_TAKEN = frozenset({"412", "400", "401", "403", "signin", "balance", "outcome 1", "outcome 2", "outcome 5"})
"""Refusals that come before a machine is taken."""


def as_error(said: ColabSaid, accelerator: str, now: float) -> ProviderError:
    """What a refusal is to the scheduler: a time to try again, something for the owner to do, or nothing known."""
    tail = f" ({said.words})" if said.words and said.kind != "balance" else ""
    if said.kind in _LATER:
        wait_s, words = _LATER[said.kind]
        return QuotaExhausted(words.format(accelerator=accelerator) + tail, until=now + wait_s)
    if said.kind in _BY_A_PERSON:
        return CredentialsRefused(_BY_A_PERSON[said.kind].format(accelerator=accelerator) + tail)
    if said.kind.startswith("outcome"):
        return QuotaExhausted(
            f"Colab gave no machine and no reason that is known here ({said.kind})", until=now + HOUR_S
        )
    if said.kind == "cell":
        return ProviderUnavailable(f"the machine did not start the worker{tail}")
    if said.kind == "gone":
        return ProviderUnavailable("Colab has taken the machine away")
    return ProviderUnavailable(f"Colab cannot be asked now ({said.kind}){tail}")
