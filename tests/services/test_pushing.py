"""Pushes to the Hugging Face hub with its real client: one commit or none, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError
from orchestrator.domain.pushes import MAX_PUSHES, PushState
from orchestrator.services import hub_tokens, models, pushes, pushing
from orchestrator.services.copied_folder import leave_to_the_original
from orchestrator.services.jobs import delete
from orchestrator.services.members import remove_member
from orchestrator.services.pushes import Wish
from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.pushes import FILES, TOKEN, WEIGHTS, Desk, archive, keep_adapter
from tests.helpers.verdicts import evaluate, run, trained
from tests.helpers.world import World
from tests.services.test_member_removal import admin

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the library's own way to upload
RUNNING, PUSHED, FAILED = PushState.RUNNING, PushState.PUSHED, PushState.FAILED


@pytest.fixture
def desk(world: World, hub: HubEmulator) -> Desk:
    return Desk.of(world, hub)


@pytest.fixture
def desk1(world1: World, hub: HubEmulator) -> Desk:
    """The same on SQLite alone."""
    return Desk.of(world1, hub)


def test_a_push_is_one_commit_with_the_folder_of_the_adapter(desk: Desk) -> None:
    """Guards: with `publish` in a transaction, `Watch.check` failed. With `private=False` everybody could read it."""
    job = desk.finished()
    push = desk.pushed(job)
    assert (push.state, push.reason, push.made_commit) == (PUSHED, "", True)
    repo = desk.hub.repos["model", desk.repo]
    assert (repo.private, repo.commit) == (True, push.commit_id)
    assert desk.commits() == [f"Adapter of {job} ({push.id})"]
    assert (desk.job(job).adapter_sha256 or "none") in repo.history[-1].message
    names = set(desk.files()) - {".gitattributes"}
    assert names == {*FILES, "trainhop-provenance.json"}
    assert desk.files()["adapter_model.safetensors"] == WEIGHTS
    assert b"Is it better than its base?" in desk.files()["README.md"]
    assert (desk.facts()["job"], desk.facts()["verdict"]["answer"]) == (job, "not enough evidence")
    assert list(desk.context.folder.iterdir()) == []
    assert desk.events(job) == [("job.pushing", ""), ("job.pushed", f"to {desk.repo}")]
    assert {seen.authorization for seen in desk.hub.seen if "PUT" not in seen.request} == {f"Bearer {TOKEN}"}


def test_a_push_of_what_is_there_makes_no_commit(desk: Desk) -> None:
    """Guard: without the look at the commit's title, the newest commit counted as one of this push."""
    job = desk.finished()
    first = desk.pushed(job)
    again = desk.pushed(job)
    assert again.id != first.id
    assert (again.state, again.commit_id, again.made_commit) == (PUSHED, first.commit_id, False)
    assert len(desk.commits()) == 1
    evaluate(desk.world.ctx.uow, desk.job(job), trained(desk.world))
    third = desk.pushed(job)  # the card has changed
    assert (third.state, third.made_commit, len(desk.commits())) == (PUSHED, True, 2)


def test_candidates_of_one_model_share_a_repository(desk: Desk) -> None:
    """Guard: without `of_models` in `akin`, the second candidate was refused."""
    first, second, other = desk.finished(), desk.finished(), desk.finished()
    for job in (first, second):
        models.add(desk.world.ctx, desk.world.actors["alice"], "guide", job)
    assert desk.pushed(first).state is PUSHED
    assert desk.pushed(second).state is PUSHED
    refused = desk.pushed(other)
    assert (refused.state, len(desk.commits())) == (FAILED, 2)
    assert "has files that were not pushed from this job or its model" in refused.reason
    assert desk.pushed(other, replace=True).state is PUSHED


def fine(name: str, *permissions: str) -> list[dict[str, Any]]:
    return [{"entity": {"type": "user", "name": name}, "permissions": list(permissions)}]


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("read", "can only read"),
        (fine("alice-on-the-hub", "repo.content.read"), "no write permission"),
        (fine("somebody", "repo.write"), "no write permission"),
    ],
)
def test_a_token_that_cannot_write_is_refused_at_once_and_later(desk1: Desk, role: Any, words: str) -> None:
    """Guards: without the check in `start` it failed later. Without the one in `publish` there was a repository."""
    job = desk1.finished()
    push = desk1.start(job)
    desk1.hub.writes.roles[TOKEN] = role
    assert words in desk1.work(push).reason
    assert ("model", desk1.repo) not in desk1.hub.repos
    with pytest.raises(InvalidError, match=words) as caught:
        desk1.start(job)
    assert caught.value.problems[0][0] == "/repo"
    desk1.hub.writes.roles[TOKEN] = fine("alice-on-the-hub", "repo.write", "repo.content.read")
    assert desk1.pushed(job).state is PUSHED


def test_a_repository_of_somebody_else_is_refused(desk1: Desk) -> None:
    job = desk1.finished()
    with pytest.raises(InvalidError, match="belongs to another account"):
        desk1.start(job, repo="bob-on-the-hub/his")
    desk1.hub.writes.orgs["alice-on-the-hub"] = {"readers": "read", "lab": "write"}
    with pytest.raises(InvalidError, match="Your role in readers does not allow"):
        desk1.start(job, repo="readers/model")
    assert desk1.pushed(job, repo="lab/model").state is PUSHED
    with pytest.raises(InvalidError, match="must be OWNER/NAME"):
        desk1.start(job, repo="alice-on-the-hub/../x")
    hub_tokens.forget_token(desk1.world.ctx, "alice")
    with pytest.raises(InvalidError, match="trainhop hub login"):
        desk1.start(job)


def test_a_public_repository_needs_a_word(desk1: Desk) -> None:
    """Guard: without the look at `private` the adapter was public."""
    job = desk1.finished()
    empty = {".gitattributes": b""}
    desk1.hub.writes.add(Repo(id=desk1.repo, files=empty), "alice-on-the-hub")
    refused = desk1.pushed(job)
    assert (refused.state, desk1.commits()) == (FAILED, [])
    assert "is public. Push with --public" in refused.reason
    assert desk1.events(job)[-1] == ("job.not_pushed", refused.reason)
    again = desk1.pushed(job, is_public=True)
    assert (again.id, again.state) == (refused.id, PUSHED)
    new = desk1.pushed(job, repo="alice-on-the-hub/open", is_public=True)
    assert (new.state, desk1.hub.repos["model", new.repo].private) == (PUSHED, False)


def test_files_of_others_are_kept_unless_replaced(desk1: Desk) -> None:
    """Guards: without `_refuse_foreign` the README was lost. Without `gitignore_content` the weights were left out."""
    job = desk1.finished()
    theirs = {"README.md": b"mine", "notes.txt": b"by hand", ".gitignore": b"*.safetensors\n"}
    desk1.hub.writes.add(Repo(id=desk1.repo, files=theirs, private=True), "alice-on-the-hub")
    refused = desk1.pushed(job)
    assert (refused.state, desk1.files()) == (FAILED, theirs)
    assert "push with --replace" in refused.reason
    assert desk1.pushed(job, replace=True).state is PUSHED
    assert desk1.files()["notes.txt"] == b"by hand"
    assert desk1.files()["adapter_model.safetensors"] == WEIGHTS
    desk1.hub.writes.push(desk1.repo, "edited by hand", {"README.md": b"better words"})
    assert "exists and has files" in desk1.pushed(job).reason
    assert desk1.files()["README.md"] == b"better words"


REQUESTS = (
    "GET /api/whoami-v2",
    "GET /api/models/alice-on-the-hub/trail-guide$",
    "POST /api/repos/create",
    "GET /api/models/alice-on-the-hub/trail-guide/commits/main",
    "POST /api/validate-yaml",
    "POST /api/models/alice-on-the-hub/trail-guide/preupload",
    "POST /alice-on-the-hub/trail-guide.git/info/lfs",
    "PUT /lfs/",
    "POST /api/models/alice-on-the-hub/trail-guide/commit/",
)


@pytest.mark.parametrize("fault", [{"cut": True}, {"status": 500}, {"status": 429, "headers": {"Retry-After": "7"}}])
@pytest.mark.parametrize("done", [False, True])
def test_whatever_request_fails_there_is_one_commit(desk1: Desk, fault: dict[str, Any], done: bool) -> None:
    """Guards: without `_own` in `publish` or the parent of the commit, a lost answer led to a second commit.

    With the hub's own client, each fault is a wait of seconds.
    """
    job = desk1.finished()
    for number, request in enumerate(REQUESTS):
        repo = f"alice-on-the-hub/try-{number}"
        match = request.replace("trail-guide", f"try-{number}")
        push = desk1.start(job, repo=repo)
        desk1.hub.rules.add(match, done=done, skip=number % 2, **fault)
        for _ in range(2):
            push = desk1.work(push)
            assert push.state is not FAILED, push.reason
            assert len(desk1.commits(repo)) <= 1
        assert (push.state, len(desk1.commits(repo)), push.made_commit) == (PUSHED, 1, True), request
        assert desk1.hub.repos["model", repo].commit == push.commit_id
        desk1.hub.rules.clear()


def test_a_lost_answer_is_found_while_the_history_is_away(desk: Desk) -> None:
    """The commit has landed, and neither it nor the history answers. It is found by the id of the push."""
    desk.hub.rules.add("POST .*/commit/main", status=500, done=True)
    desk.hub.rules.add("GET .*/commits/", status=503, skip=1)
    push = desk.pushed(desk.finished())
    assert (push.state, len(desk.commits())) == (RUNNING, 1)
    assert push.reason == "Hugging Face is busy (HTTP 503)."
    commit = desk.hub.repos["model", desk.repo].commit
    desk.hub.writes.push(desk.repo, "somebody's", {"x": b"y"})
    push = desk.work(push)
    assert (push.state, push.commit_id) == (PUSHED, commit)
    assert len(desk.commits()) == 2


def test_a_commit_that_came_before_is_not_overwritten(desk: Desk) -> None:
    """Guard: without `parent_commit` both commits were there, and the first one's README was lost."""
    real = desk.hub.at

    def meanwhile(instant: str) -> None:
        if instant.startswith("begin POST") and instant.endswith("/commit/main"):
            desk.hub.at = real
            desk.hub.writes.push(desk.repo, "meanwhile", {"README.md": b"theirs"})

    desk.hub.at = meanwhile
    push = desk.pushed(desk.finished())
    assert (push.state, desk.commits()) == (RUNNING, ["meanwhile"])
    assert "was changed by another client" in push.reason
    push = desk.work(push)
    assert (push.state, desk.files()["README.md"]) == (FAILED, b"theirs")
    assert "exists and has files" in push.reason


@pytest.mark.parametrize(
    ("status", "asked", "wait"),
    [(429, "31", 31), (429, "100000", 900), (503, "0", 1), (409, None, 5), (429, "soon", 5), (502, "45", 45)],
)
def test_the_hub_says_how_long_to_wait_within_bounds(desk1: Desk, status: int, asked: str | None, wait: float) -> None:
    """Guards: without the bounds a push slept for a day, or asked again at once."""
    headers = {} if asked is None else {"Retry-After": asked}
    desk1.hub.rules.add("POST .*/lfs/objects/batch", status=status, headers=headers)
    push = desk1.pushed(desk1.finished())
    assert (push.state, push.attempts, push.not_before - desk1.world.clock.now()) == (RUNNING, 1, wait)
    assert f"HTTP {status}" in push.reason
    seen = len(desk1.hub.seen)
    pushing.work(desk1.context, push.id)
    assert len(desk1.hub.seen) == seen
    assert desk1.work(push).state is PUSHED


def test_a_hub_that_is_down_is_given_up_and_can_be_repeated(desk: Desk) -> None:
    """Guard: with a new id for the repetition, its commit was not recognised."""
    job = desk.finished()
    push = desk.start(job)
    desk.hub.rules.add("GET /api/whoami", times=0, status=503)
    for _ in range(len(pushing.RETRY_S)):
        push = desk.work(push)
        assert push.state is RUNNING
    push = desk.work(push)
    assert (push.state, push.reason) == (
        FAILED,
        "Hugging Face is busy (HTTP 503). It was tried 6 times. Push again later.",
    )
    assert desk.job(job).state == "succeeded"
    desk.hub.rules.clear()
    again = desk.start(job)
    assert (again.id, again.state, again.attempts, again.reason) == (push.id, RUNNING, 0, "")
    assert desk.work(again).state is PUSHED


@pytest.mark.parametrize(
    ("match", "status", "words"),
    [
        ("POST /api/repos/create", 403, "does not let you write"),
        ("POST .*/lfs/objects/batch", 401, "does not accept your token"),
        ("POST .*/commit/main", 403, "does not let you write"),
        ("POST .*/commit/main", 404, "was not found"),
        ("POST .*/commit/main", 413, "too large"),
        ("POST .*/commit/main", 402, "payment"),
        ("POST .*/commit/main", 418, "HTTP 418"),
        ("PUT /lfs/", 403, "does not let you write"),
        ("POST /api/validate-yaml", 400, "does not accept the files"),
    ],
)
def test_a_refusal_is_words_and_publishes_nothing(desk1: Desk, match: str, status: int, words: str) -> None:
    desk1.hub.rules.add(match, times=0, status=status, body={"error": "https://hub/secret?Signature=x", "errors": []})
    push = desk1.pushed(desk1.finished())
    assert (push.state, desk1.commits()) == (FAILED, [])
    assert words in push.reason
    assert "Signature" not in push.reason


class KilledError(Exception):
    """The server died here."""


def test_a_killed_server_goes_on_and_makes_one_commit(desk: Desk) -> None:
    """Guard: without `running` in `push_due` it stayed where it was."""
    job = desk.finished()
    for alive in range(12):
        repo = f"alice-on-the-hub/kill-{alive}"
        push = desk.start(job, repo=repo)
        turns = iter(range(alive))

        def die(turns: Any = turns) -> None:
            if next(turns, None) is None:
                raise KilledError

        desk.world.watch.between = die
        with contextlib.suppress(KilledError):
            pushing.work(desk.context, push.id)
        desk.world.watch.between = lambda: None
        assert len(desk.commits(repo)) <= 1
        push = desk.work(push)
        assert (push.state, len(desk.commits(repo))) == (PUSHED, 1)


def test_a_job_that_is_pushed_is_not_deleted(desk: Desk) -> None:
    """Guards: without the refusal the push of a deleted job went on. Without `delete(pushes)` its rows stayed."""
    job = desk.finished()
    alice = desk.world.actors["alice"]
    push = desk.start(job)
    with pytest.raises(ConflictError, match="is being pushed"):
        delete(desk.world.ctx, alice, job)
    desk.work(push)
    delete(desk.world.ctx, alice, job)
    with desk.world.ctx.uow() as tx:
        assert tx.pushes.of_job(job) == []
    pushing.work(desk.context, push.id)


def test_pushes_of_a_removed_member_end(desk: Desk) -> None:
    """Guard: without `end_pushes` it was tried for nobody."""
    push = desk.start(desk.finished())
    remove_member(desk.world.ctx, admin(desk.world), "alice")
    assert (desk.one(push).state, desk.one(push).reason) == (FAILED, "Its owner was removed from this server.")
    pushing.push_due(desk.context)
    assert ("model", desk.repo) not in desk.hub.repos


def test_a_copy_of_the_folder_leaves_pushes_to_the_original(desk: Desk) -> None:
    """Guard: without the loop in `leave_to_the_original` both pushed."""
    push = desk.start(desk.finished())
    leave_to_the_original(desk.world.ctx)
    assert (desk.one(push).state, "original" in desk.one(push).reason) == (FAILED, True)


def test_a_clock_that_jumps_back_does_not_keep_a_push_waiting(desk: Desk) -> None:
    """Guard: without `pushes` in `_COMPARED` it waited for as long as the clock had jumped."""
    desk.hub.rules.add("POST /api/repos/create", status=503)
    push = desk.pushed(desk.finished())
    with desk.world.ctx.uow() as tx:
        tx.times.shift(-3600)
    assert desk.one(push).not_before == push.not_before - 3600


def test_one_push_of_a_job_at_a_time(desk: Desk) -> None:
    """Guard: without the look at the running one there were two."""
    job = desk.finished()
    push = desk.start(job)
    assert desk.start(job).id == push.id
    with pytest.raises(ConflictError, match=f"is being pushed to {desk.repo}"):
        desk.start(job, repo="alice-on-the-hub/other")
    with pytest.raises(ConflictError, match="has no adapter"):
        desk.start(desk.world.submit("alice"))
    bob = replace(desk.world.actors["bob"], role=admin(desk.world).role)
    with pytest.raises(ForbiddenError, match="Only the owner"):
        pushes.start(desk.world.ctx, bob, job, Wish(repo=desk.repo))


def test_a_request_with_a_key_is_carried_out_once(desk: Desk) -> None:
    """Guard: without `_earlier` the second request began another push."""
    job = desk.finished()
    push = desk.start(job, key="k")
    desk.work(push)
    assert desk.start(job, key="k").id == push.id
    with pytest.raises(ConflictError, match="Idempotency-Key was used"):
        desk.start(job, key="k", is_public=True)


def test_a_job_has_a_limited_number_of_pushes(desk1: Desk) -> None:
    job = desk1.finished()
    first = desk1.pushed(job)
    with desk1.world.ctx.uow() as tx:
        for number in range(MAX_PUSHES - 1):
            tx.pushes.add(replace(first, id=f"push-{number}"))
    with pytest.raises(ConflictError, match=f"at most {MAX_PUSHES} pushes"):
        desk1.start(job)


def test_one_of_each_member_is_worked_on(desk1: Desk) -> None:
    """Guard: with a call of each push, both were sent at once."""
    first = desk1.start(desk1.finished())
    desk1.world.clock.tick(1)
    second = desk1.start(desk1.finished(), repo="alice-on-the-hub/second")
    pushing.push_due(desk1.context)
    desk1.context.running.gather({"alice": lambda: None}, 60.0, lambda: None)
    assert [desk1.one(push).state for push in (first, second)] == [PUSHED, RUNNING]
    pushing.push_due(desk1.context)
    desk1.context.running.gather({"alice": lambda: None}, 60.0, lambda: None)
    assert desk1.one(second).state is PUSHED


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a zip", "The archive is damaged"),
        (archive({**FILES, "adapter_model.safetensors": b"other"}), "is damaged: sha256"),
        (archive({"README.md": b""}), "has no adapter_model.safetensors"),
        (archive({**FILES, "../outside": b"x"}), "unsafe entry"),
    ],
)
def test_a_damaged_archive_is_not_pushed(desk1: Desk, data: bytes, words: str) -> None:
    """Guard: without `verify_weights` other weights were published under the job's hash."""
    job = desk1.finished()
    keep_adapter(desk1.world.ctx.uow, desk1.world.store, job, desk1.world.folder, data)
    push = desk1.pushed(job)
    assert (push.state, ("model", desk1.repo) in desk1.hub.repos) == (FAILED, False)
    assert words in push.reason
    assert list(desk1.context.folder.iterdir()) == []


def test_a_full_disk_is_words(desk1: Desk) -> None:
    """Guard: without `_refuse_full_disk` the push took the last bytes of the server's disk."""
    desk1.context = replace(desk1.context, spare_bytes=1 << 60)
    push = desk1.pushed(desk1.finished())
    assert (push.state, "Make room there" in push.reason) == (FAILED, True)
    assert ("model", desk1.repo) not in desk1.hub.repos


def test_other_bytes_in_the_store_are_not_pushed(desk1: Desk) -> None:
    """Guard: without the comparison in `_download` an exchanged file was pushed."""
    job = desk1.finished()
    key = desk1.job(job).adapter_key
    stored = Path(desk1.world.folder / "store" / (key or ""))
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes() + b"more")
    assert "is damaged in its store" in desk1.pushed(job).reason
    stored.unlink()
    assert "missing in its store" in desk1.pushed(job).reason


def test_the_push_of_the_job_file_follows_the_job(desk: Desk) -> None:
    """Guards: without `push_finished` there was none. With the keys in the assignment, older workers refused it."""
    job = desk.world.submit("alice", hub_model_id=desk.repo, hub_private=False)
    run(desk.world, "b" * 64)
    assert desk.job(job).state == "succeeded"
    (push,) = pushes.listed(desk.world.ctx, desk.world.actors["alice"], job)
    assert (push.repo, push.is_public, push.state) == (desk.repo, True, RUNNING)
    for worker in desk.world.workers:
        assert worker.assignment is not None
        assert "hub" not in json.dumps(worker.assignment.spec.model_dump(mode="json"))
    keep_adapter(desk.world.ctx.uow, desk.world.store, job, desk.world.folder)
    assert desk.work(push).state is PUSHED
    assert desk.pushed(job, repo=None).made_commit is False
