"""What a person reads who names a place that cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from tests.emulators.drive import Rule
from tests.emulators.hub import Repo
from tests.shared_places.conftest import TOKEN, World
from worker.shared.shared_places import Credentials, FullError, RefusedError, UnknownError, open_place
from worker.shared.shared_places.addresses import refuse_mounted_drive
from worker.shared.shared_places.hub import HubRepository
from worker.shared.shared_places.local_folder import LocalFolder

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the Hub client's own way to upload


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "address of the shared place is empty"),
        ("s3://bucket/run", "s3:// is not a kind of shared place"),
        ("kaggle://me/data", "is not a kind of shared place. Write hf://OWNER/NAME"),
        ("hf://only-a-name", "must be OWNER/NAME"),
        ("hf://a/b/c", "must be OWNER/NAME"),
        ("drive://", "name of one folder"),
        ("drive://a/b", "name of one folder"),
        ("drive://a", "needs a sign-in to Google"),
        ("file://elsewhere/x", "names another computer"),
        ("/content/drive/MyDrive/run", "is a mounted Google Drive.*Write drive://FOLDER"),
        ("/Users/me/Library/CloudStorage/GoogleDrive-me@x/My Drive/run", "is a mounted Google Drive"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        open_place(address)


def test_a_drive_is_recognised_by_its_file_system() -> None:
    mounts = "overlay / overlay rw 0 0\ndrive /mnt/My\\040files fuse rw 0 0\nx /mnt/other fuse.sshfs rw 0 0\n"
    with pytest.raises(RefusedError):
        refuse_mounted_drive(Path("/mnt/My files/run"), mounts)
    for folder in ("/mnt/other/run", "/mnt/My", "/home/drive"):
        refuse_mounted_drive(Path(folder), mounts)


def test_a_file_address_is_a_folder(tmp_path: Path) -> None:
    place = open_place(f"file://{tmp_path}/a%20run").place
    assert isinstance(place, LocalFolder)
    assert (tmp_path / "a run" / "documents").is_dir()


def test_a_full_or_closed_folder_is_named(tmp_path: Path) -> None:
    class Full(LocalFolder):
        number = errno.ENOSPC

        def _newest(self, name: str) -> int:
            raise OSError(self.number, os.strerror(self.number))

    place = Full(tmp_path)
    with pytest.raises(FullError, match=f"{tmp_path} is full"):
        place.read_doc("x")
    place.number = errno.EROFS
    with pytest.raises(RefusedError, match="is read-only for this user"):
        place.read_doc("x")
    place.number = errno.EIO
    with pytest.raises(UnknownError):
        place.read_doc("x")


def test_a_repository_of_somebody_else_or_a_public_one(hub_world: World) -> None:
    hub = hub_world.hub
    assert hub is not None
    with pytest.raises(RefusedError, match="belongs to bob, but the token belongs to ann"):
        open_place("hf://bob/run", hub_world.credentials)
    hub.writes.add(Repo(id="ann/my-run", files={}), "ann")
    with pytest.raises(RefusedError, match="is public, and anyone could read the run"):
        hub_world.tried()


@pytest.mark.parametrize(
    ("role", "status", "message", "words"),
    [
        ("read", None, "", "token may only read"),
        ("write", 403, "Forbidden: you must use a token with write access", "token may not write to ann/my-run"),
        ("write", 401, "Invalid credentials", "token may not write to ann/my-run"),
        ("write", 403, "Private repository storage limit reached", "is full"),
    ],
)
def test_a_token_that_may_not_write(hub_world: World, role: str, status: int, message: str, words: str) -> None:
    """Guard: without the trial commit of the probe, a token that may create but not commit failed hours later."""
    hub = hub_world.hub
    assert hub is not None
    hub.writes.roles[TOKEN] = role
    if status:
        headers = {"X-Error-Message": message}
        hub.rules.add("POST /api/models/ann/my-run/commit", status=status, headers=headers, times=0)
    with pytest.raises(RefusedError, match=words) as refusal:
        hub_world.tried()
    assert TOKEN not in str(refusal.value)


def test_the_hub_is_busy_or_offline(hub_world: World) -> None:
    """Guard: without the repetition in `open_place`, one 429 before the probe ended the session."""
    hub = hub_world.hub
    assert hub is not None
    hub.rules.add("GET /api/whoami", status=429, headers={"RateLimit": '"api";r=0;t=40'})
    hub_world.tried()
    assert hub_world.clock.now >= 40

    class Offline:
        def whoami(self) -> None:
            raise OfflineModeIsEnabled

    with pytest.raises(RefusedError, match="HF_HUB_OFFLINE is set"):
        HubRepository("ann/my-run", api=Offline())


def test_a_full_drive_and_an_expired_sign_in(drive_world: World) -> None:
    drive = drive_world.drive
    assert drive is not None
    place = drive_world.tried()
    drive.contents.limit = 2000
    with pytest.raises(FullError, match="drive://my-run is full"):
        place.put("checkpoints/x.safetensors", drive_world.checkpoint(1, 9000))
    drive.rules.add(Rule("GET /drive", status=403, reason="insufficientPermissions"))
    with pytest.raises(RefusedError, match=r"does not accept this sign-in .insufficientPermissions"):
        place.blobs()
    drive.tokens.expire()
    with pytest.raises(RefusedError, match="Sign in again"):
        place.blobs()


def test_credentials_are_in_no_text(hub_world: World) -> None:
    assert TOKEN not in repr(Credentials(hub_token=TOKEN)) + str(hub_world.credentials)
    place = hub_world.tried()
    assert TOKEN not in repr(place) + place.address
    hub_world.holder("a", place)
    assert TOKEN.encode() not in (place.read_doc("HEAD.json") or b"")


def test_a_repository_of_the_own_account_needs_no_owner(hub_world: World) -> None:
    """Guard: asked for before the place was opened, an account that the Hub did not tell ended in a traceback."""
    hub = hub_world.hub
    assert hub is not None
    hub.rules.add("GET /api/whoami", status=401)
    with pytest.raises(RefusedError, match=r"the Hugging Face token may not write to ~/my-run"):
        open_place("hf://~/my-run", hub_world.credentials)
    assert open_place("hf://~/my-run", hub_world.credentials).place.address == "hf://ann/my-run"
    with pytest.raises(RefusedError, match="must be OWNER/NAME"):
        open_place("hf://~/a/b", hub_world.credentials)
