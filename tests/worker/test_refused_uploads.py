"""A store that refuses the addresses of its grants: the worker waits longer each time, says why, and turns to the
server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.emulators.drive import Drive, Rule
from tests.helpers.session_desk import PATIENCE_S, SPEC, Desk, Server, snapshot
from worker.agent import transfers
from worker.agent.offline import KeepFolder
from worker.agent.saver import MAX_RETRY_S, RETRY_S, TRIES_TO_THE_END, Saver, pause_after
from worker.agent.session import Session
from worker.agent.time_ledger import Ledger
from worker.agent.transfers import AddressRefused, NotTaken, UnusableGrant
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.agent.upload_grants import REFUSALS, Uploads
from worker.shared.messages import GRANT_HEADER, Assignment, Grant, GrantKind, Offer, Report

CHECKPOINT = GrantKind.CHECKPOINT
ADDRESS = "https://store.example/k?upload_id=s3cret"


def grant(key: str, url: str = ADDRESS) -> Grant:
    return Grant(key=key, kind=CHECKPOINT, url=url, resumable=True)


def at(drive: Drive, key: str) -> Grant:
    """A grant whose address Drive refuses: it knows of no such upload."""
    return grant(key, f"{drive.url}/upload/drive/v2/files?upload_id=s3cret")


@pytest.mark.parametrize(
    ("status", "of_the_server", "of_another"),
    [
        (401, Stale, AddressRefused),
        (403, Stale, AddressRefused),
        (404, Stale, AddressRefused),
        (413, Refused, AddressRefused),
        (503, NotTaken, NotTaken),
        (507, NotTaken, NotTaken),
    ],
)
def test_only_the_servers_own_words_end_a_session(status: int, of_the_server: type, of_another: type) -> None:
    """Guard: with every 403 taken for the server's, a store or a tunnel that wants a sign-in ended the session."""
    body = {"type": "urn:trainhop:problem:unavailable", "title": "No", "status": status, "detail": "not now"}
    ours = transfers._refusal(grant("k"), httpx.Response(status, json=body))
    other = transfers._refusal(grant("k"), httpx.Response(status, text=f"<html>{ADDRESS} wants a sign-in</html>"))
    assert (type(ours), type(other)) == (of_the_server, of_another)
    assert (str(ours), str(other)) == (f"upload of k: {status}: not now", f"upload of k: HTTP {status}")


@pytest.mark.parametrize("status", [403, 404])
def test_a_proxys_page_ends_no_download(status: int) -> None:
    """Guard: with every 404 taken for the server's, a tunnel that was down ended the session: "damaged"."""
    from_server = Grant(key="k", kind=CHECKPOINT, url=ADDRESS, headers={GRANT_HEADER: "a.b"})
    page = httpx.Response(status, text=f"<html>{ADDRESS} is offline</html>")
    ours = httpx.Response(status, json={"type": "urn:trainhop:problem:not-found", "detail": "it is gone"})
    away = transfers._download_error(from_server, page)
    assert (type(away), str(away)) == (ServerAway, f"download of k: HTTP {status}")
    assert isinstance(transfers._download_error(from_server, ours), transfers.DamagedError)
    assert isinstance(transfers._download_error(grant("k"), page), transfers.DamagedError), (
        "an address that has expired"
    )


def test_a_download_that_waits_says_what_the_server_says() -> None:
    """Guard: with the bare status, nobody learnt that the server has to sign in to its store again."""
    said = {"type": "urn:trainhop:problem:unavailable", "detail": "The store does not answer: sign in again"}
    waits = transfers._download_error(grant("k"), httpx.Response(503, json=said))
    assert str(waits) == "download of k: 503: The store does not answer: sign in again"


def test_a_refusal_quotes_no_address(drive: Drive, tmp_path: Path) -> None:
    """Guard: with any text of the store taken for its reason, it could repeat the address, which is a permission."""
    (tmp_path / "file").write_bytes(b"x")
    to = at(drive, "k")
    drive.rules.add(Rule("PUT", status=401, reason=f"no {ADDRESS}"), Rule("PUT", status=401, reason="authError"))
    with pytest.raises(AddressRefused, match=r"^upload of k: the upload session has expired: HTTP 401$"):
        transfers.upload(to, tmp_path / "file")
    with pytest.raises(AddressRefused, match=r"HTTP 401 authError$"):
        transfers.upload(to, tmp_path / "file")
    drive.rules.add(Rule("PUT", status=403, reason="storageQuotaExceeded"))
    with pytest.raises(UnusableGrant, match="no space") as full:
        transfers.upload(to, tmp_path / "file")
    assert not isinstance(full.value, AddressRefused), "the server has no more space there"


def test_after_two_refusals_in_a_row_files_go_through_the_server(drive: Drive, tmp_path: Path) -> None:
    """Guard: without the reset, two addresses that had expired days apart sent all files through the server."""
    (tmp_path / "file").write_bytes(b"x")
    good = Grant(key="good", kind=CHECKPOINT, path=str(tmp_path / "stored"))
    uploads = Uploads([], lambda _, count: [at(drive, "direct")] * count, lambda _: at(drive, "server"))

    def is_refused() -> None:
        with pytest.raises(AddressRefused):
            uploads.send(at(drive, "refused"), tmp_path / "file")

    is_refused()
    uploads.send(good, tmp_path / "file")
    is_refused()
    assert uploads.take(CHECKPOINT).key == "direct"
    is_refused()
    assert uploads.take(CHECKPOINT).key == "server"
    uploads.send(good, tmp_path / "file")
    assert (uploads.take(CHECKPOINT).key, uploads.take(GrantKind.ADAPTER).key) == ("server", "server")


def test_a_machine_that_cannot_call_goes_on_with_its_own_grants(drive: Drive, tmp_path: Path) -> None:
    """Guard: turned to a server that nobody can call, it gave up its grants after two tries."""
    (tmp_path / "file").write_bytes(b"x")
    uploads = Uploads([at(drive, f"k{number}") for number in range(4)], lambda *_: [])
    for _ in range(REFUSALS + 1):
        with pytest.raises(AddressRefused):
            uploads.send(uploads.take(CHECKPOINT), tmp_path / "file")
    assert uploads.take(CHECKPOINT).key == "k3"


def test_pauses_grow_also_for_a_session_that_only_waits_for_this() -> None:
    """Guard: with `RETRY_S` as the longest pause at the end, a local worker tried every 2 s for ever."""
    training = [pause_after(tries, RETRY_S, None) for tries in range(1, 8)]
    assert training == [2, 4, 8, 16, 32, 60, 60]
    hours_left = [pause_after(tries, RETRY_S, 36_000.0) for tries in range(1, 8)]
    assert hours_left == training
    assert pause_after(100, RETRY_S, 100.0) == 100.0 / TRIES_TO_THE_END
    assert pause_after(100, RETRY_S, -5.0) == RETRY_S
    assert pause_after(10_000, RETRY_S, None) == MAX_RETRY_S


@pytest.mark.parametrize(
    ("error", "pauses"), [(AddressRefused("no"), [1, 2, 3]), (NotTaken("no"), [1, 2, 3]), (ServerAway("no"), [1, 1, 1])]
)
def test_what_the_store_refuses_is_told_until_it_is_stored(
    tmp_path: Path, error: ServerAway, pauses: list[int]
) -> None:
    """Guards: without `unsaved("")` the reason stayed for good; with growing pauses only for unusable grants, a file
    was sent every 2 s to a store that was away."""
    failures, paused_after = [error] * 3, list[int]()

    class Patient(Saver):
        def _pause(self, tries: int = 1) -> None:
            paused_after.append(tries)

    class Refusing(Desk):
        def send(self, grant: Grant, path: Path) -> None:
            if failures:
                raise failures.pop()
            super().send(grant, path)

    desk = Refusing(Server(tmp_path), tmp_path, Patient)
    desk.saver.take(snapshot(7))
    assert desk.saver.wait_until_saved(PATIENCE_S)
    assert desk.unsaved_words == ["the checkpoint of step 7 is not in the store yet: no"] * 3 + [""]
    assert paused_after == pauses
    assert [m.manifest.step for m in desk.server.heard if isinstance(m, Offer)] == [7]
    desk.saver.stop()
    assert desk.outbox.close(PATIENCE_S)


def session_of(folder: Path, server: Server, keep: KeepFolder | None = None, *granted: Grant) -> Session:
    told = Assignment(job="j", lease="l", fence=1, spec=SPEC, seconds_left=600.0, datasets=(), uploads=granted)
    session = Session(told, server, folder, Ledger(began=0.0), keep)
    session._outbox.open()
    return session


def problems(server: Server) -> list[str]:
    return [m.problem for m in server.heard if isinstance(m, Report)]


def test_reports_say_why_nothing_is_saved_until_it_is(tmp_path: Path) -> None:
    """Guard: without the beat in `unsaved` the reason waited for the next report, and was gone by then."""
    server = Server(tmp_path)
    session = session_of(tmp_path, server)
    session.unsaved("the adapter is not in the store yet: no")
    server.wait_until(lambda: bool(problems(server)))
    session.unsaved("")
    assert session._outbox.close(PATIENCE_S)
    session.refused("the test is over")
    assert (problems(server)[0], problems(server)[-1]) == ("the adapter is not in the store yet: no", "")


@pytest.mark.parametrize("takes_uploads", [False, True])
def test_files_that_stay_on_the_machine_are_told_of(tmp_path: Path, takes_uploads: bool) -> None:
    """A store that takes no uploads from outside is no problem, one that refuses them is."""
    server = Server(tmp_path)
    told = Assignment(job="j", lease="l", fence=1, spec=SPEC, seconds_left=600.0, datasets=())
    session = session_of(
        tmp_path, server, KeepFolder(tmp_path / "keep", told), *([grant("k")] if takes_uploads else [])
    )
    session._hold("nothing can be uploaded from this machine")
    session._beat(urgent=True)
    assert session._outbox.close(PATIENCE_S)
    session.refused("the test is over")
    words = "nothing can be uploaded from this machine: checkpoints stay on this machine until the server collects them"
    assert problems(server)[-1] == (words if takes_uploads else "")
