"""Texts of more than `sequence_len` tokens: their pieces, their order, and runs that are cut."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_model import byte_tokenizer
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared.checkpoint_file import CheckpointError, OtherRunError, check_recipe
from worker.shared.dataset_files import read_rows
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import ENCODING, VAL_SPLIT, JobSpec
from worker.shared.long_texts import piece_count
from worker.shared.manifest import Recipe
from worker.training.data import Rows, check_rows, shares_of
from worker.training.encoding import IGNORE, Encoder
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits
from worker.training.pieces import Pieces, surely_short

FILE = {"path": "sha256:" + "0" * 64, "sha256": "0" * 64, "rows": 10}
TURNS = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "2 " * 60}]


def job(*files: dict[str, Any], **keys: object) -> JobSpec:
    given: dict[str, Any] = {"base_model": "org/model", "datasets": files or (FILE,), "sequence_len": 16}
    given |= {"max_steps": 2} if "num_epochs" not in keys else {}
    return JobSpec.model_validate(given | {"excess_length_strategy": "split", "encoding": ENCODING} | keys)


def rows_in(folder: Path, *given: dict[str, Any]):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return list(read_rows(file))


def made(rows, spec: JobSpec) -> tuple[Encoder, Pieces]:
    encoder = Encoder(byte_tokenizer(), spec.sequence_len, train_on_inputs=False, encoding=spec.encoding)
    pieces = Pieces.of(rows, spec, encoder)
    assert pieces is not None
    return encoder, pieces


@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 30, 31, 32, 45, 46, 47, 1000])
def test_every_token_but_the_first_is_predicted_once(tokens: int, tmp_path: Path) -> None:
    """Guard: with windows that do not overlap, every 16th token had no label; with ones at steps of 14, it had two."""
    rows = rows_in(tmp_path, {"text": "é" * (tokens // 2) + "x" * (tokens % 2) + "end"})
    spec = job(FILE | {"rows": 1})
    encoder, pieces = made(rows, spec)
    whole = encoder.encode_full(rows[0])
    found = [pieces.example(0, place) for place in range(pieces.count(0))]
    assert found == list(encoder.split(whole))
    assert all(2 <= len(each.input_ids) <= 16 for each in found)
    assert [label for each in found for label in each.labels if label != IGNORE] == whole.input_ids[1:]
    assert all(before.input_ids[-1] == after.input_ids[0] for before, after in pairwise(found))
    assert all(each.labels == [IGNORE, *each.input_ids[1:]] for each in found)


def test_only_texts_are_split(tmp_path: Path) -> None:
    """Guard: without the look at the row's kind a conversation's answer went on in a piece without its question."""
    texts = [{"text": "a" * 40}, {"text": "short"}]
    chats = [{"messages": TURNS}]
    rows = [
        *rows_in(tmp_path, *texts),
        *rows_in(tmp_path, *chats),
        *rows_in(tmp_path, {"prompt": "", "completion": "b" * 40}),
    ]
    files = ({"rows": 2, "type": "text"}, {"rows": 1, "type": "messages"}, {"rows": 1, "type": "prompt_completion"})
    _, pieces = made(rows, job(*(FILE | file for file in files)))
    assert [pieces.count(number) for number in range(4)] == [3, 1, 1, 1]
    assert pieces.longer(range(4)) == 1
    assert Pieces.of(rows, job(excess_length_strategy="truncate"), made(rows, job())[0]) is None


def test_an_epoch_is_over_pieces(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, *({"text": "abcdefgh" * n} for n in (1, 5, 2, 9)))
    spec = job(FILE | {"rows": 2, "repeats": 2}, FILE | {"rows": 2, "repeats": 0.5})
    encoder, pieces = made(rows, spec)
    counts = [pieces.count(number) for number in range(4)]
    assert counts == [1, 3, 2, 5]
    chosen = [0, 1, 3]
    (first, second) = shares_of(spec, chosen, pieces)
    assert [(share.first, share.rows, share.drawn) for share in (first, second)] == [(0, 4, 8), (4, 5, 3)]
    trained = Rows(rows, chosen, encoder, pieces=pieces)
    assert len(trained) == 9
    assert [trained[place] for place in range(9)] == [
        part for n in chosen for part in encoder.split(encoder.encode_full(rows[n]))
    ]


def test_what_the_server_has_counted_decides_the_steps() -> None:
    counted = job(FILE | {"pieces": 40}, FILE | {"pieces": 7, "repeats": 2}, num_epochs=2, global_batch_size=4)
    assert (counted.train_rows, counted.total_steps) == (54, 27)
    assert counted.rows == 20


def test_another_count_than_the_servers_is_refused(tmp_path: Path) -> None:
    """Guard: without the comparison a session would have trained on fewer epochs than the job has."""
    rows = rows_in(tmp_path, {"text": "a" * 40}, {"text": "b"})
    for counted in (4, None):
        spec = job(FILE | {"rows": 2, "pieces": counted})
        made(rows, spec)[1].check(spec, range(2))
    with pytest.raises(PermanentError, match="more than 3 pieces; set a larger sequence_len"):
        made(rows, job(FILE | {"rows": 2}))[1].check(job(FILE | {"rows": 2}), range(2), most=3)
    spec = job(FILE | {"rows": 2, "pieces": 5})
    with pytest.raises(PermanentError, match=r"make 4 pieces of at most 16 tokens here, but the server has counted 5"):
        made(rows, spec)[1].check(spec, range(2))


def test_a_token_that_the_model_lacks_is_found_in_every_piece(tmp_path: Path) -> None:
    """Guard: with a look at the first piece alone, a later step found it."""
    rows = rows_in(tmp_path, {"text": "a" * 40 + "~"})
    encoder, pieces = made(rows, job(FILE | {"rows": 1}))
    ids = encoder.encode_full(rows[0]).input_ids
    check_rows(rows, [0], encoder, ModelLimits(tokens=max(ids) + 1, positions=16), 16, pieces)
    assert ids[40] > max(ids[:16])
    with pytest.raises(PermanentError, match="row 1 of the dataset has token"):
        check_rows(rows, [0], encoder, ModelLimits(tokens=ids[40]), 16, pieces)


def test_long_texts_in_memory_have_a_maximum(tmp_path: Path) -> None:
    """Guard: without it the tokens of all long texts of a file stayed in memory."""
    rows = rows_in(tmp_path, *({"text": chr(97 + n) * 40} for n in range(5)))
    spec = job(FILE | {"rows": 5})
    encoder = made(rows, spec)[0]
    pieces = Pieces(rows, spec, encoder, kept_tokens=100)
    parts = [[pieces.example(number, place) for place in range(pieces.count(number))] for number in range(5)]
    assert parts == [list(encoder.split(encoder.encode_full(row))) for row in rows]
    assert sorted(pieces._kept) == [3, 4]
    assert pieces._tokens == sum(map(len, pieces._kept.values())) <= 100


def test_a_short_text_is_not_tokenised_to_be_counted(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, {"text": "abcdefgh"}, {"text": "abcdefghi"}, {"text": "é"})
    assert [surely_short(row, 16) for row in rows] == [True, False, False]
    assert RowFormat.TEXT == "text"
    assert piece_count(1, 16) == 1


def test_an_older_worker_and_an_older_checkpoint_cut_texts() -> None:
    usual = JobSpec.model_validate({"base_model": "org/model", "datasets": (FILE,), "max_steps": 1})
    sent = usual.model_dump(mode="json")
    assert "excess_length_strategy" not in sent
    assert "pieces" not in sent["datasets"][0]
    older = Recipe.model_validate(Recipe.of(usual).model_dump(exclude={"excess_length_strategy"}))
    assert check_recipe(Recipe.of(usual), older) is None
    with pytest.raises(OtherRunError, match="excess_length_strategy"):
        check_recipe(Recipe.of(usual.model_copy(update={"excess_length_strategy": "split"})), older)


def test_split_texts_survive_cuts_in_every_byte(base, tmp_path) -> None:
    """Guards: with the number of rows as an epoch's length, the checkpoint's position was refused; without `pieces` in
    the held-out rows, what is behind `sequence_len` was not evaluated."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n} " * (6 + 5 * (n % 3))}) + "\n" for n in range(6)), "utf-8")
    training = TrainingRuns(base=base, dataset=path, rows=6, folder=tmp_path)

    def spec(way: str | None, **more: object) -> JobSpec:
        files = ({"path": "texts", "rows": 6, "sha256": "0" * 64, "repeats": 1.5, **more},)
        usual = {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 7, "val_set_size": 0.3, "eval_steps": 3}
        settings = {"encoding": ENCODING, "val_split": VAL_SPLIT, "sequence_len": 32, "excess_length_strategy": way}
        return training.spec(datasets=files, **usual, **settings)

    whole, cut = training.run(spec("split")), training.run(spec("split"), [2, 5])
    recipe = whole.manifest.recipe
    assert recipe.epoch_rows > recipe.train_rows > 0 > recipe.untrained_rows
    assert (whole.manifest.epoch, whole.manifest.index) == divmod(7 * 4, recipe.epoch_rows)
    assert differing(whole.tensors, cut.tensors) == []
    assert (cut.steps, cut.measures) == (whole.steps, whole.measures)
    short = {"learning_rate": 1e-12, "max_steps": 1, "eval_steps": 1}
    still = [training.run(spec(way, repeats=1.0).model_copy(update=short)) for way in ("split", None)]
    assert [run.manifest.recipe.epoch_rows for run in still] == [14, 4]
    assert abs(still[0].measures[1]["eval_loss"] - still[1].measures[1]["eval_loss"]) > 1e-4
    with pytest.raises(CheckpointError, match="excess_length_strategy"):
        training.session(spec(None), resume=tmp_path / "run1" / "0.safetensors")
    with pytest.raises(PermanentError, match="the server has counted 3"):
        training.session(spec("split", pieces=3))
