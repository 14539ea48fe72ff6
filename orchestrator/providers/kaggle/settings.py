"""Kaggle's settings of the server and of an account, and their texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.ports.providers import AccountSettings, DriverSettings, Loopback, ProviderTexts


class KaggleSettings(DriverSettings):
    """The server's settings."""

    endpoint: Annotated[Loopback | None, Field(description="The address of a Kaggle emulator on this computer.")] = None


class KaggleAccountSettings(AccountSettings):
    """An account's settings. `slots` is the number of concurrent sessions: at most 2 on GPUs, 5 without."""

    username: Annotated[str, Field(coerce_numbers_to_str=True, description="The owner's username at Kaggle.")] = ""
    accelerator: Annotated[str, Field(description="`none` for machines without a GPU, which need no quota.")] = "T4"
    slots: Annotated[int, Field(ge=0, le=1000, description="Concurrent sessions: at most 2, or 5 without a GPU.")] = 2
    packages: Annotated[
        Literal["staged", "each"],
        Field(description="`staged`: a CPU kernel prepares the packages once. `each`: every session installs them."),
    ] = "staged"


TEXTS = ProviderTexts(
    title="Kaggle",
    machines="Kaggle's free notebook machines: two T4 GPUs for up to 12 hours, within a weekly quota of hours.",
    credentials="The API token of the account's owner. Create one at kaggle.com/settings/api.",
    connect="trainhop accounts add kaggle --username NAME --token-file FILE",
    terms="An account belongs to one person and runs only its owner's jobs. "
    "Machines with a GPU need a verified phone number.",
    page="https://www.kaggle.com/settings/api",
    steps=(
        "Sign in at Kaggle and open Settings, then API.",
        "Choose “Generate New Token” and copy it. It begins with KGAT_.",
        "On the page Settings, verify your phone number. Without it there is no GPU and no internet.",
    ),
)
