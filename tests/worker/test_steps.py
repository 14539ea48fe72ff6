"""What happens inside one update: slices of logits, out of memory, missing kernels, several processes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.shared.messages import Hardware
from worker.training import ranks, trainer
from worker.training.backends import base
from worker.training.interface import Decision, UnfitMachineError
from worker.training.precision import precision_of
from worker.training.trainer import StepTrainer

SETTINGS = trainer._settings
DROPOUT = {"lora_dropout": 0.1, "max_steps": 3}


@pytest.mark.parametrize("elements", [2**25, 12 * 7])
def test_the_sliced_loss_is_the_cross_entropy(monkeypatch, elements):
    """Value and gradient, in one slice and in many. Fails when the mask is left out or a slice is counted twice."""
    from worker.training import loss

    monkeypatch.setattr(loss, "SLICE_ELEMENTS", elements)
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 12)
    labels = torch.randint(0, 12, (3, 40))
    labels[0, 7:] = loss.IGNORE
    sliced = torch.randn(3, 40, 5, requires_grad=True)
    plain = sliced.detach().clone().requires_grad_()
    found = loss.summed_loss(sliced, head.requires_grad_(False), labels)
    logits = head(plain)[:, :-1].flatten(0, 1)
    wanted = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=loss.IGNORE, reduction="sum")
    (found / 7).backward()
    (wanted / 7).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(sliced.grad, plain.grad)


def out_of_memory_above(rows, monkeypatch, *, once=False):
    """A card on which a micro-batch of more than `rows` rows fails after its backward pass has begun."""
    real, failures = StepTrainer._summed, []

    def tight(self, model, examples):
        result = real(self, model, examples)
        if len(examples) > rows and not (once and failures):
            failures.append(len(examples))
            result.backward()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(StepTrainer, "_summed", tight)
    return failures


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(lab, monkeypatch):
    """The same bytes as a run that had the smaller micro-batch from the start. Guard: without the random numbers put back
    dropout differs; without the gradients put away the failed pass is counted; without the halving it never ends.
    """
    small = lab.run(lab.spec(**DROPOUT, micro_batch_size=2))
    failures = out_of_memory_above(2, monkeypatch)
    tight = lab.run(lab.spec(**DROPOUT, micro_batch_size=4))
    assert failures == [4]
    assert tight.steps == small.steps
    assert differing(tight.tensors, small.tensors) == []
    assert tight.manifest.micro_batch_size == 2


def test_a_row_that_does_not_fit_is_said(lab, monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UnfitMachineError, match=r"ran out of memory .* use a larger machine"):
        lab.session(lab.spec())


def test_an_operation_without_a_deterministic_kernel_is_allowed_and_noted(lab, monkeypatch):
    """The run goes on, and nothing calls it exact. Guard: without the note in the manifest the next session would."""
    real, seen = StepTrainer._summed, []

    def strict(self, model, examples):
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            seen.append(1)
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set")
        return real(self, model, examples)

    monkeypatch.setattr(StepTrainer, "_summed", strict)
    run = lab.run(lab.spec(max_steps=4), [2])
    assert len(seen) == 2
    assert run.manifest.state["deterministic"] is False
    assert [fidelity for hooks in run.sessions for _, fidelity, _ in hooks.restores] == ["exact", "state-exact"]


def test_an_infinite_gradient_is_refused_before_it_is_saved(lab, monkeypatch):
    """Guard: without the check the update has gone into the weights, and a save in between would keep them."""
    from worker.training.interface import PermanentError

    monkeypatch.setattr(
        StepTrainer, "_get_grad_norm", lambda self, *_, **__: setattr(self, "step_grad_norm", float("inf"))
    )
    with pytest.raises(PermanentError, match="the gradient norm became inf at step 1; lower learning_rate"):
        lab.session(lab.spec())


@pytest.fixture
def two_processes(monkeypatch):
    """Gloo between two processes on the CPU, else what two T4s do with NCCL."""
    from worker.training import distributed

    monkeypatch.setattr(distributed, "world_size", lambda *_: 2)


def test_two_processes_train_on_the_same_samples_as_one(lab, two_processes, monkeypatch):
    """Guard: without the sum of gradients, or without the global token count, loss and norm part from those of one process;
    without the same order of samples the checksums do.
    """
    pair = lab.run(lab.spec(max_steps=4, micro_batch_size=2))
    monkeypatch.undo()
    alone = lab.run(lab.spec(max_steps=4, micro_batch_size=2))
    assert pair.manifest.world_size == 2
    for (step, values), (_, wanted) in zip(pair.steps, alone.steps, strict=True):
        assert values["batch_crc32"] == wanted["batch_crc32"], step
        assert values["tokens"] == wanted["tokens"]
        assert values["learning_rate"] == wanted["learning_rate"]
        assert values["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert values["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)


def test_one_process_goes_on_where_two_stopped(lab, two_processes, monkeypatch):
    """The followers hear the leader's decision. Guard: without `decided` they train on and wait for it for ever."""
    spec = lab.spec(max_steps=4, micro_batch_size=2)
    _, hooks = lab.session(spec, decisions={2: Decision.SAVE_AND_STOP})
    half = lab.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    monkeypatch.undo()
    result, later = lab.session(spec, resume=half)
    assert later.restores == [(2, "state-exact", "hf")]
    alone = lab.run(spec)
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
    with pytest.raises(UnfitMachineError, match="ran no kernel"):
        base.select("auto", Hardware(trouble="Tesla P100 (compute capability 6.0) ran no kernel of torch 2.13.0"))


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
def test_the_backend_follows_the_machine(monkeypatch, wanted, hardware, world, installed, name):
    monkeypatch.setattr(base, "find_spec", lambda _: object() if installed else None)
    assert base.select(wanted, hardware, world).name == name


def test_unsloth_is_installed_only_where_it_would_be_used_and_the_machine_is_ours(monkeypatch, tmp_path):
    """Guard: without the driver's leave, a person's own environment was changed unasked."""
    asked = []
    monkeypatch.setattr(base, "find_spec", lambda _: None)
    monkeypatch.setattr(base.install, "unsloth", lambda *places: asked.append(places) or "no room")
    base._install_unsloth.cache_clear()
    t4 = card("T4", (7, 5))
    assert base.install_unsloth("auto", t4) == ""
    monkeypatch.setenv("WORKER_MAY_INSTALL", "1")
    for wanted, machine, world in [("hf", t4, 1), ("auto", card("T4", (7, 5), 2), 2), ("auto", Hardware(), 1)]:
        assert base.install_unsloth(wanted, machine, world) == ""
    with pytest.raises(UnfitMachineError, match="too old"):
        base.install_unsloth("auto", card("Tesla P100", (6, 0)))
    assert asked == []
    assert base.install_unsloth("auto", t4) == "no room"
    assert base.install_unsloth("auto", t4) == "no room"
    assert asked == [(None, None)], "it is not tried again"
    monkeypatch.setenv("WORKER_MAY_INSTALL", str(tmp_path))
    monkeypatch.setenv("WORKER_PACKAGES", "/own/packages")
    base.install_unsloth("unsloth", t4)
    assert asked[1:] == [(tmp_path, Path("/own/packages-unsloth"))]
    base._install_unsloth.cache_clear()


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_half_precision_is_what_the_card_does_natively(capability, precision):
    assert precision_of(card("a card", capability)) == precision


def test_as_many_gpus_as_divide_the_batch(lab):
    two = card("T4", (7, 5), 2)
    assert ranks.world_size(lab.spec(global_batch_size=8), two) == 2
    assert ranks.world_size(lab.spec(global_batch_size=7, micro_batch_size=1), two) == 1
    assert ranks.world_size(lab.spec(backend="unsloth"), two) == 1
    assert ranks.world_size(lab.spec(), Hardware(count=4)) == 1


def test_a_bf16_run_that_fp16_cannot_hold_is_not_called_a_bad_checkpoint(lab, monkeypatch):
    """The checkpoint is fine and the card is not. Guard: as a `CheckpointError` the server would give the checkpoint up."""
    _, hooks = lab.session(lab.spec(), decisions={2: Decision.SAVE_AND_STOP})
    snapshot = hooks.snapshots[-1]
    probe = snapshot.manifest.probe.model_copy(update={"loss": 1.0})
    manifest = snapshot.manifest.model_copy(update={"precision": "bf16", "probe": probe})
    half = lab.folder / "half.safetensors"
    checkpoint_file.write(half, snapshot.tensors, manifest)
    real = base.load
    monkeypatch.setattr(base, "load", lambda *a: dataclasses.replace(real(*a), precision="fp16"))
    monkeypatch.setattr("worker.training.trainer._settings", _in_fp32)
    with pytest.raises(UnfitMachineError, match=r"trained in bf16 .* use a card of compute capability 8\.0"):
        lab.session(lab.spec(), resume=half)


def _in_fp32(spec, loaded, hardware, work_dir):
    return SETTINGS(spec, dataclasses.replace(loaded, precision="fp32"), hardware, work_dir)
