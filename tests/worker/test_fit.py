"""The planner's arithmetic, against the model's published numbers and against what a GPU was seen to take."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu.models import LORA_PARAMETERS, MISTRAL_7B, MISTRAL_7B_PARAMETERS
from worker.shared import memory_estimate
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Shape

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks/results/gpu.json").read_text())["items"]
_MISTRAL = Shape.of(MISTRAL_7B)
assert _MISTRAL is not None
MISTRAL: Shape = _MISTRAL
T4 = int(14.56 * 2**30)


def paper(**changes):
    file = {
        "base_model": "m",
        "datasets": [{"path": "d"}],
        "max_steps": 1,
        "adapter": "qlora",
        "optimizer": "adamw_8bit",
        "sequence_len": 2048,
        "global_batch_size": 8,
    }
    return JobSpec.model_validate(file | changes)


def test_the_shape_of_mistral():
    assert MISTRAL.parameters == MISTRAL_7B_PARAMETERS
    assert MISTRAL.lora_parameters(16) == LORA_PARAMETERS


@pytest.mark.parametrize("backend", ["unsloth", "hf"])
def test_the_estimate_is_within_a_tenth_of_what_was_measured(backend):
    """A few steps at each micro-batch, and a worker's whole session, saves included, at 2."""
    seen = [(size["micro_batch"], size["measured_gib"]) for size in MEASURED[f"peaks-{backend}"]["peaks"]]
    for micro, measured in [*seen, (2, MEASURED[f"orchestrated-{backend}"]["peak_reserved_gib"])]:
        estimate = memory_estimate.gpu_bytes(paper(), MISTRAL, backend=backend, micro_batch=micro) / 2**30
        assert estimate == pytest.approx(measured, rel=0.1), (micro, measured)


def test_the_micro_batch_is_the_largest_that_fits_and_divides():
    def chosen(room, rows=8, backend="hf"):
        return memory_estimate.micro_batch(paper(), MISTRAL, room, backend=backend, rows=rows, most_tokens=16_384)

    assert chosen(80 * 2**30) == 8
    assert chosen(T4) == 4
    assert chosen(8 * 2**30) == 2
    assert chosen(T4, rows=6) == 6
    assert chosen(T4, rows=7, backend="unsloth") == 7
    assert chosen(5 * 2**30) is None


def test_full_precision_of_a_seven_billion_model_does_not_fit_a_t4():
    assert (
        memory_estimate.gpu_bytes(paper(adapter="lora"), MISTRAL)
        > T4
        > memory_estimate.gpu_bytes(paper(), MISTRAL, micro_batch=4)
    )


def test_the_least_that_a_job_needs_depends_on_the_machine():
    """What the server promises before a launch is what the worker's own planner computes for one row."""
    full, four_bits = (memory_estimate.need(paper(adapter=kind), MISTRAL, None) for kind in ("lora", "qlora"))
    assert full.host_bytes > 28 * 10**9 > full.gpu_bytes > 14 * 10**9
    assert four_bits.gpu_bytes == memory_estimate.gpu_bytes(paper(), MISTRAL, backend="hf", micro_batch=1) < 8 * 2**30
    assert memory_estimate.need(paper(backend="unsloth"), MISTRAL, None).gpu_bytes < four_bits.gpu_bytes
    assert memory_estimate.need(paper(), None, None) == memory_estimate.Need()
    best = memory_estimate.need(paper(load_best_model_at_end=True, val_set_size=0.1), MISTRAL, None)
    assert best.host_bytes - four_bits.host_bytes == 4 * MISTRAL.lora_parameters(paper().lora_r)
    assert best.gpu_bytes == four_bits.gpu_bytes
    unknown_shape = memory_estimate.need(paper(), None, 7_000_000_000)
    assert unknown_shape.gpu_bytes == unknown_shape.host_bytes > 4 * 10**9


def test_what_cannot_fit_is_refused_before_it_is_loaded():
    from worker.shared import causes
    from worker.shared.manifest import Hardware
    from worker.training import train
    from worker.training.interface import UnfitMachineError

    card = Hardware(device="cuda", name="Tesla T4", memory_bytes=T4)
    train.check_memory(paper(), card, MISTRAL, "hf", T4)
    with pytest.raises(
        UnfitMachineError, match=r"needs about 15\.\d GiB on Tesla T4, which has 8\.0 GiB free; use a larger"
    ) as refused:
        train.check_memory(paper(adapter="lora"), card, MISTRAL, "hf", 8 * 2**30)
    assert refused.value.cause == causes.MEMORY


@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, {"hidden_size": "x", "num_attention_heads": 0}])
def test_a_config_of_something_else_has_no_shape(config):
    assert Shape.of(config) is None
