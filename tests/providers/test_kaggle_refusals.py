"""What Kaggle refuses, and the nonsense that comes in an answer's place: words for a person, the right retry, no
secret."""

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from orchestrator.config import Settings
from orchestrator.ports.providers import (
    CredentialsRefused,
    LaunchRejected,
    Liveness,
    ProviderUnavailable,
    QuotaExhausted,
    SessionOutput,
)
from orchestrator.providers.kaggle import KaggleProvider, staging
from orchestrator.providers.kaggle.driver import MARGIN_S
from orchestrator.providers.kaggle.settings import KaggleSettings
from orchestrator.providers.kaggle.staging import Patience
from orchestrator.testing.environments import OpenVault, driver_env
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.kernels import handle_of, kaggle_account, request, slug, until

WAIT = "print('up', flush=True); time.sleep(120)"
CANARY = "KGAT_canary_f00dfeed"

# --- no room ----------------------------------------------------------------------------------------------


def test_room_tells_hours_and_when_they_start_anew(provider, kaggle):
    kaggle.world.people["alice"].used_s = 3600.0
    room = provider.capacity(kaggle_account("alice"))
    assert room.slots == 2
    assert room.hours_left == pytest.approx(29.0 - MARGIN_S / 3600)
    assert room.hours_total == 30.0
    fresh = datetime.fromtimestamp(room.refresh_at, UTC)
    assert (fresh.isoweekday(), fresh.hour, fresh.minute) == (6, 0, 0)
    assert room.session_s < 12 * 3600


def test_a_session_with_all_that_is_left_ends_within_it(provider, kaggle, works):
    """Guard: with all of the quota for its budget Kaggle cut it off, for its start and its saving are counted, too."""
    works(WAIT)
    kaggle.world.people["alice"].gpu_hours = 1.0
    account = kaggle_account("alice")
    launched = request(account, budget_s=provider.capacity(account).hours_left * 3600)
    handle = handle_of(launched, provider.launch(launched))
    assert kaggle.kernel(slug(handle)).timeout_s < 3600.0
    provider.stop(handle)
    kaggle.world.people["alice"].used_s = 3600.0 - 60.0
    assert provider.capacity(account).hours_left == 0


def test_no_session_asks_for_more_than_is_left(provider, kaggle, works):
    """Guard: without the look at the quota before the push its limit lay beyond the week's hours."""
    works(WAIT)
    kaggle.world.people["alice"].gpu_hours = 1.0
    for accelerator, limit_s in (("none", 4300.0), ("gpu", 3600.0)):
        launched = request(kaggle_account("alice", accelerator=accelerator), budget_s=4000.0)
        handle = handle_of(launched, provider.launch(launched))
        assert kaggle.kernel(slug(handle)).timeout_s == limit_s


@pytest.mark.parametrize("said", [{}, {"gpuQuota": {}}, {"gpuQuota": {"timeUsed": "60s"}}])
def test_a_quota_of_nothing_is_left_out_of_kaggles_answer(provider, kaggle, said):
    """Guard: without a 0 for what is left out no room was known, not even that of machines without GPU."""
    kaggle.rules.add("QuotaStatistics", status=200, body=said, times=0)
    room = provider.capacity(kaggle_account("alice"))
    assert (room.hours_left, room.hours_total) == (0.0, 0.0)
    assert provider.capacity(kaggle_account("bob", accelerator="none")).slots == 5


def test_hours_set_aside_for_running_sessions_are_not_offered_twice(provider, works):
    works(WAIT)
    account = kaggle_account("alice")
    before = provider.capacity(account).hours_left
    provider.launch(request(account, budget_s=3600.0))
    room = provider.capacity(account)
    assert room.slots == 2  # our own lease is not deducted here
    assert room.hours_left < before - 0.9


def test_a_session_that_the_owner_runs_by_hand_takes_up_room(provider, kaggle, works, tmp_path):
    works(WAIT)
    by_hand = KaggleProvider(driver_env(tmp_path / "by-hand", endpoint=kaggle.endpoint))
    by_hand.launch(request(kaggle_account("alice")))
    assert provider.capacity(kaggle_account("alice")).slots == 1


def test_the_third_session_waits_for_the_first_two(provider, kaggle, works, clock):
    works(WAIT)
    account = kaggle_account("alice")
    for _ in range(2):
        provider.launch(request(account))
    with pytest.raises(QuotaExhausted, match="Maximum batch GPU session count of 2 reached") as refused:
        provider.launch(request(account, resume=True))
    assert refused.value.until == clock.now() + 120.0
    assert not [s for _, s in kaggle.world.datasets if "resume" in s]  # nothing of the refused launch is left


def test_used_up_hours_close_the_account_until_they_start_anew(provider, kaggle, works):
    works(WAIT)
    account = kaggle_account("alice")
    kaggle.world.people["alice"].used_s = 30 * 3600.0
    room = provider.capacity(account)
    assert room.hours_left == 0
    with pytest.raises(QuotaExhausted, match=r"30\.00 hours") as refused:
        provider.launch(request(account))
    assert refused.value.until == room.refresh_at


def test_a_quota_of_storage_is_not_one_of_gpu_hours(provider, kaggle, works):
    """Guard: with any quota in `used_up` a full shelf of datasets closed the account until Saturday."""
    works(WAIT)
    full = {"error": "You have exceeded your private dataset storage quota"}
    kaggle.rules.add("CreateDataset", status=200, body=full)
    with pytest.raises(LaunchRejected, match="storage quota"):
        provider.launch(request(kaggle_account("alice")))


def test_a_refused_dataset_is_not_uploaded_again_within_the_hour(provider, kaggle, works, clock):
    """Guard: without the kept token a file of gigabytes was sent at every try."""
    works(WAIT)
    full = {"error": "You have exceeded your private dataset storage quota"}
    kaggle.rules.add("CreateDataset", status=200, body=full, times=4)
    for wait_s, sent in ((0.0, 1), (60.0, 1), (staging.SENT_FOR_S - 61.0, 1), (1.0, 2)):
        clock.tick(wait_s)
        with pytest.raises(LaunchRejected, match="storage quota"):
            provider.launch(request(kaggle_account("alice")))
        assert len(kaggle.seen("StartBlobUpload")) == sent
    assert provider.launch(request(kaggle_account("alice")))
    assert len(kaggle.seen("StartBlobUpload")) == 2
    assert not provider._notebook.of_account("account-alice").read().uploads


def test_an_upload_that_kaggle_has_forgotten_is_sent_again(provider, kaggle, works):
    """Guard: with the token kept whatever Kaggle says of it, nothing could be started for an hour."""
    works(WAIT)
    kaggle.rules.add("CreateDataset", status=200, body={"error": "Try again later"})
    with pytest.raises(LaunchRejected):
        provider.launch(request(kaggle_account("alice")))
    kaggle.world.blobs.clear()
    with pytest.raises(LaunchRejected, match="is not uploaded"):
        provider.launch(request(kaggle_account("alice")))
    assert provider.launch(request(kaggle_account("alice")))
    assert len(kaggle.seen("StartBlobUpload")) == 2


# --- what a person must do ----------------------------------------------------------------------------------


def test_an_unverified_phone_is_said_with_its_remedy(provider, kaggle, works):
    works(WAIT)
    kaggle.world.people["alice"].phone_verified = False
    with pytest.raises(CredentialsRefused, match="Verify its phone number"):
        provider.launch(request(kaggle_account("alice")))


def test_a_revoked_token_shuts_the_account_in_words(provider, kaggle, works):
    works(WAIT)
    account = kaggle_account("alice")
    launched = request(account)
    handle = handle_of(launched, provider.launch(launched))
    kaggle.world.people["alice"].revoked = True
    with pytest.raises(CredentialsRefused, match="does not accept this token"):
        provider.capacity(account)
    with pytest.raises(CredentialsRefused, match="Create a new one"):
        provider.launch(request(account))
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN  # it may well be running
    with pytest.raises(CredentialsRefused):
        provider.check(account)


def test_check_says_who_is_signed_in(provider, kaggle):
    said, _, quota = provider.check(kaggle_account("alice")).partition("; ")
    assert (said, quota.startswith("29.8 of 30.0 GPU hours left")) == ("signed in at Kaggle as alice", True)
    without_gpu = dataclasses.replace(kaggle_account("alice"), config={"accelerator": "none"})
    assert provider.check(without_gpu) == "signed in at Kaggle as alice"
    bobs = kaggle_account("alice", "KGAT_bob")
    with pytest.raises(CredentialsRefused, match="belongs to bob"):
        provider.check(bobs)
    with pytest.raises(CredentialsRefused, match="not valid"):
        provider.check(kaggle_account("alice", "KGAT_mistyped"))
    old = kaggle_account("bob", json.dumps({"username": "bob", "key": "bobs-old-key"}))
    assert provider.check(old).startswith("signed in at Kaggle as bob; ")


def test_a_token_and_an_older_key_are_one_login(provider, kaggle):
    """Guard: with `config` alone asked, a token without a user name was nobody's."""
    by_token = dataclasses.replace(kaggle_account("bob"), config={})
    by_key = kaggle_account("bob", json.dumps({"username": "bob", "key": "bobs-old-key"}))
    assert provider.login(by_token) == provider.login(by_key) == "bob"
    kaggle.world.people["bob"].name = "Bob"
    assert provider.login(dataclasses.replace(by_token, id="entered-anew")) == "bob"
    kaggle.world.people["bob"].revoked = True
    with pytest.raises(CredentialsRefused, match="Create a new one"):
        provider.login(dataclasses.replace(by_token, id="entered-again"))


def test_a_name_in_other_letters_is_the_same_person(provider, kaggle, works):
    """Guard: with the configured name for the owner Kaggle knew of no such place, and every launch was refused."""
    works(WAIT)
    launched = request(kaggle_account("alice", username="Alice"))
    assert provider.launch(launched).startswith("alice/")
    provider.stop(handle_of(launched))


def test_nothing_is_started_with_a_token_of_somebody_else(provider, kaggle, works):
    """Guard: without a look at whose name it is the session ran on bob's account."""
    works(WAIT)
    with pytest.raises(CredentialsRefused, match="belongs to bob"):
        provider.launch(request(kaggle_account("alice", "KGAT_bob")))
    assert not kaggle.world.kernels


@pytest.mark.parametrize("text", ["", "two words", "{not json", '{"username": "bob"}'])
def test_credentials_that_cannot_be_any_are_said(provider, text):
    account = kaggle_account("alice")
    account.credentials = OpenVault().seal(text) or "x"
    with pytest.raises(CredentialsRefused):
        provider.check(account)


def test_an_account_without_a_token_is_shut(provider):
    account = kaggle_account("alice")
    account.credentials = ""
    with pytest.raises(CredentialsRefused, match="no Kaggle token"):
        provider.capacity(account)


# --- later, or never ----------------------------------------------------------------------------------------


def test_a_pause_that_kaggle_asks_for_is_kept(provider, kaggle, works, clock):
    """Guard: without the remembered pause every round of dispatching would ask again."""
    works(WAIT)
    account = kaggle_account("alice")
    rule = kaggle.rules.add(
        "QuotaStatistics", status=429, reason="Too many requests", headers={"Retry-After": "77"}, times=0
    )
    room = provider.capacity(account)
    assert "rate limit is reached" in room.closed_reason
    assert room.open_at == clock.now() + 77
    provider.capacity(account)
    assert rule.seen == 1
    kaggle.rules.add(
        "SaveKernel", status=429, body={"error": {"code": 429, "message": "slow"}}, headers={"Retry-After": "5"}
    )
    with pytest.raises(QuotaExhausted, match=r"rate limit is reached \(slow\)") as refused:
        provider.launch(request(account))
    assert refused.value.until == clock.now() + 5


@pytest.mark.parametrize(
    ("said", "asked_s"),
    [
        ("Wed, 25 Nov 2026 12:01:17 GMT", 77.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 120.0),
        ("Fri, 25 Nov 2033 12:00:00 GMT", 3600.0),
        ("inf", 3600.0),
        ("nan", 120.0),
        ("-5", 120.0),
        ("soon", 120.0),
    ],
)
def test_a_pause_may_be_told_as_a_date_and_has_an_end(provider, kaggle, clock, said, asked_s):
    """Guard: a date was not understood, and "inf" closed the account for as long as the server ran."""
    headers = {"Retry-After": said, "Date": "Wed, 25 Nov 2026 12:00:00 GMT"}
    kaggle.rules.add("QuotaStatistics", status=429, reason="Too many requests", headers=headers)
    assert provider.capacity(kaggle_account("alice")).open_at == clock.now() + asked_s


def test_a_pause_while_files_are_processed_throws_none_of_them_away(provider, kaggle, works):
    """Guard: taken for a refused launch it deleted the checkpoint that had just been sent."""
    works(WAIT)
    slept: list[float] = []
    provider.patience = Patience(sleep=slept.append)
    headers = {"Retry-After": "7"}
    rule = kaggle.rules.add("GetDatasetStatus", status=429, reason="Too many requests", headers=headers, skip=3)
    assert provider.launch(request(kaggle_account("alice"), resume=True))
    assert rule.seen == 1
    assert 7.0 in slept
    assert len(kaggle.seen("StartBlobUpload")) == 2
    assert not kaggle.seen("DeleteDataset")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"ref": "/code/alice/x", "error": "You cannot change the editor type"}, "editor type"),
        ({"ref": "", "invalidDatasetSources": ["alice/nothing"]}, "alice/nothing"),
        ({"ref": "", "invalidModelSources": ["m"]}, "the model m"),
        ({"ref": "/code/alice/quite-another-name"}, "another name"),
    ],
)
def test_a_refusal_inside_a_good_answer_is_a_refusal(provider, kaggle, works, answer, words):
    """Guard: without reading every list the kernel runs on without its data; and what was started is taken back."""
    works(WAIT)
    kaggle.rules.add("SaveKernel", status=200, body=answer, done=True)
    with pytest.raises(LaunchRejected, match=words):
        provider.launch(request(kaggle_account("alice"), resume=True))
    assert not kaggle.world.kernels
    assert not [s for _, s in kaggle.world.datasets if "resume" in s]


def test_a_dataset_that_kaggle_cannot_process_is_sent_again(provider, kaggle, works):
    works(WAIT)
    kaggle.rules.add("GetDatasetStatus", status=200, body={"status": "FAILED"}, skip=1)
    with pytest.raises(ProviderUnavailable, match="FAILED"):
        provider.launch(request(kaggle_account("alice")))
    kaggle.rules.add("GetDatasetStatus", status=200, body={"status": "FAILED"})
    assert provider.launch(request(kaggle_account("alice")))
    assert len(kaggle.seen("CreateDataset")) == 2


def test_a_dataset_that_is_never_ready_is_made_anew_under_another_name(provider, kaggle, works):
    """Guard: without `spoil`, every launch waited for the same dataset again, for ever."""
    works(WAIT)
    provider.patience = Patience(ready_within_s=0.0, sleep=lambda _: None)
    kaggle.rules.add("GetDatasetStatus", status=200, body={"status": "BLOBS_RECEIVED"}, skip=1, times=3)
    for _ in range(2):
        with pytest.raises(ProviderUnavailable, match="still processing"):
            provider.launch(request(kaggle_account("alice")))
    provider.patience = Patience(sleep=lambda _: None)
    assert provider.launch(request(kaggle_account("alice")))
    (slug,) = (slug for _, slug in kaggle.world.datasets)
    assert slug.endswith("-2")
    (kernel,) = kaggle.world.kernels.values()
    assert kernel.datasets == [f"alice/{slug}"]


def test_a_name_that_a_deleted_dataset_keeps_is_given_up(provider, kaggle, works):
    """Guard: without `_TAKEN` it was refused at every launch."""
    works(WAIT)
    taken = {"error": 'The requested title "x" is already in use by a dataset. Please choose another title.'}
    kaggle.rules.add("CreateDataset", status=200, body=taken)
    with pytest.raises(LaunchRejected, match="already in use"):
        provider.launch(request(kaggle_account("alice")))
    assert provider.launch(request(kaggle_account("alice")))
    assert len(kaggle.seen("StartBlobUpload")) == 1
    assert all(slug.endswith("-2") for _, slug in kaggle.world.datasets)


def test_a_refusal_that_mentions_tokens_costs_no_upload_each_time(provider, kaggle, works):
    """Guard: with every token forgotten that a refusal mentions, the file was sent at each try."""
    works(WAIT)
    full = {"error": "Too many blob tokens in use on this account"}
    kaggle.rules.add("CreateDataset", status=200, body=full, times=6)
    for _ in range(6):
        with pytest.raises(LaunchRejected, match="blob tokens"):
            provider.launch(request(kaggle_account("alice")))
    assert len(kaggle.seen("StartBlobUpload")) <= 3


NONSENSE = [
    {"status": 503, "body": "<html>Service Unavailable</html>"},
    {"status": 200, "body": "<html>Sign in to your network</html>"},
    {"status": 200, "body": [1, 2, 3]},
    {"status": 200, "body": {"gpuQuota": "a string", "status": 7}},
    {"status": 200, "body": {"gpuQuota": {"timeUsed": "soon", "totalTimeAllowed": []}, "status": {}}},
    {"status": 200, "body": {"quotaRefreshTime": 12, "status": 3.5}},
    {"cut": True},
]


@pytest.mark.parametrize("fault", NONSENSE)
def test_nonsense_is_no_death_and_no_crash(provider, kaggle, works, fault):
    works(WAIT)
    account = kaggle_account("alice")
    launched = request(account)
    handle = handle_of(launched, provider.launch(launched))
    kaggle.rules.add("QuotaStatistics|SessionStatus", **fault, times=0)
    with pytest.raises(ProviderUnavailable) as said:
        provider.capacity(account)
    assert "KGAT" not in str(said.value)
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN
    with pytest.raises(ProviderUnavailable):
        provider.stop(handle)
    kaggle.rules.clear()
    until(lambda: provider.observe([handle])[0].liveness is Liveness.RUNNING)


DENIED = "Kernel|logs/stream|DeleteDataset"


def _denied(kaggle, permission):
    kaggle.rules.add(DENIED, status=403, reason=f"Permission '{permission}' was denied", times=0)


def test_a_kernel_that_kaggle_denies_access_to_is_not_there(provider, kaggle, works):
    """Guard: without `absent` in `_look`, `collect_outputs`, `follow` and `_delete` its lease was never over, nor
    forgotten."""
    works("print('up', flush=True)")
    launched = request(kaggle_account("alice"), resume=True)
    handle = handle_of(launched, provider.launch(launched))
    until(lambda: b"up" in provider.log(handle, 0, 100))
    kaggle.sessions.delete(kaggle.world.kernels.pop(("alice", slug(handle))))
    _denied(kaggle, "kernels.get")
    assert "up" in list(provider.follow(handle))
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN  # it was pushed a moment ago
    provider._notebook.write(launched.lease_id, unsure_until=0.0)
    assert "deleted" in provider.observe([handle])[0].detail
    assert provider.collect_outputs(handle) == SessionOutput()
    kaggle.rules.clear()
    _denied(kaggle, "datasets.delete")
    provider.clean_up(handle)


def seen_running(provider, works):
    """A session that needs no patience any more: its push has been answered for long."""
    works(WAIT)
    launched = request(kaggle_account("alice"))
    handle = handle_of(launched, provider.launch(launched))
    provider._notebook.write(launched.lease_id, unsure_until=0.0)
    return launched, handle


@pytest.mark.parametrize("permission", ["kernelSessions.enableInternet", "resources.admin"])
def test_another_denial_says_nothing_of_a_kernel(provider, kaggle, works, permission):
    """Guard: with any 403 in `absent` a running session was given up, and its place with it."""
    _, handle = seen_running(provider, works)
    _denied(kaggle, permission)
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN
    with pytest.raises(ProviderUnavailable):
        provider.clean_up(handle)


def test_a_token_of_somebody_else_sees_no_kernel_and_ends_none(provider, kaggle, works):
    """Guard: without the look at whose token it is a session was given up when its account got another one."""
    launched, handle = seen_running(provider, works)
    launched.account.credentials = OpenVault().seal("KGAT_bob")
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN
    with pytest.raises(ProviderUnavailable):
        provider.clean_up(handle)


def test_a_state_that_is_not_known_is_not_death(provider, kaggle, works):
    """Guard: the client library raises KeyError for it."""
    works(WAIT)
    launched = request(kaggle_account("alice"))
    handle = handle_of(launched, provider.launch(launched))
    kaggle.rules.add("SessionStatus", status=200, body={"status": "HIBERNATING"})
    seen = provider.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (Liveness.UNKNOWN, "Kaggle reports the unknown state HIBERNATING")


def test_silence_is_asked_about_once_and_not_in_every_round(kaggle, works, tmp_path):
    works(WAIT)
    provider = KaggleProvider(driver_env(tmp_path / "kaggle", endpoint=kaggle.endpoint), fresh_s=3600.0)
    account = kaggle_account("alice")
    rule = kaggle.rules.add("QuotaStatistics", cut=True, times=0)
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            provider.capacity(account)
    assert rule.seen == 1


# --- whose credentials --------------------------------------------------------------------------------------


@pytest.fixture
def somebody_else(monkeypatch, tmp_path):
    """The environment and the home folder of a person who has used Kaggle's own command line."""
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle" / "access_token").write_text("KGAT_mallory")
    (home / ".kaggle" / "kaggle.json").write_text('{"username": "mallory", "key": "old"}')
    (home / ".netrc").write_text("machine 127.0.0.1 login mallory password old\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_mallory")
    monkeypatch.setenv("KAGGLE_USERNAME", "mallory")
    monkeypatch.setenv("KAGGLE_KEY", "old")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def test_two_accounts_work_in_one_process_whatever_its_environment_says(provider, kaggle, works, somebody_else):
    """Guard: with a session of the SDK's own making bob's older key gives way to mallory's token."""
    works(WAIT)
    kaggle.world.people["mallory"] = Person(name="mallory", token="KGAT_mallory", key="old")
    alice = kaggle_account("alice")
    bob = kaggle_account("bob", json.dumps({"username": "bob", "key": "bobs-old-key"}))
    for account in (alice, bob):
        launched = request(account)
        handle = handle_of(launched, provider.launch(launched))
        assert provider.capacity(account).slots
        assert kaggle.kernel(slug(handle)).owner == account.config["username"]
        provider.stop(handle)
    assert {s.account for s in kaggle._desk.seen if s.request != "IntrospectToken"} == {"alice", "bob"}


def test_a_credential_is_nowhere_but_in_the_header(tmp_path, works, clock):
    """Kernel source, datasets, logs, outputs, notes: none of them may hold the account's token."""
    works("import os; print(dict(os.environ), flush=True); (keep / 'outbox.jsonl').write_text(json.dumps(ticket))")
    with KaggleEmulator(tmp_path / "emulator", [Person(name="alice", token=CANARY)]) as kaggle:
        provider = KaggleProvider(driver_env(tmp_path / "kaggle", endpoint=kaggle.endpoint, clock=clock), fresh_s=0.0)
        launched = request(kaggle_account("alice", CANARY), resume=True)
        handle = handle_of(launched, provider.launch(launched))
        until(lambda: provider.observe([handle])[0].liveness is Liveness.ENDED)
        assert CANARY not in kaggle.kernel(slug(handle)).source
        assert provider.collect_outputs(handle).messages
        asked = [s.said for s in kaggle._desk.seen if s.request != "IntrospectToken"]  # which asks whose it is
        told = "\n".join(provider.follow(handle)) + json.dumps(asked)
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert len(files) > 8
        held = [p for p in files if CANARY.encode() in p.read_bytes() or CANARY[::-1].encode() in p.read_bytes()]
    assert CANARY not in told
    assert not held


def test_kaggles_words_are_cleaned_of_secrets_and_control_characters(provider, kaggle, works):
    works(WAIT)
    kaggle.rules.add("SaveKernel", status=400, reason="bad token KGAT_alice\x1b[31m\nred " + "x" * 5000)
    with pytest.raises(LaunchRejected) as refused:
        provider.launch(request(kaggle_account("alice")))
    assert "KGAT_alice" not in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "url", ["https://www.kaggle.com", "http://10.0.0.1:80", "http://127.0.0.1.evil.org", "ftp://127.0.0.1"]
)
def test_the_endpoint_is_of_this_computer_or_refused(url):
    with pytest.raises(ValueError, match=r"^TRAINHOP_KAGGLE_ENDPOINT: must be .* on this computer"):
        Settings(drivers={"kaggle": {"endpoint": url}}).of_driver("kaggle", KaggleSettings)
