"""The check of an account on Kaggle's image: breaks each probe in turn and tests whether the check names it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.images.figures import TOKEN, Shelf, nothing_built
from benchmarks.report import Figure
from benchmarks.tiny_job import say
from orchestrator.adapters.stores.google_drive.client import DriveClient
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.store import DriveStore
from orchestrator.domain.diagnosis import FAILED, judged
from orchestrator.ports.providers import CheckOrder
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.kaggle.diagnosis import Limits
from orchestrator.services.diagnosis import upload_addresses
from orchestrator.testing.environments import driver_env, store_env
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from tests.emulators.hub import checked as checked_repo
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.images import Image, load
from tests.providers.kernels import kaggle_account
from worker.doctor import outcome

LIMITS = Limits(
    limit_s=8.0,
    answer_s=300.0,
    over_s=60.0,
    ready_s=5.0,
    listed_s=0.5,
    probe_s=200.0,
    hub_s=15.0,
    poll_s=0.05,
    stamp_every_s=0.1,
    flood_bytes=64 << 10,
)
REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ImportError("{package} does not fit this image")

sys.meta_path.insert(0, Refuse())
"""


@dataclass(frozen=True, kw_only=True)
class Break:
    """How to break the subject of one probe: by a kernel's variables, by the emulator's, or by an action.

    The text for the person must contain `words`, because a probe may also fail for another reason.
    """

    probe: str
    words: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    emulator: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arrange: Callable[[KaggleEmulator], object] = lambda _: None
    limits: Limits = LIMITS
    uploads: tuple[str, ...] = ()


def named(folder: Path, _: Shelf) -> Iterator[Figure]:
    """One figure for each probe that runs on a Kaggle kernel."""
    image = load("kaggle-gpu")
    if image.problem:
        yield nothing_built()
        return
    with ExitStack() as until_the_end:
        hub = until_the_end.enter_context(HubEmulator(checked_repo(xet=True)))
        drive = until_the_end.enter_context(Drive(folder / "doctors-drive"))
        for broken in (*_of_the_machine(folder, hub.endpoint), *_of_kaggle(_uploads(drive))):
            say(f"doctor: {broken.probe} broken ...")
            probes = _check(Path(tempfile.mkdtemp(prefix=f"{broken.probe}-", dir=folder)), image, broken)
            failed = [name for name, probe in probes.items() if probe["status"] == FAILED]
            probe = probes[broken.probe]
            value = {"failed": failed, "words": probe["words"], "remedy": probe.get("remedy", "")}
            text = f"{value['words']} {value['remedy']}"
            ok = failed == [broken.probe] and bool(value["remedy"]) and broken.words in text
            yield Figure(
                name=f"doctor: {broken.probe} broken",
                value=value,
                bar=f"named, with a remedy and the words: {broken.words}",
                ok=ok,
            )


def _of_the_machine(folder: Path, hub: str) -> list[Break]:
    return [
        Break(probe=outcome.TRAINING, words="peft does not fit", environment=_without(folder, "peft")),
        Break(
            probe=outcome.EQUAL_BYTES, words="bitsandbytes does not fit", environment=_without(folder, "bitsandbytes")
        ),
        Break(probe=outcome.ALL_REDUCE, words="gloo", environment={"GLOO_SOCKET_IFNAME": "none0"}),
        Break(probe=outcome.HUB, words="by Xet", environment={"HF_ENDPOINT": hub}, limits=replace(LIMITS, hub_s=8.0)),
    ]


def _of_kaggle(uploads: tuple[str, ...]) -> list[Break]:
    def cut_log(kaggle: KaggleEmulator) -> None:
        kaggle.world.kept_events = 40

    def lose_after_cancel(kaggle: KaggleEmulator) -> None:
        kaggle.sessions.outputs_after_cancel = False

    never_ready = {"processing_polls": 10_000}
    return [
        Break(
            probe=outcome.TIME_LIMIT, words="files are lost at the time limit", emulator={"outputs_after_kill": False}
        ),
        Break(probe=outcome.CANCEL, words="files are lost after a cancel", arrange=lose_after_cancel),
        Break(probe=outcome.LOG, words="long logs are truncated", arrange=cut_log),
        Break(probe=outcome.DRIVE_UPLOAD, words="HTTP 401", uploads=uploads),
        Break(
            probe=outcome.INPUTS,
            words="did not become ready",
            emulator=never_ready,
            limits=replace(LIMITS, ready_s=0.5),
        ),
    ]


def _check(folder: Path, image: Image, broken: Break) -> dict[str, dict[str, Any]]:
    """The probes as a person sees them, by name."""
    variables = {**image.variables, "OMP_NUM_THREADS": "1", **broken.environment}
    people = [Person(name="alice", token=TOKEN)]
    with KaggleEmulator(
        folder / "kaggle", people, python=image.executable, environment=variables, **broken.emulator
    ) as kaggle:
        broken.arrange(kaggle)
        provider = KaggleProvider(driver_env(folder / "driver", endpoint=kaggle.endpoint), fresh_s=0.0)
        provider.limits = broken.limits
        order = CheckOrder(
            id="check-1", token="a-check-token", gpu=False, probes=frozenset({broken.probe}), uploads=broken.uploads
        )
        report = provider.diagnose(kaggle_account("alice"), order, lambda _: None)
        provider.clear_check(kaggle_account("alice"), order.id)
    return {probe["name"]: probe for probe in judged([one.as_dict() for one in report.outcomes])}


def _uploads(drive: Drive) -> tuple[str, ...]:
    """Upload URLs of a Drive that accepts nothing without a sign-in."""
    client = DriveClient(read_login(json.dumps(drive.authorized_user()), drive.url), drive.url, on_trouble=print)
    with closing(DriveStore(store_env(), client=client)) as store:
        addresses = tuple(upload_addresses(store, ["checks/1", "checks/2"]))
    drive.anonymous = False
    return addresses


_FOLDERS = count(1)


def _without(folder: Path, package: str) -> dict[str, str]:
    """A machine on which the import of that package fails, wherever it is installed."""
    place = folder / f"refuses-{next(_FOLDERS)}"
    place.mkdir()
    (place / "sitecustomize.py").write_text(REFUSING.format(package=package))
    return {"PYTHONPATH": str(place)}
