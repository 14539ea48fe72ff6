"""Google Drive's server settings, its notebook editor, and its texts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.ports.stores import Loopback, StoreSettings, StoreTexts

NOTEBOOK = "application/vnd.google.colaboratory"
NOTEBOOK_EDITOR, EDITOR_ADDRESS = "Colab", "https://colab.research.google.com/drive/"
"""The editor that Drive opens files of the type `NOTEBOOK` in, and its address."""


class DriveSettings(StoreSettings):
    """The server's settings."""

    endpoint: Annotated[
        Loopback | None, Field(description="The address of a Google Drive emulator on this computer.")
    ] = None


TEXTS = StoreTexts(
    title="Google Drive",
    credentials="Your own OAuth client for the sign-in (--client-secrets FILE), or an authorized_user file of "
    "google-auth (--credentials FILE).",
    place="Your Google Drive, in a folder that only Trainhop sees. Machines upload there without your sign-in.",
    page="https://console.cloud.google.com/apis/credentials",
    steps=(
        "In a Google Cloud project of your own, enable the Google Drive API.",
        "Create an OAuth client of the type Desktop app, and download its JSON file.",
        "Publish the consent screen. While it is in testing, the sign-in ends after 7 days.",
    ),
)
