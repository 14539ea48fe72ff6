"""What happens inside one update: slices of logits, out of memory, missing kernels, several processes."""

import functools
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.helpers.training_runs import differing
from tests.worker.wheels import have
from worker.shared import checkpoint_file
from worker.shared.manifest import Hardware
from worker.training import evaluation, ranks
from worker.training.backends import base
from worker.training.interface import Decision, UnfitMachineError
from worker.training.precision import precision_of
from worker.training.trainer import StepTrainer

DROPOUT = {"lora_dropout": 0.1, "max_steps": 3}


@pytest.mark.parametrize("elements", [2**25, 12 * 7])
def test_the_sliced_loss_is_the_cross_entropy(elements):
    """Value and gradient, in one slice and in many. Fails when the mask is left out or a slice is counted twice."""
    from worker.training import loss

    torch.manual_seed(0)
    head = torch.nn.Linear(5, 12)
    labels = torch.randint(0, 12, (3, 40))
    labels[0, 7:] = loss.IGNORE
    sliced = torch.randn(3, 40, 5, requires_grad=True)
    plain = sliced.detach().clone().requires_grad_()
    found = loss.summed_loss(sliced, head.requires_grad_(False), labels, slice_elements=elements)
    logits = head(plain)[:, :-1].flatten(0, 1)
    wanted = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=loss.IGNORE, reduction="sum")
    (found / 7).backward()
    (wanted / 7).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(sliced.grad, plain.grad)


def out_of_memory_above(rows):
    """A trainer on a card where a micro-batch of more than `rows` rows fails after its backward pass has begun."""

    class Tight(StepTrainer):
        failures: ClassVar[list[int]] = []

        def summed_rows(self, model, examples):
            result = super().summed_rows(model, examples)
            if len(examples) > rows:
                self.failures.append(len(examples))
                result.backward()
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

    return Tight


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(training):
    """The same bytes as a run that had the smaller micro-batch from the start. Guard: without the random numbers put
    back dropout differs; without the gradients put away the failed pass is counted; without the halving it never ends.
    """
    small = training.run(training.spec(**DROPOUT, micro_batch_size=2))
    card = out_of_memory_above(2)
    tight = training.run(training.spec(**DROPOUT, micro_batch_size=4), trainer_class=card)
    assert card.failures == [4]
    assert tight.steps == small.steps
    assert differing(tight.tensors, small.tensors) == []
    assert tight.manifest.micro_batch_size == 2


def test_a_row_that_does_not_fit_is_said(training):
    with pytest.raises(UnfitMachineError, match=r"ran out of memory .* use a larger machine"):
        training.session(training.spec(), trainer_class=out_of_memory_above(0))


def test_an_operation_without_a_deterministic_kernel_is_allowed_and_noted(training):
    """The run goes on, and nothing calls it exact. Guards: without the note in the manifest the next session would, and
    without the look at the error in `_reaches_adapter` the job ended before its first step."""
    seen = []

    class Strict(StepTrainer):
        def summed_rows(self, model, examples):
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                seen.append(1)
            return super().summed_rows(model, examples)

        def summed(self, model, batch):
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set")
            return super().summed(model, batch)

    run = training.run(training.spec(max_steps=4), [2], trainer_class=Strict)
    assert len(seen) == 2
    assert run.manifest.state["deterministic"] is False
    assert [fidelity for hooks in run.sessions for _, fidelity, _ in hooks.restores] == ["exact", "state-exact"]


def test_an_infinite_gradient_is_refused_before_it_is_saved(training):
    """Guard: without the check the update has gone into the weights, and a save in between would keep them."""
    from worker.training.interface import PermanentError

    class Infinite(StepTrainer):
        def _get_grad_norm(self, *_, **__):
            self.step_grad_norm = float("inf")

    with pytest.raises(PermanentError, match="the gradient norm became inf at step 1; lower learning_rate"):
        training.session(training.spec(), trainer_class=Infinite)


def test_two_processes_train_on_the_same_samples_as_one(training):
    """Guard: without the sum of gradients, or without the global token count, loss and norm part from those of one
    process; without the same order of samples the checksums do.
    """
    pair = training.run(training.spec(max_steps=4, micro_batch_size=2), processes=2)
    alone = training.run(training.spec(max_steps=4, micro_batch_size=2))
    assert pair.manifest.world_size == 2
    for (step, values), (_, wanted) in zip(pair.steps, alone.steps, strict=True):
        assert values["batch_crc32"] == wanted["batch_crc32"], step
        assert values["tokens"] == wanted["tokens"]
        assert values["learning_rate"] == wanted["learning_rate"]
        assert values["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert values["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)


def test_one_process_goes_on_where_two_stopped(training):
    """The followers hear the leader's decision. Guard: without `decided` they train on and wait for it for ever."""
    spec = training.spec(max_steps=4, micro_batch_size=2)
    _, hooks = training.session(spec, decisions={2: Decision.SAVE_AND_STOP}, processes=2)
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    result, later = training.session(spec, resume=half)
    assert later.restores == [(2, "state-exact", "hf")]
    alone = training.run(spec)
    assert result.complete
    assert [v["batch_crc32"] for _, v in hooks.steps + later.steps] == [v["batch_crc32"] for _, v in alone.steps]


def card(name, capability, count=1, **more):
    return Hardware(
        device="cuda", name=name, compute_capability=capability, count=count, memory_bytes=16 * 2**30, **more
    )


def test_a_card_that_is_too_old_is_refused_in_words():
    with pytest.raises(UnfitMachineError, match=r"Tesla P100 has compute capability 6\.0, too old .* use a T4"):
        base.select("auto", card("Tesla P100", (6, 0)))


def test_a_card_that_runs_no_kernel_is_refused_and_not_replaced_by_the_cpu():
    with pytest.raises(UnfitMachineError, match="cannot run torch"):
        base.select("auto", Hardware(trouble="Tesla P100 (compute capability 6.0) cannot run torch of torch 2.13.0"))


@pytest.mark.parametrize(
    ("wanted", "hardware", "world", "installed", "name"),
    [
        ("auto", card("T4", (7, 5)), 1, True, "unsloth"),
        ("auto", card("T4", (7, 5)), 1, False, "hf"),
        ("auto", card("T4", (7, 5), 2), 2, True, "hf"),
        ("hf", card("T4", (7, 5)), 1, True, "hf"),
        ("auto", Hardware(), 1, True, "hf"),
    ],
)
def test_the_backend_follows_the_machine(monkeypatch, tmp_path, wanted, hardware, world, installed, name):
    if installed:
        have(tmp_path, "unsloth", "1.0")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setitem(sys.modules, "unsloth", None)  # Python's own way to say "absent"
    assert base.select(wanted, hardware, world).name == name


def test_unsloth_is_installed_only_where_used_and_the_machine_is_ours(monkeypatch, tmp_path):
    """Guard: without the driver's leave, a person's own environment was changed unasked."""
    asked = []
    monkeypatch.setitem(sys.modules, "unsloth", None)  # Python's own way to say "absent"

    def bring(*places):
        asked.append(places)
        return "no room"

    install = functools.partial(base.install_unsloth, bring=bring)
    t4 = card("T4", (7, 5))
    assert install("auto", t4) == ""
    monkeypatch.setenv("WORKER_MAY_INSTALL", "1")
    for wanted, machine, world in [("hf", t4, 1), ("auto", card("T4", (7, 5), 2), 2), ("auto", Hardware(), 1)]:
        assert install(wanted, machine, world) == ""
    with pytest.raises(UnfitMachineError, match="too old"):
        install("auto", card("Tesla P100", (6, 0)))
    assert asked == []
    assert install("auto", t4) == "no room"
    assert install("auto", t4) == "no room"
    assert asked == [(None, None)], "it is not tried again"
    monkeypatch.setenv("WORKER_MAY_INSTALL", str(tmp_path))
    monkeypatch.setenv("WORKER_PACKAGES", "/own/packages")
    install("unsloth", t4)
    assert asked[1:] == [(tmp_path, Path("/own/packages-unsloth"))]


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_half_precision_is_what_the_card_does_natively(capability, precision):
    assert precision_of(card("a card", capability)) == precision


def test_as_many_gpus_as_divide_the_batch(training):
    two = card("T4", (7, 5), 2)
    assert ranks.world_size(training.spec(global_batch_size=8), two) == 2
    assert ranks.world_size(training.spec(global_batch_size=7, micro_batch_size=1), two) == 1
    assert ranks.world_size(training.spec(backend="unsloth"), two) == 1
    assert ranks.world_size(training.spec(), Hardware(count=4)) == 1


def test_a_bf16_run_that_fp16_cannot_hold_is_not_called_a_bad_checkpoint(training):
    """The checkpoint is fine and the card is not. Guard: as a `CheckpointError` the server would give the checkpoint
    up."""
    _, hooks = training.session(training.spec(), decisions={2: Decision.SAVE_AND_STOP})
    now = hooks.snapshots[-1].manifest.model_copy(update={"precision": "fp16"})
    probe = now.probe.model_copy(update={"loss": 1.0})
    saved = now.model_copy(update={"precision": "bf16", "probe": probe})
    with pytest.raises(UnfitMachineError, match=r"trained in bf16 .* use a card of compute capability 8\.0"):
        evaluation.check_probe(saved, now)
