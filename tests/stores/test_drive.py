"""The Drive store against the emulated service: what goes wrong in the world, and what must come of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import threading
from pathlib import Path

import pytest
import stamina

from orchestrator.adapters.stores.google_drive.client import Retries
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.stores import ObjectMissing, StoreError, StoreFull, StoreUnavailable
from orchestrator.testing.environments import MemoryIds
from tests.emulators.drive import Chaos, Drive, Rule
from worker.agent import transfers
from worker.agent.uplink import ServerAway
from worker.shared import resumable_upload
from worker.shared.messages import Grant, GrantKind
from worker.shared.resumable_upload import Patience

KEY = "jobs/job-1/f1/0123456789abcdef.safetensors"
AT_ONCE = Patience(sleep=lambda _: None)
FEW = Retries(attempts=3, first_s=0.0, longest_s=0.0, jitter_s=0.0)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(secrets.token_bytes(700_000))
    return path


def content(drive: Drive) -> list[bytes]:
    return [drive.bytes_of(f) for f in drive.files()]


def upload(store, source: Path, key: str = KEY) -> None:
    transfers.upload(store.grant_upload(key, GrantKind.CHECKPOINT, shares_disk=False), source, AT_ONCE)


# --- creating once ---


@pytest.mark.parametrize("request_", ["POST /drive/v2/files", "POST /upload", "PUT /upload", "GET /drive"])
@pytest.mark.parametrize("done", [False, True])
def test_an_error_that_hid_a_success_makes_no_second_file(drive, store, source, request_, done):
    """Guard: without an id of our own in the insert, two folders or two files lay there after the hidden success."""
    drive.rules.add(Rule(request_, status=503, done=done, times=2))
    store.put(KEY, source)
    assert content(drive) == [source.read_bytes()]
    folders = sorted(f.title for f in drive.contents.files.values() if f.is_folder)
    assert folders == ["My Drive", "Trainhop 1", "job-1"]


def test_folders_are_made_once_by_many_threads(drive, store, source):
    threads = [threading.Thread(target=store.put, args=(f"jobs/job-1/f1/{n}", source)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(f.title for f in drive.contents.files.values() if f.is_folder) == ["My Drive", "Trainhop 1", "job-1"]
    assert len(drive.files()) == 8


def test_names_mean_nothing(drive, store, source):
    """A twin of the same name, a rename and a move by hand: the id still leads to the bytes."""
    store.put(KEY, source)
    mine = drive.files()[0]
    drive.contents.insert({"title": mine.title, "parents": [{"id": mine.parents[0]}]}, b"a twin", planted=True)
    drive.contents.update(mine.id, {"title": "renamed by hand", "parents": [{"id": "root"}]})
    assert b"".join(store.read(KEY)) == source.read_bytes()


def test_two_servers_on_one_drive_do_not_meet(drive, make_store, source, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"other")
    one, two = make_store("Trainhop 1"), make_store("Trainhop 2")
    one.put(KEY, source)
    two.put(KEY, other)
    one.delete(KEY)
    assert b"".join(two.read(KEY)) == b"other"
    with pytest.raises(ObjectMissing):
        one.stat(KEY)


# --- what arrives damaged ---


def test_a_truncated_upload_is_written_again(drive, store, source):
    """Guard: without the comparison in `put` 200 bytes were missing."""
    drive.rules.add(Rule("PUT /upload", truncate=200))
    assert store.put(KEY, source).size == 700_000
    assert content(drive) == [source.read_bytes()]


def test_what_always_arrives_damaged_is_said_so(drive, store, source):
    drive.rules.add(Rule("PUT /upload", flip=5, times=None))
    with pytest.raises(StoreUnavailable, match="arrived damaged"):
        store.put(KEY, source)


def test_a_damaged_download_is_noticed(drive, store, source):
    """Guard: without the sum in `read` the flipped bit went through."""
    store.put(KEY, source)
    drive.rules.add(Rule("alt=media", flip=300_000))
    with pytest.raises(StoreUnavailable, match="was damaged"):
        list(store.read(KEY))
    assert b"".join(store.read(KEY)) == source.read_bytes()


def test_a_cut_download_is_repeated(drive, store, source):
    store.put(KEY, source)
    drive.rules.add(Rule("alt=media", cut=1000, times=3))
    assert b"".join(store.read(KEY)) == source.read_bytes()


def test_the_checksum_is_drives_own_and_computed_where_it_gives_none(drive, store, source):
    upload(store, source)
    drive.requests.clear()
    assert store.stat(KEY).sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert not any("alt=media" in r for r in drive.requests)
    drive.files()[0].hashes["sha256"] = None
    assert store.stat(KEY).sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert any("alt=media" in r for r in drive.requests)


# --- uploads through a session ---


@pytest.mark.parametrize(
    "rules",
    [
        [Rule("PUT /upload", cut=300_000), Rule("PUT /upload", cut=100)],
        [Rule("PUT /upload", status=503), Rule("PUT /upload", status=500, done=True)],
        [Rule("PUT /upload", status=403, reason="userRateLimitExceeded"), Rule("PUT /upload", status=429)],
        [Rule("PUT /upload", html=True)],
        [Rule("PUT /upload", cut=700_000, done=True)],
    ],
    ids=["cut", "5xx", "slow-down", "html", "answer-lost"],
)
def test_an_upload_survives(drive, store, source, rules):
    drive.rules.add(*rules)
    upload(store, source)
    assert content(drive) == [source.read_bytes()]
    assert store.stat(KEY).size == 700_000


def test_a_broken_upload_goes_on_where_it_stood(drive, store, source):
    """Guard: with `ask` never set, everything was sent again from the first byte."""
    grant = store.grant_upload(KEY, GrantKind.CHECKPOINT, shares_disk=False)
    drive.rules.add(Rule("PUT /upload", after=1, cut=0))
    resumable_upload.send(grant.url or "", source, patience=AT_ONCE, chunk_bytes=resumable_upload.GRANULE_BYTES)
    sent = [span.removeprefix("bytes ") for span in drive.ranges if not span.startswith("bytes *")]
    assert sent == ["0-262143/700000", "262144-524287/700000", "262144-524287/700000", "524288-699999/700000"]
    assert content(drive) == [source.read_bytes()]


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_session_that_is_gone_is_followed_by_another(drive, store, source, status):
    """Guard: without `SessionGone` in `put` the first session's end was the end of the writing."""
    rule = drive.rules.add(Rule("PUT /upload", status=status, reason="notFound", times=2))
    assert store.put(KEY, source).size == 700_000
    assert rule.hits == 2
    assert content(drive) == [source.read_bytes()]


def test_sessions_that_are_always_gone_are_said_to_be(drive, store, source):
    rule = drive.rules.add(Rule("PUT /upload", status=404, reason="notFound", times=None))
    with pytest.raises(StoreUnavailable, match="session has expired: HTTP 404"):
        store.put(KEY, source)
    assert rule.hits == 3


def test_a_machine_gets_a_session_and_nothing_else(drive, store, source):
    grant = store.grant_upload(KEY, GrantKind.CHECKPOINT, shares_disk=False)
    assert grant.resumable
    assert transfers.probe(grant)
    shown = grant.model_dump_json()
    login = drive.authorized_user()
    assert not any(login[name] in shown for name in ("client_secret", "refresh_token", "client_id"))
    assert grant.headers == {}
    transfers.upload(grant, source)
    transfers.upload(grant, source)
    assert content(drive) == [source.read_bytes()]


def test_where_sessions_need_a_credential_the_probe_says_so(drive, store, source):
    grant = store.grant_upload(KEY, GrantKind.CHECKPOINT, shares_disk=False)
    drive.anonymous = False
    assert not transfers.probe(grant)
    with pytest.raises(transfers.UnusableGrant, match="401"):
        transfers.upload(grant, source)
    assert store.put(KEY, source).size == 700_000, "the server itself has the credential"


def test_a_damaged_upload_makes_the_grant_unusable(drive, store, source):
    drive.rules.add(Rule("PUT /upload", flip=100))
    with pytest.raises(transfers.UnusableGrant, match="the stored bytes differ"):
        upload(store, source)
    drive.rules.add(Rule("PUT /upload", truncate=1))
    with pytest.raises(transfers.UnusableGrant, match="699999 of 700000"):
        upload(store, source, "jobs/job-1/f1/b")


def test_downloads_go_through_this_server(store):
    grant = store.grant_download(KEY, GrantKind.CHECKPOINT, sha256="0" * 64, size=3, shares_disk=True)
    assert grant.url == f"http://127.0.0.1/blobs/{KEY}?store=drive"
    assert set(grant.headers) == {"X-Grant"}


# --- what the machine of the Drive's owner reads by itself ---


@pytest.fixture
def readable(store, source):
    store.put(KEY, source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    headers = store._client.bearer()
    return Grant(
        key=KEY, kind=GrantKind.CHECKPOINT, url=store.address(KEY), headers=headers, sha256=sha256, size=700_000
    )


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "userRateLimitExceeded"), (403, "rateLimitExceeded"), (401, "authError"), (503, "x")]
)
def test_a_download_that_has_to_wait_is_not_called_damage(drive, readable, source, tmp_path, status, reason):
    """Guard: without a look at the reason the head was taken for damaged and the job went back to an older one; with
    the library's own words the address, which may be a permission, was in the message.
    """
    drive.rules.add(Rule("alt=media", status=status, reason=reason))
    with pytest.raises(ServerAway, match=f"HTTP {status}") as away:
        transfers.download(readable, tmp_path / "got")
    assert "http:" not in str(away.value)
    assert transfers.download(readable, tmp_path / "got").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("status", "reason"), [(403, "forbidden"), (403, ""), (404, "notFound"), (410, "x")])
def test_a_download_that_is_refused_for_good_is_damage(drive, readable, tmp_path, status, reason):
    drive.rules.add(Rule("alt=media", status=status, reason=reason))
    with pytest.raises(transfers.DamagedError, match=f"HTTP {status}"):
        transfers.download(readable, tmp_path / "got")


def test_an_address_that_does_not_answer_is_not_told(drive, readable, tmp_path):
    drive.close()
    with pytest.raises(ServerAway, match=r"download of .*: ConnectError$"):
        transfers.download(readable, tmp_path / "got")


# --- limits, space, sign-in ---


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "userRateLimitExceeded"), (403, "rateLimitExceeded"), (429, "x"), (408, "x"), (500, "x"), (503, "x")],
)
def test_what_passes_is_tried_again_but_not_for_ever(drive, make_store, source, status, reason):
    store = make_store(retries=FEW)
    store.put(KEY, source)
    rule = drive.rules.add(Rule("GET /drive", status=status, reason=reason, times=2))
    store.stat(KEY)
    assert rule.hits == 2
    drive.rules.add(Rule("GET /drive", status=status, reason=reason, times=None))
    drive.requests.clear()
    with pytest.raises(StoreUnavailable, match=str(status)):
        store.stat(KEY)
    assert len(drive.requests) == 3


def test_while_drive_is_away_calls_fail_at_once(drive, make_store, source):
    """Guard: without `_silent_until` every caller waited for all attempts."""
    store = make_store(retries=FEW)
    store.put(KEY, source)
    rule = drive.rules.add(Rule("GET /drive", status=503, times=5))
    for hits in (3, 4, 5):
        with pytest.raises(StoreUnavailable):
            store.stat(KEY)
        assert rule.hits == hits
    assert store.stat(KEY).size == 700_000


def test_calls_are_tried_once_for_as_long_as_drive_has_asked_for(drive, make_store, source):
    """Guard: with `silent_s` alone, calls knocked several times long before the `Retry-After` was over."""
    store = make_store(retries=dataclasses.replace(FEW, silent_s=0.0))
    store.put(KEY, source)
    rule = drive.rules.add(Rule("GET /drive", status=429, retry_after=20, times=None))
    with stamina.set_testing(True, attempts=3, cap=True):  # no pauses
        for hits in (3, 4, 5):
            with pytest.raises(StoreUnavailable):
                store.stat(KEY)
            assert rule.hits == hits


@pytest.mark.parametrize("reason", ["dailyLimitExceeded", "userAccess"])
def test_a_limit_of_the_day_is_not_knocked_at_again(drive, store, source, reason):
    store.put(KEY, source)
    rule = drive.rules.add(Rule("GET /drive", status=403, reason=reason, times=None))
    with pytest.raises(StoreUnavailable, match="midnight"):
        store.stat(KEY)
    assert rule.hits == 1


def test_a_full_drive_is_said_in_words(drive, store, source, tmp_path):
    """Guard: with `quotaBytesUsed` alone, what mail and photos take was called free."""
    drive.contents.limit = 1_000_000
    store.put(KEY, source)
    with pytest.raises(StoreFull, match="no space"):
        store.put("jobs/job-1/f1/b", source)
    with pytest.raises(transfers.UnusableGrant, match="no space"):
        upload(store, source, "jobs/job-1/f1/c")
    usage = store.usage()
    assert (usage.used, usage.free) == (700_000, 300_000)
    drive.contents.others = 250_000
    usage = store.usage()
    assert (usage.used, usage.free) == (950_000, 50_000)
    drive.contents.limit = None
    assert store.usage().free is None


def test_deleting_is_for_ever(drive, store, source):
    """Guard: with `trash` in place of `delete` the space was still taken."""
    store.put(KEY, source)
    drive.rules.add(Rule("DELETE", status=503, done=True))
    store.delete(KEY)
    assert store.usage().used == 0
    assert not any("/trash" in r for r in drive.requests)


def test_an_access_token_that_runs_out_is_renewed(drive, store, source):
    store.put(KEY, source)
    drive.tokens.expire()
    assert store.stat(KEY).size == 700_000
    assert drive.tokens.refreshed == 2


def test_a_token_service_that_does_not_answer_is_tried_again(drive, store, source):
    drive.rules.add(Rule("POST /token", status=503, times=2), Rule("POST /token", html=True))
    assert store.put(KEY, source).size == 700_000


def test_a_dead_sign_in_is_a_persons_business_and_nothing_is_lost(drive, store, source, troubles):
    """Guard: without `on_trouble` nobody was told."""
    store.put(KEY, source)
    alive = set(drive.tokens.refresh_tokens)
    drive.tokens.revoke()
    with pytest.raises(StoreUnavailable, match="sign in again: trainhop store use drive"):
        store.stat(KEY)
    assert "invalid_grant" in troubles[-1]
    drive.tokens.refresh_tokens = alive
    assert store.stat(KEY).size == 700_000
    assert troubles[-1] == ""


def test_a_page_in_googles_place_is_not_believed(drive, make_store, source):
    store = make_store(retries=FEW)
    store.put(KEY, source)
    for rule in (Rule("/drive/v2", html=True, times=None), Rule("/drive/v2", html=True, status=502, times=None)):
        drive.rules.clear()
        drive.rules.add(rule)
        for call in (lambda: store.stat(KEY), store.usage, lambda: store.put("a/b", source)):
            with pytest.raises(StoreUnavailable):
                call()
    drive.rules.clear()
    assert store.stat(KEY).size == 700_000


def test_an_unreachable_drive_is_unavailable(drive, make_store, source):
    store = make_store(retries=FEW)
    store.put(KEY, source)
    drive.close()
    with pytest.raises(StoreUnavailable, match="could not reach Google Drive"):
        store.stat(KEY)


# --- what people do to their Drive ---


def test_a_deleted_file_is_missing_in_words_and_may_be_written_again(drive, store, source):
    """Guard: without `forget` in `put` the id of the deleted file, which Drive takes no second time, was kept for
    ever."""
    store.put(KEY, source)
    drive.contents.delete(drive.files()[0].id)
    with pytest.raises(ObjectMissing, match="deleted"):
        store.stat(KEY)
    assert store.put(KEY, source).size == 700_000
    assert content(drive) == [source.read_bytes()]


@pytest.mark.parametrize("heal", ["put", "delete"])
def test_a_server_killed_while_it_deletes_leaves_a_usable_key(drive, make_store, source, heal):
    """The file is gone, its id is still known. Guard: without `forget` in `put` the key was of no use any more."""

    class KilledIds(MemoryIds):
        killed = False

        def forget(self, key: str, ident: str) -> None:
            if not self.killed:
                self.killed = True
                raise KeyboardInterrupt
            super().forget(key, ident)

    ids = KilledIds()
    store = make_store(ids=ids)
    store.put(KEY, source)
    with pytest.raises(KeyboardInterrupt):
        store.delete(KEY)
    assert (content(drive), KEY in ids.known) == ([], True)
    if heal == "delete":
        store.delete(KEY)
        assert KEY not in ids.known
    assert store.put(KEY, source).size == 700_000
    assert content(drive) == [source.read_bytes()]


def test_an_id_that_another_call_is_writing_under_is_not_given_up(drive, make_store, source):
    """Nothing lies there yet. Guard: with the id forgotten whenever nothing was found, two files lay under one key."""
    ids = MemoryIds()
    one, two = make_store(ids=ids), make_store(ids=ids)
    drive.rules.add(Rule("POST /upload", meanwhile=lambda: two.put(KEY, source)))
    assert one.put(KEY, source).size == 700_000
    assert content(drive) == [source.read_bytes()]


@pytest.mark.parametrize("title", ["job-1", "Trainhop 1"])
def test_a_deleted_folder_is_made_again(drive, store, source, title):
    """Guard: without `_within` the next upload ended with 404."""
    store.put(KEY, source)
    folder = next(f for f in drive.contents.files.values() if f.title == title)
    drive.contents.delete(folder.id)
    with pytest.raises(ObjectMissing):
        store.stat(KEY)
    upload(store, source, "jobs/job-1/f1/b")
    assert store.stat("jobs/job-1/f1/b").size == 700_000


def test_what_is_needed_is_taken_out_of_the_trash(drive, store, source):
    store.put(KEY, source)
    drive.contents.mark(next(f.id for f in drive.contents.files.values() if f.title == "Trainhop 1"), trashed=True)
    assert store.stat(KEY).size == 700_000
    assert not any(f.trashed for f in drive.contents.files.values())


@pytest.mark.parametrize("status", [400, 403, 500])
def test_an_answer_that_repeats_credentials_is_told_without_them(drive, make_store, source, status):
    """Guard: without the replacement in `_translated` the reason stood in the message, and in the server's log."""
    words = f"{drive.tokens.client_secret} {min(drive.tokens.refresh_tokens)}"
    drive.rules.add(Rule(pattern="/drive/", times=None, status=status, reason=words))
    with pytest.raises(StoreError, match=r"\*\*\*") as caught:
        make_store().put(KEY, source)
    assert not any(word in str(caught.value) for word in words.split())


def test_ids_outlive_the_process(drive, make_store, source):
    ids = MemoryIds()
    make_store(ids=ids).put(KEY, source)
    assert make_store(ids=ids).stat(KEY).size == 700_000
    assert set(ids.known) == {"/", "jobs/job-1/", KEY}


@pytest.mark.parametrize("key", ["../a", "A/b", "", "a//b", "a/.hidden", "a'b"])
def test_keys_that_the_server_would_not_make_are_refused(store, key):
    with pytest.raises(StoreError):
        store.grant_upload(key, GrantKind.CHECKPOINT, shares_disk=False)


def test_under_a_third_of_errors_everything_arrives(drive, store, tmp_path):
    drive.unleash(Chaos(seed=7, truncations=0.05, flips=0.05, twins=0.1, lag=3))
    wanted = {f"jobs/job-{n % 3}/f1/{n}": secrets.token_bytes(1000 + n) for n in range(30)}
    for key, data in wanted.items():
        file = tmp_path / "file"
        file.write_bytes(data)
        store.put(key, file)
    drive.rules.clear()
    assert {key: b"".join(store.read(key)) for key in wanted} == wanted
    assert len([f for f in drive.files() if not f.planted]) == len(wanted)


# --- credentials ---


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("SECRET is no JSON", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"type": "service_account", "client_id": "1", "private_key": "SECRET"}', "service account"),
        ('{"installed": {"client_secret": "SECRET"}}', "--client-secrets"),
        ('{"client_id": "a", "client_secret": "SECRET", "refresh_token": ""}', "refresh_token is missing"),
        (
            '{"client_id": "a", "client_secret": "SECRET", "refresh_token": "SECRET", "token_uri": "https://evil.example/"}',
            "token_uri is not an address of Google",
        ),
        (
            '{"client_id": "a", "client_secret": "SECRET", "refresh_token": "SECRET", "token_uri": "http://oauth2.googleapis.com/token"}',
            "token_uri is not an address of Google",
        ),
    ],
)
def test_bad_credentials_are_explained_and_never_quoted(given, words):
    with pytest.raises(InvalidError, match=words) as caught:
        read_login(given, None)
    assert "SECRET" not in str(caught.value) + repr(caught.value.__cause__)


def test_a_login_shows_no_secret(drive):
    login = read_login(json.dumps(drive.authorized_user()), drive.url)
    assert drive.tokens.client_secret not in repr(login)
    assert "emulated-refresh-token" not in repr(login)
