"""Colab through its official client: what it refuses, in words; what a session leaves; and that no machine is ever
kept."""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import sys
import threading

import psutil
import pytest

from orchestrator.config import Settings
from orchestrator.ports.providers import (
    CredentialsRefused,
    Handle,
    LaunchRejected,
    Liveness,
    ProviderUnavailable,
    QuotaExhausted,
    SessionOutput,
)
from orchestrator.providers.colab.calls import BRIDGE
from orchestrator.providers.colab.records import RuntimeNotes
from orchestrator.providers.colab.settings import ColabSettings
from orchestrator.testing import FakeClock
from orchestrator.testing.environments import OpenVault
from tests.emulators.colab import Colab, Rule
from tests.emulators.colab.machine import LATE_S
from tests.providers import kernels
from tests.providers.kernels import colab_account, colab_provider, ended, handle_of, request, until
from worker.shared.messages import Grant, GrantKind

NOW = FakeClock().now()
UPLOAD = Grant(key="jobs/job-1/f2/0000000000000000.safetensors", kind=GrantKind.CHECKPOINT, url="http://127.0.0.1:9/")


@pytest.fixture
def colab(tmp_path):
    """Machines in name only: their Jupyter server does not answer."""
    with Colab(tmp_path / "emulator") as colab:
        yield colab


@pytest.fixture
def provider(colab, colab_python, tmp_path):
    return colab_provider(colab, tmp_path, colab_python, clock=FakeClock())


@pytest.fixture
def real(tmp_path, colab_python):
    """Machines with a Jupyter server and kernels."""
    with Colab(tmp_path / "emulator", python=colab_python) as colab:
        yield colab
        assert not colab.machines, "what is left costs compute units"


def asked(account, **more):
    """A launch for a machine that cannot call, with a place for its checkpoint."""
    made = request(account, **more)
    return made if made.assignment is None else _with_uploads(made)


def _with_uploads(made):
    return dataclasses.replace(made, assignment=made.assignment.model_copy(update={"uploads": (UPLOAD,)}))


# --- refusals ---------------------------------------------------------------------------------------------


def test_compute_units_are_told_and_without_any_nothing_starts(provider, colab):
    """Guard: without the look at the balance in `bridge.launch` a machine of an account without any was taken."""
    account = colab_account(colab)
    assert (
        provider.check(account) == "signed in at Colab: 100.00 compute units left, 0.00 used per hour now (0 machines)"
    )
    assert (provider.capacity(account).slots, provider.capacity(account).memory_bytes) == (1, 15_800_000_000)
    colab.balance = 0.0
    assert "no Colab compute units left" in provider.check(account)
    room = provider.capacity(account)
    assert room.slots == 0
    assert "trainhop notebook" in room.closed_reason
    with pytest.raises(QuotaExhausted, match="no Colab compute units left") as refused:
        provider.launch(asked(account))
    assert refused.value.until == NOW + 3600
    assert not any(r.startswith("POST /tun/m/assign") for r in colab.requests)


@pytest.mark.parametrize(
    ("fault", "error", "words", "after_s"),
    [
        (412, QuotaExhausted, "no more machines now", 1800),
        (503, QuotaExhausted, "no T4 machine free", 600),
        ("outcome 1", QuotaExhausted, "quota does not cover a T4 machine", 3600),
        ("outcome 2", QuotaExhausted, "has used its time", 6 * 3600),
        ("outcome 9", QuotaExhausted, "for an unknown reason", 3600),
        ("outcome 5", CredentialsRefused, "blocked this account", None),
        ("entitled", CredentialsRefused, "does not give this account a T4 machine. Set another accelerator", None),
        ("revoked", CredentialsRefused, "no longer accepts the stored sign-in", None),
    ],
)
def test_what_colab_refuses_is_said_with_a_time_or_a_remedy(provider, colab, fault, error, words, after_s):
    """Guard: without reading `outcome`, a denial was three validation errors of the client's."""
    account = colab_account(colab)
    if isinstance(fault, int):
        colab.rules.add(Rule("POST /tun/m/assign", status=fault, times=None))
    elif fault == "entitled":
        colab.entitled.clear()
    elif fault == "revoked":
        colab.tokens.revoke()
    else:
        colab.outcome = int(fault.removeprefix("outcome "))
    launched = asked(account)
    with pytest.raises(error, match=words) as refused:
        provider.launch(launched)
    if after_s is not None:
        assert refused.value.until == NOW + after_s
    assert not colab.machines
    assert provider.observe([handle_of(launched)])[0].liveness is Liveness.ENDED


def test_an_access_token_that_has_run_out_is_asked_for_anew(provider, colab):
    colab.rules.add(Rule("GET /tun/m/ccu-info", status=401))
    assert "100.00 compute units" in provider.check(colab_account(colab))


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, '{"error": "internal_failure"}'), (503, "<html>Sorry"), (502, ""), (404, "<html>a proxy")],
)
def test_a_token_service_that_is_away_is_no_refused_sign_in(provider, colab, status, body):
    """Guard: without `_is_refused` an hour of Google's trouble blocked the account until its owner had done something;
    with `retryable` alone, pages still did.
    """
    colab.rules.add(Rule("POST /token", status=status, reason=body, times=None))
    account = colab_account(colab)
    with pytest.raises(ProviderUnavailable, match="could not reach Colab: Google's sign-in"):
        provider.check(account)
    colab.rules.clear()
    assert "100.00 compute units" in provider.check(account)


def test_an_organisations_demand_to_sign_in_again_is_told_to_its_owner(provider, colab):
    """The library says so in a sentence of its own. Guard: taken for a page, it was called a fault and tried for
    ever."""
    wanted = '{"error": "invalid_grant", "error_subtype": "invalid_rapt"}'
    colab.rules.add(Rule("POST /token", status=400, reason=wanted))
    with pytest.raises(CredentialsRefused, match="Reauthentication is needed"):
        provider.check(colab_account(colab))


def test_an_answer_that_repeats_credentials_is_told_without_them(provider, colab):
    """Guard: without the replacement in `main` Google's words were stored, logged and shown as they came."""
    hidden = (colab.tokens.client_secret, *colab.tokens.refresh_tokens)
    said = json.dumps({"error": "invalid_grant", "error_description": "x" * 260 + " ".join(hidden)})
    colab.rules.add(Rule("POST /token", status=400, reason=said))
    with pytest.raises(CredentialsRefused, match=r"\*\*\*") as refused:
        provider.check(colab_account(colab))
    assert not any(secret[:8] in str(refused.value) for secret in hidden)


def test_a_machine_that_does_not_answer_is_given_back_however_it_was_taken(provider, colab):
    """The answer to taking it is lost, too: asked again, Colab shows the machine it gave.

    Guard: with neither the bridge's `finally` nor the driver's `_failed` giving it back, it was kept.
    """
    colab.rules.add(Rule("POST /tun/m/assign", status=503, done=True))
    launched = asked(colab_account(colab))
    with pytest.raises(ProviderUnavailable, match="could not reach Colab"):
        provider.launch(launched)
    assert (len(colab.taken), len(colab.machines)) == (1, 0)
    seen = provider.observe([handle_of(launched)])[0]
    assert seen.liveness is Liveness.ENDED


def test_a_machine_that_cannot_be_given_back_at_once_is_given_back_later(provider, colab):
    """Guard: with `_release`'s failure passed over in `_failed`, the machine ran on and nobody asked again."""
    colab.rules.add(Rule("unassign", status=500, times=3))
    launched = asked(colab_account(colab))
    with pytest.raises(ProviderUnavailable):
        provider.launch(launched)
    assert colab.machines
    until(lambda: provider.observe([handle_of(launched)])[0].liveness is Liveness.ENDED)
    assert not colab.machines


def test_a_killed_client_leaves_no_machine_no_file_and_no_secret(provider, colab, tmp_path):
    """Guard: with HOME not removed in `finally`, or with a notebook's number that cannot be made again, either was
    left."""
    colab.rules.add(Rule("POST /tun/m/assign", delay_s=3600))
    aloud = []

    def kill():
        until(lambda: colab.taken)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if str(BRIDGE) in process.cmdline():
                    aloud.append([*process.cmdline(), *process.environ().values()])
                    process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ProviderUnavailable, match="without an answer"):
        provider.launch(asked(colab_account(colab)))
    killer.join()
    assert not colab.machines
    (words,) = aloud
    hidden = (colab.tokens.client_secret, *colab.tokens.refresh_tokens)
    assert not any(secret in word for secret in hidden for word in words)
    assert list((tmp_path / "colab" / "homes").iterdir()) == []
    files = [p for p in (tmp_path / "colab").rglob("*") if p.is_file()]
    assert not any(secret.encode() in p.read_bytes() for secret in hidden for p in files)


def test_a_client_that_gives_no_answer_is_not_waited_for(provider, colab, tmp_path):
    provider.bridge.limits_s["usage"] = 0.01
    with pytest.raises(ProviderUnavailable, match="did not answer within 0 s"):
        provider.check(colab_account(colab))
    assert list((tmp_path / "colab" / "homes").iterdir()) == []


def test_what_a_killed_server_left_of_the_client_goes_at_the_next_start(colab, colab_python, tmp_path):
    log = tmp_path / "colab" / "homes" / "tmp1" / ".config" / "colab-cli" / "colab.log"
    log.parent.mkdir(parents=True)
    log.write_text("Authorization: Bearer secret")
    colab_provider(colab, tmp_path, colab_python)
    assert not log.exists()


# --- settings ---------------------------------------------------------------------------------------------


def test_an_environment_that_is_missing_or_wrong_is_said_with_its_remedy(colab, tmp_path):
    """No environment of Colab's client is needed to be told so. This project's own is one in which it is not
    installed."""
    account = colab_account(colab)
    for python, words in (
        (None, "TRAINHOP_COLAB_PYTHON"),
        ("/no/such", "cannot be used"),
        (sys.executable, "No module"),
    ):
        provider = colab_provider(colab, tmp_path, python)
        with pytest.raises(ProviderUnavailable, match=words) as refused:
            provider.check(account)
        assert "pip install 'google-colab-cli" in str(refused.value)


@pytest.mark.parametrize("text", ["SECRET", "[]", '{"client_id": "SECRET"}'])
def test_credentials_that_cannot_be_any_are_said_and_never_quoted(colab, tmp_path, text):
    account = colab_account(colab)
    account.credentials = OpenVault().seal(text)
    with pytest.raises(CredentialsRefused, match=r"token\.json") as refused:
        colab_provider(colab, tmp_path, "python").check(account)
    assert "SECRET" not in str(refused.value)


def test_one_sign_in_is_one_login_however_its_file_is_written(colab, tmp_path):
    """Guard: with the whole file compared, one key more made it another person's."""
    provider, account = colab_provider(colab, tmp_path, None), colab_account(colab)
    signed_in = json.loads(OpenVault().open(account.credentials))

    def login(**changed):
        text = json.dumps(dict(sorted((signed_in | changed).items())), indent=1)
        return provider.login(dataclasses.replace(account, credentials=OpenVault().seal(text)))

    assert login() == login(account="me") == provider.login(account)
    assert login(refresh_token="another") != login()


def test_a_session_that_exports_takes_a_machine_without_a_gpu(provider, colab):
    """Guard: with the account's own accelerator it cost several times the compute units."""
    with contextlib.suppress(ProviderUnavailable):  # nothing answers on it
        provider.launch(dataclasses.replace(asked(colab_account(colab)), exports=True))
    assert [machine.accelerator for machine in colab.taken] == ["NONE"]


def test_settings_are_looked_at_before_colab_is_asked(colab, tmp_path):
    provider = colab_provider(colab, tmp_path, "python", can_deliver=lambda: False)
    wrong = colab_account(colab, accelerator="T5")
    assert "no Colab accelerator T5. Choose one of T4" in provider.capacity(wrong).closed_reason
    with pytest.raises(CredentialsRefused, match="T5"):
        provider.check(wrong)
    assert "TRAINHOP_PUBLIC_URL" in provider.capacity(colab_account(colab)).closed_reason
    by_hand = colab_account(colab, mode="claim")
    assert "open a notebook instead" in provider.capacity(by_hand).closed_reason
    assert "open a notebook instead" in provider.check(by_hand)
    with pytest.raises(LaunchRejected, match="open a notebook instead"):
        provider.launch(request(by_hand))
    with pytest.raises(QuotaExhausted, match="trainhop store use drive"):
        provider.launch(request(colab_account(colab)))
    assert colab.requests == []


def test_only_the_emulators_machines_see_the_servers_disk(provider, colab, colab_python, tmp_path):
    real = colab_provider(colab, tmp_path, colab_python, endpoint=None)
    real.bridge = provider.bridge
    assert not real.capacity(colab_account(colab)).any_folder
    assert provider.capacity(colab_account(colab)).any_folder


@pytest.mark.parametrize("address", ["https://colab.research.google.com", "http://example.com", "http://10.0.0.1:80"])
def test_only_this_computer_may_stand_in_for_colab(address):
    with pytest.raises(ValueError, match=r"^TRAINHOP_COLAB_ENDPOINT: must be .* on this computer"):
        Settings(drivers={"colab": {"endpoint": address}}).of_driver("colab", ColabSettings)


# --- a session --------------------------------------------------------------------------------------------

TALKS = """
import hashlib
print(*sorted(hashlib.sha256(pathlib.Path(g["path"]).read_bytes()).hexdigest()
              for g in [*given["datasets"], given["resume"]]), flush=True)
for number in range(3000):
    print("line", number, "x" * 50)
(keep / "outbox.jsonl").write_text('{"seq": 1}\\n')
try:
    import nothing_of_that_name
except ImportError:
    import traceback
    traceback.print_exc()
sys.exit(7)
"""


def test_a_session_is_brought_its_files_and_heard_to_its_end(real, tmp_path):
    """A checkpoint of several parts, a log of several segments, an end that is found by its file; then the machine
    goes.

    Guard: without `failed` in the session's note, what had been followed to its end had ended by nobody's error.
    """
    checkpoint = secrets.token_bytes(9 << 20)
    provider, account = colab_provider(real, tmp_path, code=TALKS), colab_account(real)
    launched = asked(account, resume=True, checkpoint=checkpoint)
    handle = handle_of(launched, provider.launch(launched))
    lines = list(provider.follow(handle))
    wanted = sorted(hashlib.sha256(data).hexdigest() for data in (kernels.DATA, checkpoint))
    assert lines[0].split() == wanted
    assert lines[1:3001] == [f"line {n} {'x' * 50}" for n in range(3000)]
    seen = ended(provider, handle)
    assert seen.failed
    assert seen.detail == (
        "the worker ended with exit code 7: ModuleNotFoundError: No module named 'nothing_of_that_name'"
    )
    assert (
        provider.collect_outputs(handle) == provider.collect_outputs(handle) == SessionOutput(messages=('{"seq": 1}',))
    )
    assert real.machines, "until everything is collected"
    provider.clean_up(handle)
    assert not real.machines
    assert list(provider.follow(handle)) == lines
    assert b"line 2999" in (provider.log(handle, 0, 1 << 20) or b"")


def test_a_machine_that_vanishes_has_ended(real, tmp_path):
    provider = colab_provider(real, tmp_path, code="print('up', flush=True); time.sleep(120)")
    launched = asked(colab_account(real))
    handle = handle_of(launched, provider.launch(launched))
    until(
        lambda: provider.collect_outputs(handle) == SessionOutput() and b"up" in (provider.log(handle, 0, 100) or b"")
    )
    real.vanish(handle.external_id)
    seen = provider.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (Liveness.ENDED, "Colab has taken the machine away")
    assert list(provider.follow(handle)) == ["up"]
    provider.clean_up(handle)


def test_a_kernel_that_starts_slowly_is_waited_for(tmp_path, colab_python):
    """Guard: without REQUEST_TIMEOUT the client used the connection after ten seconds, and the launch failed."""
    with Colab(tmp_path / "emulator", python=colab_python, environment={LATE_S: "12"}) as slow:
        provider, launched = colab_provider(slow, tmp_path, code="time.sleep(120)"), asked(colab_account(slow))
        handle = handle_of(launched, provider.launch(launched))
        assert provider.observe([handle])[0].liveness is Liveness.RUNNING
        provider.stop(handle)
        assert not slow.machines


def test_a_server_killed_in_the_middle_of_a_launch_gives_the_machine_back(real, tmp_path):
    """As its notes are then. Guard: with such a session taken for a notebook's, its machine ran until Colab ended
    it."""
    provider, launched = colab_provider(real, tmp_path, code="time.sleep(120)"), asked(colab_account(real))
    provider.launch(launched)
    RuntimeNotes(tmp_path / "colab" / launched.lease_id).write(machine="")
    seen = colab_provider(real, tmp_path).observe([handle_of(launched)])[0]
    assert (seen.liveness, seen.detail) == (Liveness.ENDED, "its launch was interrupted")
    assert not real.machines


def test_a_silent_machine_is_stopped_even_where_all_notes_are_lost(real, tmp_path):
    """What the database knows is enough. Guard: with `gone` said of a silent machine, it was never given back."""
    launched = asked(colab_account(real))
    machine = colab_provider(real, tmp_path, code="time.sleep(120)").launch(launched)
    elsewhere = colab_provider(real, tmp_path / "elsewhere")
    handle = Handle(lease_id=launched.lease_id, account=launched.account, external_id=machine)
    real.machines[machine].end()
    seen = elsewhere.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (Liveness.RUNNING, "its Jupyter server does not answer")
    assert elsewhere.collect_outputs(handle) == SessionOutput()
    elsewhere.stop(handle)
    assert elsewhere.observe([handle])[0].liveness is Liveness.ENDED


def test_colabs_silence_is_believed_for_a_while(provider, colab):
    """Guard: without it every round of dispatching waited for Colab's time-out."""
    provider._fresh_s = 3600.0
    colab.rules.add(Rule("GET /tun/m/ccu-info", status=500, times=None))
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            provider.capacity(colab_account(colab))
    assert len([r for r in colab.requests if "ccu-info" in r]) == 1
