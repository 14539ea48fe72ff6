"""What a notebook writes and reads in its owner's Drive when Google changes its mind about the sign-in."""

from __future__ import annotations

import google.oauth2.credentials
import pytest

from tests.emulators.drive import Drive, Rule
from worker.notebook.mailbox_connection import MailboxConnection
from worker.shared.notebook_messages import MailboxReply, MailboxRequest


@pytest.fixture
def signed_in(drive: Drive) -> google.oauth2.credentials.Credentials:
    user = drive.authorized_user()
    return google.oauth2.credentials.Credentials(
        None,
        refresh_token=user["refresh_token"],
        client_id=user["client_id"],
        client_secret=user["client_secret"],
        token_uri=user["token_uri"],
    )


@pytest.fixture
def writing(drive: Drive, signed_in: google.oauth2.credentials.Credentials) -> MailboxConnection:
    letters = {
        name: drive.contents.insert({"title": f"{name}.json"}, MailboxReply(nonce="1").model_dump_json().encode())
        for name in ("up", "down")
    }
    return MailboxConnection(
        {name: f"{drive.url}/drive/v2/files/{f.id}?alt=media" for name, f in letters.items()}, signed_in
    )


def test_a_token_that_google_refuses_is_renewed_before_its_time_is_over(
    drive: Drive, writing: MailboxConnection, signed_in: google.oauth2.credentials.Credentials
) -> None:
    """Guard: without the look at 401 in `_ask` the notebook was deaf and mute until the hour was over."""
    assert writing._read() is not None
    drive.tokens.expire()
    assert signed_in.valid
    assert writing._read() is not None
    drive.tokens.expire()
    assert writing._write(MailboxRequest(nonce="1"))
    assert drive.tokens.refreshed == 3


def test_a_sign_in_that_stays_refused_is_renewed_once_per_attempt(drive: Drive, writing: MailboxConnection) -> None:
    """Guard: with no end to it, one look into the Drive asked for tokens for ever."""
    assert writing._read() is not None
    rule = drive.rules.add(Rule("GET /drive", status=401, reason="authError", times=5))
    assert writing._read() is None
    assert (rule.hits, drive.tokens.refreshed) == (2, 2)
    drive.tokens.revoke()
    assert writing._read() is None, "nor does a refused renewal end the notebook"
