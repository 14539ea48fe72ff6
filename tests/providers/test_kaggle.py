"""A session's life at Kaggle: launched once, its files brought, followed, stopped, collected, forgotten.

The real client library speaks to the emulator, which runs the real pushed script as a process.
"""

import base64
import bz2
import dataclasses
import hashlib
import io
import json
import zipfile

import pytest
from kagglesdk.datasets.types import dataset_api_service as datasets
from kagglesdk.kernels.types import kernels_api_service as kernels

from orchestrator.ports.providers import LaunchRejected, Liveness, ProviderUnavailable, SessionOutput
from orchestrator.providers.kaggle import KaggleProvider, http, launch
from orchestrator.providers.kaggle import kernel as source
from orchestrator.providers.kaggle.staging import Patience
from orchestrator.providers.session_records import MAX_OUTBOX
from orchestrator.testing.environments import driver_env
from tests.providers.kernels import CHECKPOINT, DATA, ended, handle_of, kaggle_account, request, slug, until
from worker.shared import wheel
from worker.shared.messages import Grant, GrantKind

WAIT = "print('up', flush=True); time.sleep(120)"
KEEP_ALL = """
(keep / "outbox.jsonl").write_text('{"kind": "report"}\\n{"kind": "offer"}\\n')
(keep / "jobs__job-1__f2__bb.safetensors").write_bytes(b"kept")
(keep / "jobs__job-2__f9__cc.safetensors").write_bytes(b"somebody else's place")
(keep / "notes.txt").write_text("not ours")
"""


def _launch(provider, account, **fields):
    launched = request(account, **fields)
    return launched, handle_of(launched, provider.launch(launched))


# --- launch -----------------------------------------------------------------------------------------------


def test_a_kernel_carries_the_worker_finds_its_files_and_is_private(provider, kaggle, works):
    works("""
import hashlib
for grant in (given["datasets"][0], given["resume"]):
    print(hashlib.sha256(pathlib.Path(grant["path"]).read_bytes()).hexdigest() == grant["sha256"], flush=True)
print(ticket["token"], ticket["budget_s"] < 60, given["seconds_left"] < 60, keep.name, flush=True)
""")
    launched, handle = _launch(provider, kaggle_account("alice"), resume=True)
    ended(provider, handle)
    said = list(provider.follow(handle))
    kernel = kaggle.kernel(slug(handle))
    assert said[:4] == [f"trainhop: kaggle session {kernel.session}", "True", "True", "a-lease-token True True working"]
    assert (kernel.owner, kernel.private, kernel.gpu, kernel.machine_shape) == ("alice", True, True, "NvidiaTeslaT4")
    assert kernel.timeout_s == launched.budget_s + launch.TIMEOUT_OVER_S
    assert all(d.private for d in kaggle.world.datasets.values())


@pytest.mark.parametrize("layout", ["nested", "flat", "nested links", "flat links"])
def test_files_are_found_however_kaggle_lays_them_out(provider, kaggle, works, layout):
    """Guard: with `rglob` alone nothing was found in a folder that is a link."""
    works("""
import hashlib
for grant in (given["datasets"][0], given["resume"]):
    print(hashlib.sha256(pathlib.Path(grant["path"]).read_bytes()).hexdigest() == grant["sha256"], flush=True)
""")
    kaggle.sessions.layout = layout
    _, handle = _launch(provider, kaggle_account("alice"), resume=True)
    ended(provider, handle)
    assert list(provider.follow(handle))[1:3] == ["True", "True"]


def test_a_t4_offers_what_it_shows(provider):
    """14.56 GiB: jobs that were planned for 14.71 did not fit."""
    room = provider.capacity(kaggle_account("alice"))
    assert (room.gpu, round(room.memory_bytes / 2**30, 2)) == (True, 14.56)


def test_another_accelerator_is_never_asked_for(provider, kaggle, works):
    """Kaggle gives a T4 where a P100 is asked for, and a P100 has no kernels in this torch."""
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice", accelerator="P100"))
    assert [s.said["machineShape"] for s in kaggle.seen("SaveKernel")] == ["NvidiaTeslaT4"]
    provider.stop(handle)


def test_a_machine_without_accelerator_needs_no_quota(provider, kaggle, works):
    works(WAIT)
    kaggle.world.people["alice"].gpu_hours = 0.0
    account = kaggle_account("alice", accelerator="none")
    assert provider.capacity(account).hours_left is None
    _, handle = _launch(provider, account)
    assert not kaggle.kernel(slug(handle)).gpu
    assert kaggle.world.reserved_s(kaggle.world.people["alice"]) == 0


def test_internet_only_where_something_needs_it(provider, kaggle, works):
    works(WAIT)
    _, alone = _launch(provider, kaggle_account("alice"))
    _, calling = _launch(provider, kaggle_account("bob"), assignment=None, inputs={}, server_url="http://127.0.0.1:9")
    assert not kaggle.kernel(slug(alone)).internet
    assert kaggle.kernel(slug(calling)).internet


def test_data_are_staged_once_and_an_old_checkpoint_goes_with_its_session(provider, kaggle, works):
    works("print('done', flush=True)")
    for _ in range(2):
        _, handle = _launch(provider, kaggle_account("alice"), resume=True)
        ended(provider, handle)
        provider.clean_up(handle)
    assert [slug for _, slug in kaggle.world.datasets] == [f"trainhop-data-{hashlib.sha256(DATA).hexdigest()[:24]}"]
    assert not kaggle.world.kernels
    assert len(kaggle.seen("StartBlobUpload")) == 3  # the data once, a checkpoint for each session


def test_a_launch_waits_until_kaggle_has_processed_its_files(provider, kaggle, works):
    """Guard: without waiting the kernel starts without its files, for a push waits for nothing."""
    works("print(given['datasets'][0]['path'], flush=True)")
    kaggle.datasets.processing_polls = 4
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    assert "trainhop-data" in list(provider.follow(handle))[1]


def test_files_that_take_too_long_are_found_by_the_next_try(provider, kaggle, works):
    works(WAIT)
    kaggle.datasets.processing_polls = 2
    provider.patience = Patience(ready_within_s=0.0)
    launched = request(kaggle_account("alice"), resume=True)
    with pytest.raises(ProviderUnavailable, match="is still processing"):
        provider.launch(launched)
    provider.patience = Patience(ready_within_s=60.0)
    assert provider.launch(launched)
    assert len(kaggle.seen("StartBlobUpload")) == 2


def test_an_upload_goes_on_where_the_connection_broke(provider, kaggle, works):
    works(WAIT)
    rule = kaggle.rules.add("PUT /upload", cut_after=1_000_000)
    _, handle = _launch(provider, kaggle_account("alice"), data=DATA * 100_000)
    assert rule.seen == 1
    (dataset,) = kaggle.world.datasets.values()
    (file,) = dataset.folder.iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == hashlib.sha256(DATA * 100_000).hexdigest()
    provider.stop(handle)


BUSY = {"status": 503, "body": "<html>busy</html>"}


@pytest.mark.parametrize("faults", [[{"cut_after": 1_000_000}, {"cut": True}, BUSY], [BUSY], [BUSY | {"done": True}]])
def test_an_upload_outlasts_breaks_and_a_busy_server(provider, kaggle, works, faults):
    """Guard: a break while asking what had arrived, or one answer of 503, gave up an upload of gigabytes."""
    works(WAIT)
    rules = [kaggle.rules.add("PUT /upload", **fault) for fault in faults]
    _, handle = _launch(provider, kaggle_account("alice"), data=DATA * 100_000)
    assert all(rule.seen == 1 for rule in rules)
    assert len(kaggle.seen("StartBlobUpload")) == 1
    (dataset,) = kaggle.world.datasets.values()
    (file,) = dataset.folder.iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == hashlib.sha256(DATA * 100_000).hexdigest()
    provider.stop(handle)


def test_an_upload_that_never_arrives_is_given_up(provider, kaggle, works):
    works(WAIT)
    provider.patience = Patience(sleep=lambda _: None)
    rule = kaggle.rules.add("PUT /upload", **BUSY, times=0)
    with pytest.raises(ProviderUnavailable):
        provider.launch(request(kaggle_account("alice")))
    assert rule.seen == http.MAX_BREAKS + 1


@pytest.mark.parametrize("fault", [BUSY, {"cut": True}])
def test_a_push_that_went_through_although_its_answer_was_lost_is_found(provider, kaggle, works, fault):
    """Guard: without asking for the kernel after a failed push the session would run unseen."""
    works(WAIT)
    kaggle.rules.add("SaveKernel", done=True, **fault)
    launched, handle = _launch(provider, kaggle_account("alice"))
    assert provider.launch(launched) == handle.external_id
    assert len(kaggle.world.kernels) == 1
    assert len(kaggle.seen("SaveKernel")) == 1


def test_a_push_that_did_not_arrive_is_unknown_for_a_while_and_then_over(provider, kaggle, works, clock):
    """Guard: without the noted trouble a person read that there was no such kernel, and not why."""
    works(WAIT)
    kaggle.rules.add("SaveKernel", cut=True)
    launched = request(kaggle_account("alice"))
    with pytest.raises(ProviderUnavailable):
        provider.launch(launched)
    handle = handle_of(launched)
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN
    clock.tick(3600)
    seen = provider.observe([handle])[0]
    assert seen.liveness is Liveness.ENDED
    assert seen.detail.startswith("it was not started: could not reach Kaggle to start a session")
    provider.clean_up(handle)


def test_a_push_that_shows_up_late_is_found_by_its_lease(provider, kaggle, works):
    works(WAIT)
    kaggle.rules.add("SaveKernel", done=True, cut=True)
    kaggle.rules.add("GetKernelSessionStatus", status=404, reason="Not found", times=2)
    launched = request(kaggle_account("alice"))
    with pytest.raises(ProviderUnavailable):
        provider.launch(launched)
    seen = provider.observe([handle_of(launched)])[0]
    assert (seen.liveness, seen.external_id) == (Liveness.RUNNING, "alice/trainhop-" + launched.lease_id)


def test_a_push_after_slow_staging_is_waited_for_as_long_as_any_other(provider, kaggle, works, clock):
    """Guard: counted from before the staging its time was over at once, and a kernel that showed up late ran unseen.

    Without the wait in `clean_up` a delete that came too early for it left it running, too.
    """
    works(WAIT)
    launched = request(kaggle_account("alice"))
    ((key, read),) = launched.inputs.items()

    def slowly():
        clock.tick(600)
        return read()

    kaggle.rules.add("SaveKernel", done=True, cut=True)
    kaggle.rules.add("GetKernelSessionStatus", status=404, reason="Not found", skip=1, times=2)
    with pytest.raises(ProviderUnavailable):
        provider.launch(dataclasses.replace(launched, inputs={key: slowly}))
    handle = handle_of(launched)
    assert provider.observe([handle])[0].liveness is Liveness.UNKNOWN
    kaggle.rules.add("DeleteKernel", status=404, reason="Not found", times=0)
    with pytest.raises(ProviderUnavailable, match="may still appear"):
        provider.clean_up(handle)
    kaggle.rules.clear()
    assert provider.observe([handle])[0].liveness is Liveness.RUNNING
    provider.stop(handle)


def test_a_script_that_would_be_too_long_is_refused_with_its_size(provider, works):
    works(WAIT)
    launched = request(kaggle_account("alice"))
    grant = Grant(
        key="jobs/job-1/f2/aa.safetensors", kind=GrantKind.CHECKPOINT, url="https://store.example/" + "x" * 400
    )
    assert launched.assignment is not None
    many = launched.assignment.model_copy(update={"uploads": (grant,) * 2000})
    with pytest.raises(LaunchRejected, match="at most 900,000"):
        provider.launch(dataclasses.replace(launched, assignment=many))


def test_the_real_worker_fits(works):
    """A third of the limit: the rest is for grants."""
    assert len(source.kernel_source(request(kaggle_account("alice")))) < source.MAX_SOURCE / 3


def test_a_session_that_exports_gets_the_code_for_it_and_no_gpu(provider, kaggle, works):
    """Guards: without `exports` in the request's script the session had no code; with `wants_gpu` in place of
    `takes_gpu` it took GPU hours."""
    works(WAIT)
    kaggle.world.people["alice"].gpu_hours = 0.0
    room = provider.capacity(kaggle_account("alice"))
    assert (room.hours_left, room.has_cpu) == (0.0, True)
    launched, handle = _launch(provider, kaggle_account("alice"), exports=True)
    kernel = kaggle.kernel(slug(handle))
    assert (kernel.gpu, kernel.timeout_s) == (False, launched.budget_s + launch.TIMEOUT_OVER_S)
    provider.stop(handle)
    text = source.kernel_source(launched)
    assert len(text) < source.MAX_SOURCE / 2.5
    assert "worker/export/run.py" in _packed_names(text)
    plain = source.kernel_source(dataclasses.replace(launched, exports=False))
    assert not any(name.startswith("worker/export/") for name in _packed_names(plain))


def test_a_session_of_a_chat_gets_the_code_for_it_and_the_gpu(provider, kaggle, works):
    """Guard: with `exports` alone in `kernel_source` the session had no code for a chat."""
    works(WAIT)
    launched, handle = _launch(provider, kaggle_account("alice"), chats=True)
    assert kaggle.kernel(slug(handle)).gpu
    provider.stop(handle)
    text = source.kernel_source(launched)
    assert len(text) < source.MAX_SOURCE / 2.5
    assert {"worker/chat/session.py", "worker/export/adapter.py", "worker/shared/chat.py"} <= set(_packed_names(text))


def test_the_adapter_of_an_export_goes_with_its_session(provider, kaggle, works):
    """Guard: as a data file it stayed in the account for ever."""
    works("print(pathlib.Path(given['datasets'][0]['path']).read_bytes(), flush=True)")
    launched = request(kaggle_account("alice"), exports=True)
    assert launched.assignment is not None
    (grant,) = launched.assignment.datasets
    adapter = grant.model_copy(update={"kind": GrantKind.ADAPTER})
    given = launched.assignment.model_copy(update={"datasets": (adapter,)})
    launched = dataclasses.replace(launched, assignment=given)
    handle = handle_of(launched, provider.launch(launched))
    ended(provider, handle)
    assert str(DATA) in list(provider.follow(handle))
    assert [slug for _, slug in kaggle.world.datasets] == [
        f"trainhop-resume-{launched.lease_id.removeprefix('lease-')}"
    ]
    provider.clean_up(handle)
    assert not kaggle.world.datasets


def _packed_names(text):
    """The files of the worker in a script."""
    packed = text.split('WORKER = """\n')[1].split('"""')[0]
    return zipfile.ZipFile(io.BytesIO(bz2.decompress(base64.b85decode(packed.replace("\n", ""))))).namelist()


def test_only_the_emulators_kernels_see_the_servers_disk(provider, tmp_path):
    """Removed: `any_folder` in `_room`; a job with a model of this computer was sent to Kaggle until it failed."""
    real = KaggleProvider(driver_env(tmp_path))
    real._access = provider._access
    assert not real.capacity(kaggle_account("alice")).any_folder
    assert provider.capacity(kaggle_account("alice")).any_folder


# --- life and end -----------------------------------------------------------------------------------------


def test_a_queued_kernel_lives(provider, kaggle, works):
    works(WAIT)
    kaggle.sessions.open_gate.clear()
    _, handle = _launch(provider, kaggle_account("alice"))
    seen = provider.observe([handle])[0]
    assert (seen.liveness, seen.detail) == (Liveness.RUNNING, "queued")
    kaggle.sessions.open_gate.set()
    until(lambda: provider.observe([handle])[0].detail == "running")


def test_what_a_session_kept_is_collected_by_its_key_and_nothing_else(provider, kaggle, works):
    """Guard: without the lease's prefix a kernel could write into another job's folder of the store."""
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    left = provider.collect_outputs(handle)
    assert [json.loads(m)["kind"] for m in left.messages] == ["report", "offer"]
    assert {key: path.read_bytes() for key, path in left.files.items()} == {"jobs/job-1/f2/bb.safetensors": b"kept"}
    assert provider.collect_outputs(handle) == left
    provider.clean_up(handle)
    assert provider.collect_outputs(handle) == SessionOutput()


def test_every_page_of_outputs_is_read(provider, works):
    works("""
for n in range(450):
    (keep / f"a{n}.txt").touch()
(keep / "outbox.jsonl").write_text("{}")
(keep / "jobs__job-1__f2__zz.safetensors").write_bytes(b"last page")
""")
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    assert list(provider.collect_outputs(handle).files) == ["jobs/job-1/f2/zz.safetensors"]


def test_of_a_huge_outbox_only_the_front_is_taken(provider, works, tmp_path):
    """Seen failing without the maximum of a download, and with that of reading alone: a kernel filled the server's disk
    or memory."""
    works(f"""
with (keep / "outbox.jsonl").open("wb") as outbox:
    outbox.write(b"first\\n")
    outbox.truncate({MAX_OUTBOX + (8 << 20)})
""")
    launched, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    messages = provider.collect_outputs(handle).messages
    assert messages[0] == "first"
    assert sum(map(len, messages)) < MAX_OUTBOX
    assert (tmp_path / "kaggle" / launched.lease_id / "files" / "outbox.jsonl").stat().st_size == MAX_OUTBOX


def test_an_error_page_is_not_taken_for_a_file(provider, kaggle, works):
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    kaggle.rules.add("GET /signed", status=200, body="<html>try later</html>")
    kaggle.rules.add("GET /signed", status=500, body="<html>oops</html>")
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            provider.collect_outputs(handle)
    assert len(provider.collect_outputs(handle).messages) == 2


@pytest.mark.parametrize(
    "name", ["../outbox.jsonl", "/etc/passwd", "jobs__job-1__f2__..__..__x", "jobs/job-1/f2/x", "a/../outbox.jsonl"]
)
def test_names_that_lead_elsewhere_are_not_fetched(provider, kaggle, works, clock, name):
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    kaggle.kill(slug(handle))
    ended(provider, handle)
    files = [{"fileName": name, "url": kaggle.endpoint + "/signed/x/y"}]
    kaggle.rules.add("ListKernelSessionOutput", status=200, body={"files": files, "log": "[]"}, times=0)
    clock.tick(3600)
    assert provider.collect_outputs(handle) == SessionOutput()


def test_a_signed_address_elsewhere_is_not_visited(provider, kaggle, works):
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    kaggle.kill(slug(handle))
    ended(provider, handle)
    files = [{"fileName": "outbox.jsonl", "url": "http://169.254.169.254/latest"}]
    kaggle.rules.add("ListKernelSessionOutput", status=200, body={"files": files, "log": ""})
    with pytest.raises(ProviderUnavailable, match="on a foreign host"):
        provider.collect_outputs(handle)


@pytest.mark.parametrize("end", ["complete", "error", "killed"])
def test_files_that_are_not_listed_yet_are_waited_for(provider, kaggle, works, clock, end):
    """Guard: waited for after COMPLETE alone, the checkpoints of a session that failed or was cut off were given up."""
    works(KEEP_ALL + {"complete": "", "error": "sys.exit(9)", "killed": WAIT}[end])
    _, handle = _launch(provider, kaggle_account("alice"))
    if end == "killed":
        until(lambda: "up" in provider.log(handle, 0, 10_000).decode())
        kaggle.kill(slug(handle))
    ended(provider, handle)
    kaggle.rules.add("ListKernelSessionOutput", status=200, body={"files": [], "log": ""}, times=1)
    with pytest.raises(ProviderUnavailable, match="yet"):
        provider.collect_outputs(handle)
    assert len(provider.collect_outputs(handle).files) == 1


def test_files_that_are_never_listed_are_given_up(provider, kaggle, works, clock):
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    kaggle.rules.add("ListKernelSessionOutput", status=200, body={"files": [], "log": ""}, times=2)
    with pytest.raises(ProviderUnavailable, match="yet"):
        provider.collect_outputs(handle)
    clock.tick(3600)
    assert provider.collect_outputs(handle) == SessionOutput()


def test_a_clock_that_was_set_back_waits_for_no_file(provider, kaggle, works, clock):
    """Guard: without the look at the session's end a clock set back by three days made it wait for three days."""
    works("print('nothing is kept')")
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    clock.tick(-3 * 86_400)
    assert not provider.collect_outputs(handle).files


def test_a_files_address_that_leads_nowhere_costs_that_file_one_more_try(provider, kaggle, works, clock):
    """Guard: taken for a session that is not there, its 404 gave up every file of it."""
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    rule = kaggle.rules.add("GET /signed/.*safetensors", status=404, reason="Not found", times=2)
    with pytest.raises(ProviderUnavailable, match="yet"):
        provider.collect_outputs(handle)
    clock.tick(3600)
    assert rule.seen == 1
    assert len(provider.collect_outputs(handle).messages) == 2  # one that leads nowhere for good keeps no other back


def test_a_look_into_a_running_session_does_not_end_its_collection(provider, kaggle, works):
    """Guard: a session that is about to be stopped is collected first; it may still leave more than was there then."""
    works("print('up', flush=True)\nwhile not (keep / 'go').exists(): time.sleep(0.02)\n" + KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    until(lambda: kaggle.kernel(slug(handle)).events)
    assert provider.collect_outputs(handle) == SessionOutput()
    (kaggle.kernel(slug(handle)).root / "working" / "go").touch()
    ended(provider, handle)
    assert len(provider.collect_outputs(handle).files) == 1


def test_words_of_a_kernel_that_is_gone_are_those_that_were_kept(provider, kaggle, works, tmp_path):
    works("print('up', flush=True)")
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    before = list(provider.follow(handle))
    kaggle.sessions.delete(kaggle.world.kernels.pop(("alice", slug(handle))))
    assert list(provider.follow(handle)) == before
    stranger = KaggleProvider(driver_env(tmp_path / "lost-notes", endpoint=kaggle.endpoint), fresh_s=0.0)
    assert list(stranger.follow(handle)) == []


@pytest.mark.parametrize("outputs", [True, False])
def test_a_run_that_was_cut_at_its_limit_is_over_with_or_without_files(provider, kaggle, works, clock, outputs):
    works(KEEP_ALL + WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    until(lambda: "up" in provider.log(handle, 0, 10_000).decode())
    kaggle.kill(slug(handle), outputs=outputs)
    assert "time limit" in ended(provider, handle).detail
    clock.tick(3600)
    assert len(provider.collect_outputs(handle).files) == outputs
    assert "up" in list(provider.follow(handle))


def test_kaggles_own_limit_ends_what_does_not_end_itself(provider, kaggle, works):
    works(WAIT)
    kaggle.sessions.time_factor = 0.6 / (60.0 + launch.TIMEOUT_OVER_S)
    _, handle = _launch(provider, kaggle_account("alice"))
    assert "time limit" in ended(provider, handle).detail


def test_the_script_ends_a_worker_that_overstays(provider, kaggle, works):
    """Guard: without its own clock the script would leave the end to Kaggle, which may keep no files."""
    works(KEEP_ALL + WAIT, stop_after_s=1.0)
    _, handle = _launch(provider, kaggle_account("alice"))
    seen = ended(provider, handle)
    assert seen.failed
    assert seen.detail.startswith("the kernel ended with an error")
    assert len(provider.collect_outputs(handle).files) == 1
    assert "time limit is reached" in provider.log(handle, 0, 10_000).decode()


def test_a_kernel_that_its_owner_deleted_is_over(provider, kaggle, works, clock):
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    kaggle.sessions.delete(kaggle.world.kernels.pop(("alice", slug(handle))))
    clock.tick(3600)
    seen = provider.observe([handle])[0]
    assert seen.liveness is Liveness.ENDED
    assert "deleted" in seen.detail
    assert provider.collect_outputs(handle) == SessionOutput()


def test_another_server_process_finds_everything_again(provider, kaggle, works, tmp_path):
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"))
    again = KaggleProvider(driver_env(tmp_path / "kaggle", endpoint=kaggle.endpoint), fresh_s=0.0)
    ended(again, handle)
    assert len(again.collect_outputs(handle).files) == 1


def test_a_removed_account_holds_nothing_up(provider, works):
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    provider.stop(handle)
    removed = handle_of(request(kaggle_account("alice")))
    removed.account.credentials = ""
    assert provider.observe([removed])[0].liveness is Liveness.ENDED
    assert provider.collect_outputs(removed) == SessionOutput()
    provider.clean_up(removed)


# --- its words --------------------------------------------------------------------------------------------


def test_lines_are_read_live_and_from_the_start_after_a_break(provider, kaggle, works):
    works("""
for n in range(6):
    print(f"line {n}", flush=True)
print("not for the server", file=sys.stderr, flush=True)
time.sleep(120)
""")
    _, handle = _launch(provider, kaggle_account("alice"))
    until(lambda: len(kaggle.kernel(slug(handle)).events) >= 8)
    kaggle.rules.add("logs/stream", cut_after=4)
    heard = []

    def apply_text(stream):
        for line in stream:
            heard.append(line)  # noqa: PERF402  what came before the break counts

    with pytest.raises(ProviderUnavailable, match="was lost"):
        apply_text(provider.follow(handle))
    said = [f"trainhop: kaggle session {kaggle.kernel(slug(handle)).session}", *(f"line {n}" for n in range(6))]
    assert heard == said[: len(heard)]
    assert len(heard) in (3, 4)  # of four events one may be an error's
    live = provider.follow(handle)
    assert [next(live) for _ in said] == said
    kaggle.kill(slug(handle))
    assert not [line for line in live if "not for" in line]
    ended(provider, handle)
    text = provider.log(handle, 0, 10_000).decode()
    assert text.count("line 0") == 1  # read three times, kept once
    assert "not for the server" in text
    provider.clean_up(handle)
    assert provider.log(handle, 0, 10_000).decode() == text


def test_a_kernel_that_prints_megabytes_is_read_to_its_end(provider, works):
    works("""
sys.stdout.write("x" * 9_000_000 + "\\n")
for n in range(2000):
    print("y" * 1000)
print("after all that", flush=True)
""")
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    assert list(provider.follow(handle))[-2:] == ["after all that", "trainhop: the worker ended with exit code 0"]


def test_a_log_of_a_session_that_nobody_follows_is_fetched_when_asked_for(provider, works):
    works(WAIT)
    _, handle = _launch(provider, kaggle_account("alice"))
    until(lambda: b"up" in provider.log(handle, 0, 1000))
    provider.stop(handle)


def test_what_is_said_to_the_server_is_not_shown_to_people(provider, works):
    works("""
print("first", flush=True)
print("@trainhop 00ff {}", flush=True)
print("second", flush=True)
""")
    _, handle = _launch(provider, kaggle_account("alice"))
    ended(provider, handle)
    assert "@trainhop 00ff {}" in list(provider.follow(handle))
    text = provider.log(handle, 0, 1000)
    assert b"\nfirst\nsecond\n" in text
    assert b"".join(provider.log(handle, n, 1) for n in range(len(text))) == text


def test_no_line_before_the_session_runs(provider, kaggle, works):
    works(WAIT)
    kaggle.sessions.open_gate.clear()
    _, handle = _launch(provider, kaggle_account("alice"))
    with pytest.raises(ProviderUnavailable):
        list(provider.follow(handle))
    assert provider.log(handle, 0, 100) == b""


def test_the_emulator_speaks_the_client_librarys_fields(kaggle, provider, works):
    """A new version of the library that renames something is noticed here."""
    works(KEEP_ALL)
    _, handle = _launch(provider, kaggle_account("alice"), resume=True)
    ended(provider, handle)
    provider.collect_outputs(handle)
    alice, name = kaggle.world.people["alice"], {"userName": "alice", "kernelSlug": slug(handle)}
    services = kaggle._desk.services
    told = {
        kernels.ApiGetKernelSessionStatusResponse: services["KernelsApiService"].GetKernelSessionStatus(alice, name),
        kernels.ApiListKernelSessionOutputResponse: services["KernelsApiService"].ListKernelSessionOutput(alice, name),
        kernels.ApiListKernelsResponse: services["KernelsApiService"].ListKernels(alice, {}),
        kernels.ApiKernelMetadata: services["KernelsApiService"].ListKernels(alice, {})["kernels"][0],
        kernels.ApiGetKernelResponse: services["KernelsApiService"].GetKernel(alice, name),
        kernels.ApiGetAcceleratorQuotaStatisticsResponse: services["KernelsApiService"].GetAcceleratorQuotaStatistics(
            alice, {}
        ),
        kernels.ApiAcceleratorQuota: services["KernelsApiService"].GetAcceleratorQuotaStatistics(alice, {})["gpuQuota"],
        datasets.ApiListDatasetsResponse: services["DatasetApiService"].ListDatasets(alice, {}),
        datasets.ApiDataset: services["DatasetApiService"].ListDatasets(alice, {})["datasets"][0],
        kernels.ApiCancelKernelSessionRequest: {"kernelSessionId": 1},
        kernels.ApiCancelKernelSessionResponse: {"errorMessage": ""},
        kernels.ApiSaveKernelRequest: kaggle.seen("SaveKernel")[0].said,
        datasets.ApiCreateDatasetRequest: kaggle.seen("CreateDataset")[0].said,
    }
    for kind, said in told.items():
        assert said.keys() <= {f.json_name for f in kind._fields}, kind.__name__


def test_the_packed_worker_is_the_installed_one():
    names = zipfile.ZipFile(
        io.BytesIO(bz2.decompress(base64.b85decode(source.packed(wheel.build().data).replace("\n", ""))))
    ).namelist()
    assert {"worker/__main__.py", "worker/shared/messages.py", "worker/training/trainer.py"} <= set(names)
    assert CHECKPOINT


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "print('trainhop: cannot start: earlier');print('trainhop: cannot start: no room for KGAT_alice \\x1b[1m')",
            "cannot start: no room for *** [1m",
        ),
        ("print('ERROR: No matching distribution\\nERROR: second')", "ERROR: No matching distribution"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("print('nothing of use')", ""),
    ],
)
def test_a_kernel_that_failed_is_told_in_its_own_words(provider, kaggle, code, words):
    """Guard: without its log's words a person read that the kernel ended with an error, whatever the cause."""
    kaggle.sessions.edit = lambda _: f"{code}\nraise SystemExit(1)"
    _, handle = _launch(provider, kaggle_account("alice"))
    said = f"the kernel ended with an error{': ' if words else ''}{words}"
    for seen in (ended(provider, handle), provider.observe([handle])[0]):
        assert (seen.detail, seen.failed) == (said, True)


def test_kaggles_own_words_of_a_failure_are_told_too(provider, kaggle):
    kaggle.sessions.edit = lambda _: "raise SystemExit(1)"
    _, handle = _launch(provider, kaggle_account("alice"))
    kaggle.kernel(slug(handle)).failure = "Your notebook tried to allocate more memory than is available."
    assert ended(provider, handle).detail == (
        "the kernel ended with an error: Your notebook tried to allocate more memory than is available."
    )


def test_a_run_that_ended_well_or_was_cut_off_has_not_failed(provider, kaggle, works):
    works("print('ERROR: printed by the model')")
    _, handle = _launch(provider, kaggle_account("alice"))
    seen = ended(provider, handle)
    assert (seen.detail, seen.failed) == ("", False)
