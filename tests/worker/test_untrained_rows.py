"""A job whose rows teach nothing in part: they are left out of every session alike."""

import json

from tests.helpers.training_runs import TrainingRuns, differing


def test_rows_without_a_trained_token_never_make_a_step(base, tmp_path, caplog):
    """Guard: without `_taught` half the steps had loss 0.0, and only the moments of the optimiser moved the adapter."""

    def row(number):
        ask = "x" * 100 if number % 3 else f"what is {number}?"
        turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": f"it is {number * number}"}]
        return {"id": number, "messages": turns}

    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(12)), encoding="utf-8")
    training = TrainingRuns(base=base, dataset=path, rows=12, folder=tmp_path)
    spec = training.spec(encoding=2, global_batch_size=1, micro_batch_size=1, max_steps=6, sequence_len=100)
    whole, cut = training.run(spec), training.run(spec, [3])
    assert all(values["loss"] > 0 for _, values in whole.steps)
    assert (whole.manifest.recipe.untrained_rows, whole.manifest.recipe.epoch_rows) == (8, 4)
    assert (whole.manifest.epoch, whole.manifest.index) == (1, 2)
    assert "on 4 rows for 6 steps" in (tmp_path / "run1" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert differing(whole.tensors, cut.tensors) == []
    assert cut.steps == whole.steps
    assert [r.message[:40] for r in caplog.records].count("8 of 12 rows have no trained token withi") == 3

    old = training.run(training.spec(global_batch_size=1, micro_batch_size=1, max_steps=3, sequence_len=100))
    assert old.manifest.recipe.untrained_rows is None
    assert old.manifest.index == 3
