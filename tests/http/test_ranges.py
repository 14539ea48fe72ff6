"""Files of the server on a bad line: any part of them can be had, and a download goes on where it was cut off.

A real server, a relay that breaks connections, and the code that workers and the command line download with.
"""

import contextlib
import hashlib
import json
import secrets

import pytest

from orchestrator.services.read_grants import bound
from tests.http.http_client import Machine, People
from tests.http.http_client import served as live
from tests.http.proxy import BadLine
from trainhop.connection import Connection
from trainhop.download import fetch
from trainhop.errors import Error
from worker.agent import transfers
from worker.agent.uplink import ServerAway
from worker.shared.messages import Grant, GrantKind
from worker.shared.resumable_upload import Patience

SIZE = 9_000_000
ADAPTER = secrets.token_bytes(SIZE)
SHA256 = hashlib.sha256(ADAPTER).hexdigest()
CUTS = [400_000, 5_000_000, 100_000]
SLACK = 1.05
"""What may come twice is what was under way when a line broke, and some headers."""


@pytest.fixture
def sqlite_app(make_server, tmp_path, drive):
    return make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", drivers={"drive": {"endpoint": drive.url}})


@pytest.fixture(params=["local", "drive"])
def served(sqlite_app, provider, drive, tmp_path, request):
    """A server on a port of its own with a finished job of ann, whose adapter lies in either store."""
    with live(sqlite_app) as api:
        people = People.of(api)
        if request.param == "drive":
            body = {"credentials": json.dumps(drive.authorized_user())}
            assert people.admin.call("PUT", "/stores/drive", json=body).is_success
        job = people.ann.submit()["id"]
        machine = Machine.launched(api, provider)
        machine.start()
        machine.save(10, tmp_path)
        assert machine.finish(10, ADAPTER).status_code == 204
        people.ann.submit()
        reader = Machine.launched(api, provider)
        with contextlib.closing(BadLine(str(api.client.base_url))) as line:
            found = Served(people.ann, job, reader.lease, line)
            yield found
            found.client._http.close()


class Served:
    """Ann at her server; `line` is how machines and her command line reach it."""

    def __init__(self, ann, job: str, lease: str, line: BadLine) -> None:
        self.ann, self.job, self.lease, self.path, self.line = ann, job, lease, f"/jobs/{job}/adapter", line
        self.client = Connection(line.url, ann.token)

    def grant(self) -> Grant:
        """What a worker on another computer is given to read the same file."""
        ctx = self.ann.api.app.context
        with ctx.uow() as tx:
            job, lease = tx.jobs.get(self.job), tx.leases.get(self.lease)
        store = ctx.stores.get(job.adapter_store)
        given = store.grant_download(job.adapter_key, GrantKind.ADAPTER, sha256=SHA256, size=SIZE, shares_disk=False)
        url = self.line.url + "/api/v1" + given.url.partition("/api/v1")[2]
        return bound(given.model_copy(update={"url": url}), lease)


def test_any_part_is_given_of_what_lies_in_any_store(served):
    """Guards: without `start` in a store's `read` the first bytes came for any others, without `[:left]` too many."""
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=8999990-", SIZE - 10, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        ("bytes=-99999999", 0, SIZE),
        ("bytes=8388600-8388700", 8_388_600, 8_388_701),
        ("bytes=5-99999999", 5, SIZE),
    ):
        answer = served.ann.get(served.path, headers={"Range": asked})
        assert (answer.status_code, answer.content == ADAPTER[start:end]) == (206, True), asked
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(end - start)
        assert (answer.headers["etag"], answer.headers["accept-ranges"]) == (f'"{SHA256}"', "bytes")


def test_what_is_no_single_range_gets_the_whole(served):
    """Guard: without the look at its order a range that ends before it begins was an answer of fewer bytes than
    none."""
    for asked in ("bytes=0-1,4-5", "bytes=9-5", "bytes=-", "lines=1-2", "bytes=a-b"):
        answer = served.ann.get(served.path, headers={"Range": asked})
        assert (answer.status_code, answer.content == ADAPTER) == (200, True), asked
        assert "content-range" not in answer.headers


def test_a_range_beyond_the_end_is_refused(served):
    """Guard: without the comparison with the size an answer of no bytes, or of fewer than none, was promised."""
    for asked in (f"bytes={SIZE}-", "bytes=99999999-", "bytes=-0"):
        answer = served.ann.get(served.path, headers={"Range": asked})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}"), asked
        assert answer.json()["detail"] == f"The range is not valid. The file has {SIZE} bytes."


def test_a_part_of_another_file_is_not_taken_for_one_of_this(served):
    """Guard: without `If-Range` a browser went on with a file that had been another one."""
    same = served.ann.get(served.path, headers={"Range": "bytes=3-5", "If-Range": f'"{SHA256}"'})
    assert (same.status_code, same.content) == (206, ADAPTER[3:6])
    other = served.ann.get(served.path, headers={"Range": "bytes=3-5", "If-Range": '"another"'})
    assert (other.status_code, len(other.content)) == (200, SIZE)


def test_what_there_is_can_be_asked_for_without_fetching_it(served):
    """Guard: without routes for HEAD these were 405; without the look at the store a file that is gone was there."""
    ctx, grant = served.ann.api.app.context, served.grant()
    path = "/api/v1" + (grant.url or "").partition("/api/v1")[2]
    (kept,) = served.ann.get(f"/jobs/{served.job}/checkpoints").json()["items"]
    file = served.ann.call("HEAD", f"/jobs/{served.job}/checkpoints/{kept['sha256']}/file")
    assert (file.headers["etag"], file.headers["content-length"]) == (f'"{kept["sha256"]}"', str(kept["size"]))
    for answer in (
        served.ann.call("HEAD", served.path),
        served.ann.api.client.request("HEAD", path, headers=grant.headers),
    ):
        assert (answer.status_code, answer.content) == (200, b"")
        assert (answer.headers["content-length"], answer.headers["accept-ranges"]) == (str(SIZE), "bytes")
    assert served.ann.api.client.request("HEAD", path).status_code == 403
    with ctx.uow() as tx:
        job = tx.jobs.get(served.job)
    ctx.stores.get(job.adapter_store).delete(grant.key)
    assert served.ann.call("HEAD", served.path).status_code == 404
    assert served.ann.api.client.request("HEAD", path, headers=grant.headers).status_code == 404


# --- on a bad line ---


def test_a_workers_download_goes_on_where_it_was_cut_off(served, tmp_path):
    """Guard: without `Range` in `fetch` every cut cost all that had arrived."""
    served.line.cuts = list(CUTS)
    target, grant = tmp_path / "got", served.grant()
    for _ in CUTS:
        with pytest.raises(ServerAway):
            transfers.download(grant, target)
        assert not target.exists()
    assert transfers.download(grant, target).read_bytes() == ADAPTER
    assert SIZE < served.line.passed < SLACK * SIZE


def test_parts_that_do_not_fit_are_no_damage_and_are_fetched_anew(served, tmp_path):
    """Guard: without `in_parts` the head of a job was given up for damaged, because of what lay on one machine."""
    target, grant = tmp_path / "got", served.grant()
    (tmp_path / ".incoming-got").write_bytes(b"something else")
    with pytest.raises(ServerAway, match="do not fit"):
        transfers.download(grant, target)
    assert transfers.download(grant, target).read_bytes() == ADAPTER


def test_the_command_line_goes_on_where_it_was_cut_off(served, tmp_path):
    """Guard: without the repetition in `_bring` the first cut ended the command, and without `Range` it began anew."""
    served.line.cuts, slept = list(CUTS), list[float]()
    fetch(served.client, served.path, tmp_path / "got.zip", SHA256, Patience(attempts=2, sleep=slept.append))
    assert (tmp_path / "got.zip").read_bytes() == ADAPTER
    assert [path.name for path in tmp_path.glob("*got*")] == ["got.zip"]
    assert len(slept) == len(CUTS)
    assert SIZE < served.line.passed < SLACK * SIZE


def test_a_command_that_gave_up_says_how_to_go_on_and_the_next_one_does(served, tmp_path):
    """Guards: without the limit a server that is gone was called for ever; without a part that is kept the next began
    anew."""
    served.line.cuts = [6_000_000, 0, 0]
    patience = Patience(attempts=3, sleep=lambda _: None)
    with pytest.raises(Error) as gave_up:
        fetch(served.client, served.path, tmp_path / "got.zip", SHA256, patience)
    assert gave_up.value.reason == "unreachable"
    assert gave_up.value.lines[-1].endswith("are downloaded. Run the same command again to resume.")
    assert not (tmp_path / "got.zip").exists()
    fetch(served.client, served.path, tmp_path / "got.zip", SHA256, patience)
    assert (tmp_path / "got.zip").read_bytes() == ADAPTER
    assert served.line.passed < SLACK * SIZE


def test_a_download_that_was_cut_off_after_its_last_byte_is_whole(served, tmp_path):
    """Guard: without 416 for an answer this could neither go on nor begin anew."""
    (tmp_path / f".got.zip.{SHA256[:12]}.part").write_bytes(ADAPTER)
    fetch(served.client, served.path, tmp_path / "got.zip", SHA256)
    (tmp_path / ".incoming-got").write_bytes(ADAPTER)
    assert transfers.download(served.grant(), tmp_path / "got").read_bytes() == ADAPTER
    assert served.line.passed < 10_000


def test_a_part_that_is_something_else_is_thrown_away(served, tmp_path):
    """Guard: without the hash over the whole a wrong beginning was handed to a person."""
    (tmp_path / f".got.zip.{SHA256[:12]}.part").write_bytes(b"something else")
    with pytest.raises(Error, match=r"damaged.*\. Try again\."):
        fetch(served.client, served.path, tmp_path / "got.zip", SHA256)
    assert not list(tmp_path.glob("*got*"))
    fetch(served.client, served.path, tmp_path / "got.zip", SHA256)
    assert (tmp_path / "got.zip").read_bytes() == ADAPTER
