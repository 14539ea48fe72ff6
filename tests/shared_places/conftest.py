"""Every kind of shared place: a folder, the Hub and Google Drive, the latter two emulated. No test waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from worker.shared.shared_places import Chain, Credentials, Place, Retries, open_place
from worker.shared.shared_places.addresses import find_place

TOKEN = "hf_of_ann"
JOB = b'{"name": "a job"}'


@dataclass
class Clock:
    """Time that passes only while somebody sleeps. `meanwhile` runs then."""

    now: float = 0.0
    meanwhile: Callable[[], object] = field(default=lambda: None)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@dataclass
class World:
    """One address, and sessions that use it."""

    address: str
    credentials: Credentials
    folder: Path
    hub: HubEmulator | None = None
    drive: Drive | None = None
    clock: Clock = field(default_factory=Clock)

    opened: list[Place] = field(default_factory=list)

    def place(self) -> Place:
        return self.keep(find_place(self.address, self.credentials, sleep=self.clock.sleep))

    def tried(self) -> Place:
        return self.keep(open_place(self.address, self.credentials, clock=self.clock, sleep=self.clock.sleep).place)

    def keep(self, place: Place) -> Place:
        """Close it at the end."""
        self.opened.append(place)
        return place

    def close(self) -> None:
        for place in self.opened:
            place.close()

    def chain(self, writer: str, place: Place | None = None) -> Chain:
        return Chain(
            place or self.place(),
            writer=writer,
            where=f"machine of {writer}",
            retries=Retries(first_s=1, longest_s=8, within_s=60),
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    def holder(self, writer: str, place: Place | None = None) -> Chain:
        """A session that has taken the run."""
        chain = self.chain(writer, place)
        chain.open(JOB)
        chain.acquire()
        return chain

    def checkpoint(self, step: int, size: int = 3000) -> Path:
        """A file with the content of this step."""
        path = self.folder / f"{step}.safetensors"
        path.write_bytes(f"step {step} ".encode() * (size // 6))
        return path


@pytest.fixture(params=["folder", "hub", "drive"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """The same story in each kind of place."""
    return request.getfixturevalue(f"{request.param}_world")


@pytest.fixture
def folder_world(tmp_path: Path) -> World:
    return World(str(tmp_path / "place"), Credentials(), tmp_path)


@pytest.fixture
def hub_world(hub: HubEmulator, tmp_path: Path) -> Iterator[World]:
    hub.accounts[TOKEN] = "ann"
    yield World("hf://ann/my-run", Credentials(hub_token=TOKEN, hub_endpoint=hub.endpoint), tmp_path, hub=hub)
    close_session()  # the Hub's client has one for all


@pytest.fixture
def drive_world(drive: Drive, tmp_path: Path) -> Iterator[World]:
    token = drive.tokens.sign_in()
    credentials = Credentials(drive_token=lambda: token, drive_endpoint=drive.url)
    world = World("drive://my-run", credentials, tmp_path, drive=drive)
    yield world
    world.close()
