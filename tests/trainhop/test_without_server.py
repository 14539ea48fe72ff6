"""What `trainhop.run` decides before it starts a process, and what a session does with a place that is lost or full."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import start_adapters
from tests.helpers.manifests import manifest
from trainhop import place_access, without_server
from trainhop.errors import Error
from worker.agent.transfers import NotTaken
from worker.agent.uplink import Refused, Stale
from worker.notebook.place_session import WrongJobError, read_job
from worker.notebook.place_uplink import PlaceUplink
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import sha256_file
from worker.shared.manifest import Recipe
from worker.shared.messages import Finish, Grant, GrantKind, MetricRow, Report
from worker.shared.place_job import ADAPTER, RESULT, PlaceJob
from worker.shared.shared_places import Chain, FullError
from worker.shared.shared_places.local_folder import LocalFolder


def test_the_place_is_chosen_by_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_access.choose("hf://me/run", "x", "colab") == ("hf://me/run", "as asked")
    assert place_access.choose(None, "x", "jupyter")[0] == "trainhop-runs/x"
    assert place_access.choose(None, "x", "colab")[0] == "drive://trainhop-x"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    address, why = place_access.choose(None, "x", "colab")
    assert (address, "hf_secret" in why) == ("hf://~/trainhop-x", False)
    assert place_access.variables(address, "colab") == {"HF_TOKEN": "hf_secret"}


def test_a_missing_token_is_asked_for_with_the_smallest_scope(folder: Path) -> None:
    with pytest.raises(Error, match=r"fine-grained one .* that may write to this one repository"):
        place_access.variables("hf://me/run", "jupyter")


@pytest.mark.parametrize(("given", "seconds"), [(90, 90.0), ("90m", 5400.0), ("1.5 h", 5400.0), ("20s", 20.0)])
def test_a_budget_is_seconds_or_words(given: Any, seconds: float) -> None:
    assert without_server._budget_s(given, "jupyter") == seconds


@pytest.mark.parametrize("given", [0, "soon", -1])
def test_a_budget_that_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(Error, match="budget: "):
        without_server._budget_s(given, "jupyter")


def test_a_machine_with_a_limit_has_a_budget_within_it() -> None:
    assert 60 <= without_server._budget_s(None, "colab") <= 12 * 3600


def test_another_job_file_is_refused_by_its_keys(author: Any, folder: Path) -> None:
    job, files = author().resolved(folder)
    assert author().differences(job) == []
    assert author(lora_r=8).differences(job) == ["lora_r: the place has 4, this file says 8"]
    (entry,) = job.data
    assert hashlib.sha256(files[entry.sha256].read_bytes()).hexdigest() == entry.sha256
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "other"}\n')
    (said,) = author().differences(job)
    assert said.startswith("datasets[0]: the place has ")
    (folder / "rows.jsonl").unlink()
    assert author().differences(job) == []  # it is on another machine


def test_a_job_that_cannot_be_trained_is_refused_in_words(author: Any, folder: Path) -> None:
    with pytest.raises(WrongJobError, match=r"job.yaml: .*for another method"):
        author(rl="dpo").resolved(folder)
    (folder / "rows.jsonl").write_text("not json\n")
    with pytest.raises(WrongJobError, match=r"rows\.jsonl"):
        author().resolved(folder)


class Disk(LocalFolder):
    """A folder that can be full, and that damages the next files."""

    is_full, damages = False, 0

    def put(self, name: str, source: Path) -> None:
        if self.is_full:
            raise FullError("the place is full: delete files there")
        super().put(name, source)
        if self.damages:
            self.damages -= 1
            (self._blobs / name).write_bytes(b"damaged")


class Run:
    """A job in a place, held by one session."""

    def __init__(self, job: PlaceJob, folder: Path) -> None:
        self.job, self.folder, self.place = job, folder, Disk(folder / "place")
        self.chain = Chain(self.place, writer="first")
        self.chain.open(job.model_dump_json().encode())
        self.head = self.chain.acquire()
        self.link = PlaceUplink(self.chain, job)
        self.columns = 2

    def checkpoint(self, step: int, **changes: Any) -> Path:
        made = manifest(self.job.id, step, Recipe.of(self.job.spec)).model_copy(update=changes)
        path = self.folder / f"step-{step}.safetensors"
        checkpoint_file.write(path, {"adapter/a": np.zeros((2, self.columns), dtype=np.float32)}, made)
        return path

    @property
    def adapter(self) -> Path:
        """What a session exports at its end."""
        path = self.folder / "adapter.zip"
        path.write_bytes(start_adapters.packed(start_adapters.write(self.folder / "made")))
        return path

    def taken_over(self) -> Chain:
        """Another session has the job from now on."""
        other = Chain(self.place, writer="first")  # the same name: no need to wait for silence
        assert other.acquire() is not None
        return other

    def save(self, path: Path) -> None:
        self.link.store(Grant(key="x", kind=GrantKind.CHECKPOINT), path)


@pytest.fixture
def run(author: Any, folder: Path) -> Run:
    return Run(author().resolved(folder)[0], folder)


REPORT = Report(lease="x", fence=1, seq=1, step=1, phase="train")  # pyright: ignore[reportArgumentType]


def test_a_session_that_lost_the_job_stops_and_writes_nothing(run: Run) -> None:
    """Guards: the fence of `Chain.advance`, and `Stale` in `PlaceUplink.store`, `release` and `finish`."""
    run.link.note([MetricRow(step=1, values={"loss": 1.0})])
    run.save(run.checkpoint(1))
    other = run.taken_over()
    taken = other.beat()
    for act in (
        lambda: run.link.store(Grant(key="x", kind=GrantKind.ADAPTER), run.adapter),
        lambda: run.save(run.checkpoint(2, parent=taken.checkpoint.sha256 if taken.checkpoint else None)),
        lambda: run.link.finish(Finish(lease="x", fence=1, seq=2, step=1)),
    ):
        with pytest.raises(Stale, match=r"has taken over|does not hold"):
            act()
    assert other.beat().checkpoint == taken.checkpoint
    assert not [blob for blob in run.place.blobs() if blob.name.startswith(ADAPTER)]
    assert [row.values for row in run.link._rows] == [{"loss": 1.0}]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("step", "changes", "words"),
    [
        (1, {"job": "another"}, "names job another"),
        (1, {"fence": 7}, "fence 7"),
        (1, {"parent": "0" * 64}, "but the head is the start"),
        (10, {}, "step 10 does not follow 0 within 9"),
    ],
)
def test_a_checkpoint_that_does_not_continue_the_head_is_refused(
    step: int, changes: dict[str, Any], words: str, run: Run
) -> None:
    with pytest.raises(Refused, match=words):
        run.save(run.checkpoint(step, **changes))
    assert run.chain.beat().checkpoint is None


def test_a_checkpoint_with_other_contents_is_refused(run: Run) -> None:
    """Guards: the recipe, the hash of its parameters, and the layout of the checkpoint before."""
    recipe = Recipe.of(run.job.spec)
    for other, words in (
        (recipe.model_copy(update={"lora_r": 8}), "lora_r: the job says 4, the checkpoint 8"),
        (recipe.model_copy(update={"parameters_sha256": "0" * 64}), "are not the parameters"),
    ):
        with pytest.raises(Refused, match=words):
            run.save(run.checkpoint(1, recipe=other))
    run.save(run.checkpoint(1))
    head = run.chain.beat()
    assert head.checkpoint is not None
    run.columns = 3
    with pytest.raises(Refused, match="in the one before it is"):
        run.save(run.checkpoint(2, parent=head.checkpoint.sha256))
    assert run.chain.beat().step == 1


def test_a_save_without_an_answer_is_repeated_without_effect(run: Run) -> None:
    run.save(run.checkpoint(1))
    head = run.chain.beat()
    run.save(run.checkpoint(1))
    assert run.chain.beat().checkpoint == head.checkpoint


def test_what_arrives_damaged_is_put_again(run: Run) -> None:
    run.place.damages = 1
    run.link.store(Grant(key="x", kind=GrantKind.ADAPTER), run.adapter)
    files = {blob.name: run.place.sha256(blob.name) for blob in run.place.blobs() if blob.name.startswith(ADAPTER)}
    assert files == {f"{ADAPTER}{path.name}": sha256_file(path) for path in (run.folder / "made").iterdir()}
    run.place.delete(list(files))
    run.place.damages = 9
    with pytest.raises(NotTaken, match="arrived damaged"):
        run.link.store(Grant(key="x", kind=GrantKind.ADAPTER), run.adapter)


def test_a_takeover_is_noticed_between_saves(run: Run) -> None:
    """Guards: the sign of life, and `Stale` in `PlaceUplink.report`."""
    assert run.link.report(REPORT).action == "continue"
    run.taken_over()

    class Soon(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    said: list[str] = []
    run.link.watch(Soon(), said.append)
    assert "has taken over" in said[0]
    with pytest.raises(Stale, match="has taken over"):
        run.link.report(REPORT)


def test_a_full_place_is_tried_again_and_said(run: Run) -> None:
    run.place.is_full = True
    with pytest.raises(NotTaken, match="the place is full"):
        run.save(run.checkpoint(1))
    run.place.is_full = False
    run.save(run.checkpoint(1))
    head = run.chain.beat()
    assert head.step == 1
    assert read_job(run.chain) == run.job


def test_a_job_is_not_finished_before_its_last_step(run: Run) -> None:
    from worker.shared.results import ExportedAdapter

    run.save(run.checkpoint(1))
    adapter = ExportedAdapter(key="x", sha256="0" * 64, size=1, adapter_sha256="0" * 64)
    with pytest.raises(Refused, match="only 1 of 9 steps are saved"):
        run.link.finish(Finish(lease="x", fence=1, seq=2, step=1, adapter=adapter))
    assert run.chain.beat().state == "running"
    head = run.chain.beat()
    run.save(run.checkpoint(9, parent=head.checkpoint.sha256 if head.checkpoint else None))
    other = run.taken_over()
    with pytest.raises(Stale):  # and no result is written
        run.link.finish(Finish(lease="x", fence=1, seq=2, step=9, adapter=adapter))
    assert run.place.read_doc(RESULT) is None
    assert other.beat().state == "running"
