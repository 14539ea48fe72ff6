"""What submit and plan decide and say of texts that are longer than `sequence_len`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_model import byte_tokenizer
from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import PieceCount, TokenLook
from orchestrator.services import clones, datasets, jobs, plans
from orchestrator.services.dispatch import dispatch
from orchestrator.services.job_pinning import for_machines
from orchestrator.services.long_texts import NOT_HERE, TOO_LONG, strategy_of
from tests.helpers.world import FakeCatalog, World
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe
from worker.training.piece_counts import Request, count

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TEXTS = tuple({"text": f"{n} " * length} for n, length in enumerate((5, 100, 5, 40)))
PIECES = [1, 14, 1, 6]
"""With 16 tokens: `(2 * length + 1 end token - 1) / 15`, rounded up."""
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 40}]}


class Here:
    """A tokenizer that is on the server, of one token a character and an end token. Counts in a process of its own are
    counted here, and answered by `counted`."""

    def __init__(self, counted: PieceCount | None = None, *, seen: int | None = None, away: str = "") -> None:
        self.counted, self.seen, self.away, self.asked = counted, seen, away, 0

    def has(self, model: str) -> bool:
        return self.away != NOT_HERE

    def of(self, model: str, file: Path, *given: Any, **more: Any) -> TokenLook:
        if self.away:
            return TokenLook(away=self.away)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        lengths = [len(row.get("text", "")) + 1 for row in rows][: self.seen]
        return TokenLook(lengths=lengths)

    def pieces(self, spec: JobSpec, files: Sequence[Path]) -> PieceCount:
        self.asked += 1
        assert self.counted is not None
        return self.counted


def uploaded(world: World, folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": f"sha256:{datasets.add_dataset(world.ctx, 'alice', file, 'rows.jsonl').sha256}"}


def spec_of(*files: dict[str, Any], **keys: Any) -> JobSpec:
    given = {"base_model": "org/model", "datasets": files, "sequence_len": 16, "global_batch_size": 2}
    return JobSpec.model_validate(given | ({} if "max_steps" in keys else {"num_epochs": 1}) | keys)


def submitted(world: World, spec: JobSpec) -> tuple[JobSpec, str]:
    done = jobs.submit(world.ctx, world.actors["alice"], spec)
    return JobSpec.model_validate(done.job.spec), " ".join(done.notes)


def pieces(spec: JobSpec) -> list[int | None]:
    return [each.pieces for each in spec.datasets]


@only_sqlite
def test_an_epoch_of_pieces_is_counted_at_submission(world: World, tmp_path: Path) -> None:
    """Guard: without the count in the resolved job `num_epochs: 1` stopped after the first pieces of the texts."""
    looks = Here()
    world.ctx = replace(world.ctx, looks=looks)
    texts, chats = uploaded(world, tmp_path, *TEXTS), uploaded(world, tmp_path, *[CHAT] * 3)
    spec = spec_of(texts | {"repeats": 2}, chats)
    job, said = submitted(world, spec)
    assert (job.excess_length_strategy, pieces(job)) == ("split", [sum(PIECES), 3])
    assert (job.train_rows, job.total_steps) == (2 * 22 + 3, 24)
    assert "2 texts are longer than sequence_len and split into 20 pieces. With them, an epoch has 47 rows." in said
    planned = plans.plan(world.ctx, world.actors["alice"], spec)
    assert (planned.steps, planned.train_rows) == (24, 47)
    assert said == " ".join(planned.notes)
    assert looks.asked == 0, "the look at the rows has seen them all"


@only_sqlite
@pytest.mark.parametrize("keys", [{"sequence_len": 512}, {"excess_length_strategy": "truncate"}])
def test_a_job_without_pieces_is_the_one_that_it_was(world: World, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Guard: with `split` in every job of texts, or `truncate` in what a machine gets, older workers refuse the job."""
    world.ctx = replace(world.ctx, looks=Here())
    job, said = submitted(world, spec_of(uploaded(world, tmp_path, *TEXTS), **keys))
    assert (job.total_steps, said) == (2, "")
    sent = for_machines(job).model_dump(mode="json")
    assert "excess_length_strategy" not in sent
    assert "pieces" not in sent["datasets"][0]
    assert job.excess_length_strategy == keys.get("excess_length_strategy"), "a clone cuts, too"
    assert Recipe.of(job) == Recipe.of(for_machines(job))


@only_sqlite
def test_without_the_tokenizer_epochs_are_cut_and_steps_are_not(world: World, tmp_path: Path) -> None:
    """Guard: with `split` and unknown pieces, the job would have ended within its first epoch and said nothing."""
    file = uploaded(world, tmp_path, *TEXTS)
    why = f"because {NOT_HERE}"
    for looks in (None, Here(away=NOT_HERE)):
        world.ctx = replace(world.ctx, looks=looks, verdicts={})
        job, said = submitted(world, spec_of(file))
        assert (job.excess_length_strategy, pieces(job), job.total_steps) == (None, [None], 2)
        assert f"are cut off, {why}." in said
        job, said = submitted(world, spec_of(file, max_steps=9))
        assert (job.excess_length_strategy, pieces(job), job.total_steps) == ("split", [None], 9)
        assert f"The first session counts their pieces, {why}." in said
        with pytest.raises(InvalidError, match="set max_steps instead") as refused:
            submitted(world, spec_of(file, excess_length_strategy="split"))
        assert [pointer for pointer, _ in refused.value.problems] == ["/excess_length_strategy"]
    world.ctx = replace(world.ctx, looks=Here(away="it needs more memory"), verdicts={})
    assert f"are cut off, because {TOO_LONG}." in submitted(world, spec_of(file))[1]


@only_sqlite
def test_rows_that_are_no_texts_are_not_split(world: World, tmp_path: Path) -> None:
    world.ctx = replace(world.ctx, looks=Here())
    job, said = submitted(world, spec_of(uploaded(world, tmp_path, CHAT, CHAT), excess_length_strategy="split"))
    assert (job.excess_length_strategy, pieces(job), job.total_steps) == (None, [None], 1)
    assert "split has no effect, because no dataset has rows of the format text" in said


@only_sqlite
def test_a_file_that_was_not_seen_whole_is_counted_apart(world: World, tmp_path: Path) -> None:
    """Guard: without memory of the count, every change of the form's fields counted for 20 s again."""
    looks = Here(PieceCount(pieces=[18], rows=3, longer=2), seen=2)
    world.ctx = replace(world.ctx, looks=looks)
    file = uploaded(world, tmp_path, *TEXTS)
    job, said = submitted(world, spec_of(file))
    assert (pieces(job), job.total_steps) == ([18], 9)
    assert "2 texts are longer than sequence_len and split into 17 pieces." in said
    looks.counted = PieceCount(away="it did not finish")
    assert submitted(world, spec_of(file))[1] == said
    assert looks.asked == 1
    job, said = submitted(world, spec_of(file, seed=7, sequence_len=17))
    assert (job.excess_length_strategy, job.total_steps) == (None, 2)
    assert "could not be counted in the time and memory that a count may take. An epoch of their pieces has" in said
    assert "about 14 steps. To train" in said, "14 pieces of the two rows that were looked at, twice, in pairs"


def test_a_count_is_that_of_the_rows_to_train_on(tmp_path: Path) -> None:
    """Guard: with all rows, an epoch had the pieces of the validation rows as well."""
    byte_tokenizer().save_pretrained(tmp_path / "model")
    for name, rows in (("texts", TEXTS), ("chats", [CHAT] * 3)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / name) for name in ("texts", "chats")]
    kinds = ({"path": "a", "type": "text", "rows": 4}, {"path": "b", "type": "messages", "rows": 3})

    def counted(**keys: Any) -> tuple[list[int], int, int]:
        spec = spec_of(*kinds, encoding=4, **keys).model_dump(mode="json")
        found = count(Request(tokenizer=str(tmp_path / "model"), files=files, spec=spec, cpu_s=1))
        return list(found.pieces), found.rows, found.longer

    assert counted() == ([sum(PIECES), 3], 7, 2)
    for version in (None, 2):
        found, rows, longer = counted(val_set_size=0.3, val_split=version, seed=3)
        assert rows == 4
        assert found[1] < 3 or found[0] < sum(PIECES)
        assert 0 <= longer <= 2


def test_a_count_runs_in_a_process_with_limits(tmp_path: Path) -> None:
    """Guard: without `limit_process` the second one counted on."""
    model = tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    (tmp_path / "texts").write_text(json.dumps({"text": "long " * 20_000}) + "\n")
    spec = spec_of({"path": "a", "type": "text", "rows": 1}, encoding=4).model_copy(update={"base_model": str(model)})
    looks = TokenLooks(FakeCatalog(), offline=True)
    assert looks.pieces(spec, [tmp_path / "texts"]) == PieceCount(pieces=[6667], rows=1, longer=1)
    looks = TokenLooks(FakeCatalog(), offline=True, pieces_cpu_s=0)
    assert "did not finish within" in looks.pieces(spec, [tmp_path / "texts"]).away


@only_sqlite
@pytest.mark.parametrize(("keys", "other"), [({}, "truncate"), ({"excess_length_strategy": "truncate"}, "split")])
def test_a_clone_of_a_checkpoint_keeps_the_pieces(
    world: World, tmp_path: Path, keys: dict[str, Any], other: str
) -> None:
    """Guards: without `begun` in `split_texts` the checkpoint was refused where the tokenizer had gone. Without it in
    `strategy_of`, a clone of a job from before would have split its texts."""
    world.ctx = replace(world.ctx, looks=Here())
    actor = world.actors["alice"]
    origin = jobs.submit(world.ctx, actor, spec_of(uploaded(world, tmp_path, *TEXTS), **keys)).job
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.step = 1
    worker.save()
    head = world.head(origin.id).sha256
    world.ctx = replace(world.ctx, looks=None)
    way = {"excess_length_strategy": None} if keys else {}
    copy = JobSpec.model_validate(clones.clone(world.ctx, actor, origin.id, way, checkpoint=head).spec)
    original = JobSpec.model_validate(origin.spec)
    assert (copy.excess_length_strategy, pieces(copy)) == (original.excess_length_strategy, pieces(original))
    with pytest.raises(InvalidError) as refused:
        clones.clone(world.ctx, actor, origin.id, {"excess_length_strategy": other}, checkpoint=head)
    assert "/excess_length_strategy" in [pointer for pointer, _ in refused.value.problems]
    assert strategy_of(spec_of({"path": "a"}), {"encoding": 4}) == "truncate"
