"""Colab's settings of the server and of an account, and their texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.ports.providers import AccountSettings, DriverSettings, Loopback, ProviderTexts

MEMORY = {
    "T4": 15_800_000_000,
    "L4": 23_600_000_000,
    "A100": 42_000_000_000,
    "H100": 84_000_000_000,
    "G4": 100_000_000_000,
    "none": 12 << 30,
}
"""Bytes that the scheduler assumes for each kind of machine. The worker reports the real memory."""
SESSION_S = 11 * 3600.0
"""A runtime lasts at most 12 hours unless the plan allows more. Colab guarantees no duration."""


class ColabSettings(DriverSettings):
    """The server's settings."""

    endpoint: Annotated[Loopback | None, Field(description="The address of a Colab emulator on this computer.")] = None
    python: Annotated[
        str | None,
        Field(description="A Python interpreter (3.12 or newer) with `google-colab-cli`, for machines of paid Colab."),
    ] = None


class ColabAccountSettings(AccountSettings):
    """An account's settings."""

    mode: Annotated[
        Literal["cli"] | None,
        Field(description="`cli`: machines of paid Colab are started for you. Without it you open notebooks yourself."),
    ] = None
    accelerator: Annotated[str, Field(description="`T4`, `L4`, `G4`, `A100`, `H100`, or `none`.")] = "T4"
    session_s: Annotated[
        float, Field(gt=0, le=30 * 86_400.0, allow_inf_nan=False, description="Longest session, in seconds.")
    ] = SESSION_S


TEXTS = ProviderTexts(
    title="Colab",
    machines="Notebooks that people open and run themselves, and machines of paid Colab.",
    credentials="For paid Colab, the token.json of Colab's own client. Notebooks need no account.",
    connect="trainhop accounts add colab --set mode=cli --token-file ~/.config/colab-cli/token.json",
    terms="Free Colab forbids remote control: a person opens and runs the notebook. "
    "Paid machines use compute units until they are released.",
    steps=(
        "Install Colab's own client and sign in with it: it writes token.json.",
        "Paste the content of ~/.config/colab-cli/token.json, and set mode to cli.",
    ),
)
