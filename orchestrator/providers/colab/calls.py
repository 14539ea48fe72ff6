"""Running the bridge: one process, one fresh HOME and one time limit per call, and nothing of it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.domain.model import Account
from orchestrator.ports.providers import CredentialsRefused, ProviderUnavailable, Vault, VaultError

BRIDGE = Path(__file__).with_name("bridge.py")
CLIENT = "google-colab-cli"
SET_UP = (
    f"Colab's client lives in an environment of its own: make one with Python 3.12 or newer, `pip install '{CLIENT}>=0.7.5,<0.8'` "
    "there, and start the server with TRAINHOP_COLAB_PYTHON naming its python"
)
SIGN_IN = (
    "the credentials of a Colab account are the authorized-user JSON that signing in with Colab's client leaves: run "
    "`colab usage` there once and give ~/.config/colab-cli/token.json"
)
REQUEST_S, RETRIES, BACKOFF_S = 60.0, 1, 5.0
READY_S = 120.0
"""What a machine that was just taken may take to answer."""
LIMITS_S = {"usage": 90.0, "look": 120.0, "read": 180.0, "release": 180.0, "launch": 1200.0}
"""Wall-clock limits of a call; a launch takes a machine and brings files there."""


class ColabSaid(ProviderUnavailable):
    """Colab refused, in one of `bridge`'s kinds and its own words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"Colab refused ({kind}{f': {words}' if words else ''})")
        self.kind, self.words = kind, words


class Bridge:
    """Calls on behalf of accounts. `python` can import Colab's client; `endpoint` (loopback) stands in for Colab's own host."""

    def __init__(self, python: str | None, vault: Vault, folder: Path, endpoint: str | None) -> None:
        self._python, self._vault, self._endpoint = python, vault, endpoint
        self._homes, self.limits_s, self.ready_s = folder / "homes", dict(LIMITS_S), READY_S
        shutil.rmtree(
            self._homes, ignore_errors=True
        )  # of a server that was killed; its calls are over or end by themselves
        self._homes.mkdir(mode=0o700, parents=True)

    def ask(self, account: Account, ask: str, **more: Any) -> dict[str, Any]:
        """The answer; raises `ColabSaid`, and `ProviderUnavailable` or `CredentialsRefused` where nobody could be asked.

        The client writes tokens into its HOME, and with its log switched on into that; both go with the folder.
        """
        if not self._python:
            raise ProviderUnavailable(SET_UP)
        common = {"credential": self._credential(account), "endpoint": self._endpoint, "ready_s": self.ready_s}
        asked = {"ask": ask, **common, **more}
        home = tempfile.mkdtemp(dir=self._homes)
        try:
            done = self._run(self._python, home, json.dumps(asked), self.limits_s[ask])
        finally:
            shutil.rmtree(home, ignore_errors=True)
        if "ok" in done:
            return done["ok"]
        raise ColabSaid(str(done["refused"]), str(done["words"]))

    def _run(self, python: str, home: str, asked: str, limit_s: float) -> dict[str, Any]:
        environment = {
            "HOME": home,
            "PATH": os.defpath,
            "COLAB_CLI_REQUEST_TIMEOUT": str(REQUEST_S),
            "COLAB_CLI_ASSIGN_RETRIES": str(RETRIES),
            "COLAB_CLI_RETRY_BACKOFF": str(0 if self._endpoint else BACKOFF_S),
        }
        try:
            done = subprocess.run(
                [python, "-I", str(BRIDGE)],
                input=asked,
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
            return json.loads(done.stdout) if done.stdout else self._silent(done.stderr)
        except subprocess.TimeoutExpired:
            raise ProviderUnavailable(f"Colab's client gave no answer in {limit_s:.0f} s") from None
        except (OSError, ValueError) as error:
            raise ProviderUnavailable(f"{python} cannot be used ({type(error).__name__}): {SET_UP}") from None

    def _silent(self, said: str) -> dict[str, Any]:
        """It did not get as far as asking, or was ended; its last word is shown only where it can hold no secret."""
        if "ModuleNotFoundError" in said or "ImportError" in said:
            last = said.strip().splitlines()[-1]
            raise ProviderUnavailable(f"{self._python} cannot run Colab's client ({last[:200]}): {SET_UP}")
        raise ProviderUnavailable("Colab's client ended without an answer")

    def sign_in(self, account: Account) -> str:
        """What tells this sign-in from others, and nothing else; raises `CredentialsRefused`."""
        return hashlib.sha256(self._credential(account)["refresh_token"].encode()).hexdigest()

    def _credential(self, account: Account) -> dict[str, str]:
        """What the bridge signs in with; where tokens are asked for is not the file's to say."""
        try:
            said = json.loads(self._vault.open(account.credentials))
            return {key: str(said[key]) for key in ("client_id", "client_secret", "refresh_token")}
        except VaultError as error:
            raise CredentialsRefused(str(error)) from error
        except (ValueError, KeyError, TypeError):
            raise CredentialsRefused(SIGN_IN) from None
