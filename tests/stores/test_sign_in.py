"""Signing in at Google through its own library, against an emulator: the answers of people, and of Google."""

from __future__ import annotations

import json
import os

import httpx
import pytest

from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.sign_in import GoogleSignIn
from orchestrator.ports.stores import NOWHERE, InvalidError, StoreUnavailable
from tests.emulators.drive import Drive


def begun(drive: Drive) -> tuple[GoogleSignIn, str]:
    """A sign-in, and the address that the browser is sent to."""
    sign_in = GoogleSignIn(json.dumps(drive.tokens.client_secrets("https://elsewhere.example")), drive.url)
    address, state = sign_in.begin(NOWHERE)
    assert address.startswith(f"{drive.url}/auth?"), "the file's own addresses are not used"
    sent = httpx.get(address, trust_env=False).headers["location"]
    assert f"state={state}" in sent
    return sign_in, sent


@pytest.mark.parametrize("pasted", ["whole", "query", "with blanks"])
def test_a_pasted_address_becomes_credentials(drive: Drive, pasted: str) -> None:
    sign_in, sent = begun(drive)
    answer = {"whole": sent, "query": sent.partition("?")[2], "with blanks": f"\t{sent} \n"}[pasted]
    login = read_login(sign_in.finish(answer), drive.url)
    assert login.refresh_token in drive.tokens.refresh_tokens
    assert login.client_secret == drive.tokens.client_secret
    assert "OAUTHLIB_INSECURE_TRANSPORT" not in os.environ


def test_what_google_or_the_person_refuses_is_a_sentence(drive: Drive) -> None:
    """Guard: `state` is compared by the library; without it a foreign code would be exchanged."""
    sign_in, sent = begun(drive)
    for answer, words in (
        (sent.replace("state=", "state=x"), "another sign-in"),
        ("", "another sign-in"),
        (sent.replace("code=", "kode="), "no code"),
        (sent.replace("code=", "code=x"), "Google answered invalid_grant"),
        (sent.replace("code=", "error=access_denied&kode="), "Google answered access_denied"),
    ):
        with pytest.raises(InvalidError, match=words) as refused:
            sign_in.finish(answer)
        assert drive.tokens.client_secret not in str(refused.value)
    drive.tokens.client_secret = "another"
    with pytest.raises(InvalidError, match="Google answered invalid_client"):
        begun_with_old_secret(drive)


def begun_with_old_secret(drive: Drive) -> None:
    client = {"installed": {"client_id": drive.tokens.client_id, "client_secret": "old"}}
    sign_in = GoogleSignIn(json.dumps(client), drive.url)
    address, _ = sign_in.begin(NOWHERE)
    sign_in.finish(httpx.get(address, trust_env=False).headers["location"])


def test_a_google_that_is_away_is_no_refusal(drive: Drive) -> None:
    sign_in, sent = begun(drive)
    drive.close()
    with pytest.raises(StoreUnavailable, match="could not be reached"):
        sign_in.finish(sent)


def test_without_an_emulator_only_google_is_asked() -> None:
    """Guard: with the addresses of the client's file, the secret would go wherever that file says."""
    client = {
        "client_id": "i",
        "client_secret": "s",
        "auth_uri": "http://evil.example",
        "token_uri": "http://evil.example",
    }
    address, _ = GoogleSignIn(json.dumps({"installed": client}), None).begin(NOWHERE)
    assert address.startswith("https://accounts.google.com/o/oauth2/v2/auth?")
    for asked in ("drive.file", "access_type=offline", "prompt=consent", "code_challenge_method=S256"):
        assert asked in address
