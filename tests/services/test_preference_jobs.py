"""Jobs of preference training at the server: submitted, planned, cloned and imported, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.cli.axolotl import translate
from orchestrator.services import datasets, plans
from orchestrator.services.clones import check_changes
from tests.helpers.preference_rows import record, write
from tests.helpers.world import World
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import JobSpec


def bring(world: World, row_format: RowFormat) -> str:
    """An uploaded file with rows of this format."""
    path = write(world.folder / "rows.jsonl", [record(number, row_format) for number in range(12)])
    return datasets.bring(world.ctx, "alice", path, "rows.jsonl").dataset.sha256


@pytest.mark.parametrize(
    ("row_format", "changes", "words"),
    [
        (
            RowFormat.PREFERENCE,
            {},
            "without rl trains on rows of .*, and these are preference; set rl to dpo or orpo or simpo",
        ),
        (RowFormat.UNPAIRED_PREFERENCE, {}, "these are unpaired_preference; set rl to kto"),
        (RowFormat.UNPAIRED_PREFERENCE, {"rl": "dpo"}, "rl: dpo trains on rows of the format preference, and these"),
        (RowFormat.PREFERENCE, {"rl": "kto"}, "rl: kto trains on rows of the format unpaired_preference"),
    ],
)
def test_rows_of_another_method_are_refused_at_submit(
    world1: World, row_format: RowFormat, changes: dict[str, Any], words: str
) -> None:
    """Guard: without `refused_rows` in `resolve`, a machine was taken first."""
    world1.dataset = bring(world1, row_format)
    with pytest.raises(InvalidError, match=words) as refused:
        world1.submit("alice", **changes)
    assert [pointer for pointer, _ in refused.value.problems] == ["/datasets/0/type"]


def test_a_job_on_pairs_is_planned_and_queued(world1: World) -> None:
    world1.dataset = bring(world1, RowFormat.PREFERENCE)
    file = {"base_model": "tiny", "datasets": [{"path": f"sha256:{world1.dataset}"}], "max_steps": 4, "rl": "dpo"}
    plan = plans.plan(world1.ctx, world1.actors["alice"], JobSpec.model_validate(file | {"val_set_size": 0.2}))
    assert plan is not None
    job = world1.job(world1.submit("alice", rl="dpo", rl_beta=0.3, val_set_size=0.2))
    assert (job.spec["rl"], job.spec["rl_beta"], job.spec["datasets"][0]["type"]) == ("dpo", 0.3, "preference")
    plain = world1.submit("alice", rl="dpo")
    assert "rl_beta" not in world1.job(plain).spec


def test_a_configuration_of_axolotl_keeps_its_method() -> None:
    """Guard: with `type` translated as in supervised fine-tuning, the pairs were read as conversations."""
    config = {
        "base_model": "org/model",
        "adapter": "qlora",
        "rl": "simpo",
        "rl_beta": 2.0,
        "simpo_gamma": 0.4,
        "cpo_alpha": 0.1,
        "datasets": [{"path": "org/pairs", "type": "chat_template.default"}],
    }
    found = translate(config)
    assert found.spec["datasets"] == [{"path": "org/pairs"}]
    assert "datasets[0].type" in found.different
    spec = JobSpec.model_validate(found.spec)
    assert (spec.rl, spec.method_settings) == ("simpo", {"rl_beta": 2.0, "simpo_gamma": 0.4, "cpo_alpha": 0.1})


def test_a_clone_may_have_another_beta_and_no_other_method(world1: World) -> None:
    """From a checkpoint: the adapter stays valid with another strength of the same loss."""
    from types import SimpleNamespace

    from worker.shared.manifest import Recipe

    world1.dataset = bring(world1, RowFormat.PREFERENCE)
    origin = world1.job(world1.submit("alice", rl="dpo"))
    spec = JobSpec.model_validate(origin.spec)
    begin: Any = SimpleNamespace(step=2, manifest={"recipe": Recipe.of(spec).model_dump(mode="json")})
    check_changes(spec.model_copy(update={"rl_beta": 0.5}), begin, origin)
    with pytest.raises(InvalidError) as refused:
        check_changes(spec.model_copy(update={"rl": "orpo"}), begin, origin)
    assert [pointer for pointer, _ in refused.value.problems] == ["/rl"]
