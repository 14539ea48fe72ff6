"""Runs the bridge. Each call has its own process, HOME and time limit, and leaves no files behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.ports.providers import Account, CredentialsRefused, ProviderUnavailable, Vault, VaultError

BRIDGE = Path(__file__).with_name("bridge.py")
CLIENT = "google-colab-cli"
SET_UP = (
    "Colab's client needs its own environment. Create one with Python 3.12 or newer, run `pip "
    f"install '{CLIENT}>=0.7.5,<0.8'` "
    "in it, and start the server with TRAINHOP_COLAB_PYTHON set to its python"
)
SIGN_IN = (
    "The credentials of a Colab account are the authorized-user JSON of Colab's client. Run "
    "`colab usage` once and pass ~/.config/colab-cli/token.json"
)
REQUEST_S, RETRIES, BACKOFF_S = 60.0, 1, 5.0
READY_S = 120.0
"""How long a newly assigned machine may take to respond."""
LIMITS_S = {"usage": 90.0, "look": 120.0, "read": 180.0, "release": 180.0, "launch": 1200.0}
"""Wall-clock limits of a call. A launch assigns a machine and uploads files to it."""


class ColabError(ProviderUnavailable):
    """Colab refused: one of `bridge`'s kinds, and Colab's own message."""

    def __init__(self, kind: str, words: str) -> None:
        if kind == "fault":
            super().__init__(f"could not reach Colab: {words}")
        else:
            super().__init__(
                f"Colab refused ({f'HTTP {kind}' if kind.isdigit() else kind}{f': {words}' if words else ''})"
            )
        self.kind, self.words = kind, words


class Bridge:
    """Calls for accounts. `python` can import Colab's client. `endpoint` (loopback) replaces Colab's own host."""

    def __init__(self, python: str | None, vault: Vault, folder: Path, endpoint: str | None) -> None:
        self._python, self._vault, self._endpoint = python, vault, endpoint
        self._homes, self.limits_s, self.ready_s = folder / "homes", dict(LIMITS_S), READY_S
        shutil.rmtree(
            self._homes, ignore_errors=True
        )  # from a server that was killed: its calls have ended or will end by themselves

        self._homes.mkdir(mode=0o700, parents=True)

    def ask(self, account: Account, ask: str, **more: Any) -> dict[str, Any]:
        """The reply to one request. Raises `ColabError`, `ProviderUnavailable` or `CredentialsRefused`.

        The client writes tokens into its HOME, also into a log if that is enabled. HOME is removed after the call.
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
        raise ColabError(str(done["refused"]), str(done["words"]))

    def _run(self, python: str, home: str, asked: str, limit_s: float) -> dict[str, Any]:
        environment = {
            "HOME": home,
            "PATH": os.defpath,
            "COLAB_CLI_REQUEST_TIMEOUT": str(REQUEST_S),
            "COLAB_CLI_ASSIGN_RETRIES": str(RETRIES),
            "COLAB_CLI_RETRY_BACKOFF": str(0 if self._endpoint else BACKOFF_S),
            # How long a kernel may take to start. After that the client uses the connection all the same, and fails.
            "REQUEST_TIMEOUT": f"{REQUEST_S:.0f}",
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
            raise ProviderUnavailable(f"Colab's client did not answer within {limit_s:.0f} s") from None
        except (OSError, ValueError) as error:
            raise ProviderUnavailable(f"{python} cannot be used ({type(error).__name__}): {SET_UP}") from None

    def _silent(self, said: str) -> dict[str, Any]:
        """Raise the error for a process that ended without a reply.

        The last line of its output is only shown if it cannot contain a secret.
        """
        if "ModuleNotFoundError" in said or "ImportError" in said:
            last = said.strip().splitlines()[-1]
            raise ProviderUnavailable(f"{self._python} cannot run Colab's client ({last[:200]}): {SET_UP}")
        raise ProviderUnavailable("Colab's client ended without an answer")

    def sign_in(self, account: Account) -> str:
        """The values that identify this sign-in. Raises `CredentialsRefused`."""
        return hashlib.sha256(self._credential(account)["refresh_token"].encode()).hexdigest()

    def _credential(self, account: Account) -> dict[str, str]:
        """The bridge's credential. The address for token requests is never taken from the file."""
        try:
            said = json.loads(self._vault.open(account.credentials))
            return {key: str(said[key]) for key in ("client_id", "client_secret", "refresh_token")}
        except VaultError as error:
            raise CredentialsRefused(str(error)) from error
        except (ValueError, KeyError, TypeError):
            raise CredentialsRefused(SIGN_IN) from None
