"""Evaluation: validation loss, sample answers, and the probe that checks a restore."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from worker.shared.checkpoint_file import CheckpointError
from worker.shared.manifest import Manifest, Probe
from worker.shared.messages import Sample
from worker.training import machine_setup
from worker.training.data import Rows, collate
from worker.training.determinism import lacks_deterministic_kernel
from worker.training.encoding import IGNORE, Encoder, Example
from worker.training.end_tokens import answer_ends
from worker.training.interface import PermanentError, UnfitMachineError
from worker.training.model_limits import ModelLimits
from worker.training.module_state import Fresh, ModuleState
from worker.training.state import (
    evaluation_mode,
    gradients_sha256,
    restored_afterwards,
    seed_all,
    trainable,
    values_sha256,
)

PROBE_TOKENS = 24
TOLERANCE = 1e-3
"""Maximum relative difference of the probe loss between two machines that both compute in fp32."""
TOLERANCE_HALF = 1e-2
"""The same if one of them computes in bf16 or fp16. Their rounding differs between kinds of GPU."""

SummedLoss = Callable[[dict[str, torch.Tensor]], float]
"""Computes the loss of a batch, summed over its trained tokens, in the model's current mode."""
SummedTensor = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
"""The same of a model, with its gradient."""
_ODD_MODEL = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MACHINE = re.compile("cuda|cudnn|cublas|nccl|gloo|memory|triton|kernel image", re.IGNORECASE)
"""In an error of the machine and not of the model."""


def eval_loss(
    model: torch.nn.Module, summed_loss: SummedLoss, rows: Rows, batch_size: int, pad_id: int
) -> float | None:
    """Mean loss per trained token of the validation rows. None if they have no trained token.

    Leaves the random generators, and mode and state of the model, unchanged.
    """
    total, tokens = 0.0, 0
    with evaluation_mode(model):
        for begin in range(0, len(rows), batch_size):
            batch = collate([rows[i] for i in range(begin, min(begin + batch_size, len(rows)))], pad_id)
            count = int(batch["labels"].ne(IGNORE).sum())
            if count:
                total += summed_loss(batch)
                tokens += count
    return total / tokens if tokens else None


def sample_answers(
    model: Any, tokenizer: Any, encoder: Encoder, prompts: tuple[str, ...], step: int, max_tokens: int, chat: bool
) -> tuple[Sample, ...]:
    """Greedy answers to `prompts`, each of at most `max_tokens` tokens.

    Leaves the random generators, and mode and state of the model, unchanged.
    """
    samples = []
    limits = ModelLimits.of(model.get_base_model())
    ends = answer_ends(model, tokenizer, encoder.own_text_of if chat else None)
    with evaluation_mode(model):
        for prompt in prompts:
            ids = torch.tensor([encoder.prompt_ids(prompt, chat)], device=model.device)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limits.answer_tokens(ids.shape[1], max_tokens),
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=pad_id_of(model, tokenizer),
            )
            text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
            samples.append(Sample(step=step, prompt=prompt, text=text))
    return tuple(samples)


def pad_id_of(model: Any, tokenizer: Any) -> int:
    """Padding id. Any id that the model knows is fine, since padding is masked out."""
    known = model.get_input_embeddings().weight.shape[0]
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < known), 0)


def probe(
    model: torch.nn.Module, summed: SummedTensor, seed: int, vocabulary: int, pad_id: int, *, is_strict: bool = True
) -> Probe:
    """Loss of one fixed batch of `PROBE_TOKENS` tokens, and a hash of the gradients of another one.

    The batches depend on seed and vocabulary size only. There is no hash if a kernel is not deterministic or memory
    runs out. Restores the random generators and the model's mode and state afterwards.
    """
    ids = _probe_ids(2, seed, vocabulary)[None, :]
    labels = ids.clone()
    labels[0, 0] = IGNORE
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    with evaluation_mode(model):
        loss = float(summed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}))
    gradients = None
    if is_strict:
        with restored_afterwards(model):
            gradients = _probe_gradients(model, summed, seed, vocabulary, pad_id)
    return Probe(
        tokens_sha256=digest,
        loss=loss / (PROBE_TOKENS - 1),
        values_sha256=values_sha256(model),
        gradients_sha256=gradients,
    )


def first_pass(model: torch.nn.Module, summed: SummedTensor, seed: int, vocabulary: int, pad_id: int) -> Fresh:
    """The state of a model as loaded, and what one training pass sets in it. Restores all of it afterwards.

    Raises `PermanentError` if the model cannot be trained at all.
    """
    with restored_afterwards(model):
        loaded = ModuleState(model)
        try:
            _probe_gradients(model, summed, seed, vocabulary, pad_id)
            reaches = _reaches_adapter(model, summed, seed, vocabulary, pad_id)
        except _ODD_MODEL as error:
            if isinstance(error, torch.OutOfMemoryError) or _MACHINE.search(str(error)):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise PermanentError(
                f"this base model cannot be trained: its first pass failed ({reason}); choose another base model or "
                "other lora_target_modules"
            ) from error
        if not reaches:
            raise PermanentError(
                "the loss of this base model does not depend on the adapter, so nothing can be learnt; "
                "choose other lora_target_modules"
            )
        return Fresh(loaded, ModuleState(model))


def _reaches_adapter(model: torch.nn.Module, summed: SummedTensor, seed: int, vocabulary: int, pad_id: int) -> bool:
    """Whether the adapter has a gradient. Asked in evaluation mode too, since training may drop layers at random."""
    if any(parameter.grad is not None for parameter in trainable(model).values()):
        return True
    model.eval()
    try:
        return summed(model, _padded_rows(seed, vocabulary, pad_id)).requires_grad
    except torch.OutOfMemoryError:
        return True  # training itself finds out whether one row fits
    except RuntimeError as error:
        if not lacks_deterministic_kernel(error):
            raise
        return True  # training goes on with another kernel


def _probe_gradients(
    model: torch.nn.Module, summed: SummedTensor, seed: int, vocabulary: int, pad_id: int
) -> str | None:
    """Hash of the gradients of a padded batch of two rows in training mode."""
    model.train()
    seed_all(seed)
    try:
        loss = summed(model, _padded_rows(seed, vocabulary, pad_id))
        if loss.requires_grad:
            loss.backward()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if not lacks_deterministic_kernel(error):
            raise
        return None
    return gradients_sha256(model)


def _padded_rows(seed: int, vocabulary: int, pad_id: int) -> dict[str, torch.Tensor]:
    ids = _probe_ids(3, seed, vocabulary).tolist()
    half = ids[: PROBE_TOKENS // 2]
    return collate([Example(ids, [IGNORE, *ids[1:]]), Example(half, [IGNORE, *half[1:]])], pad_id)


def _probe_ids(stream: int, seed: int, vocabulary: int) -> torch.Tensor:
    random_words = np.random.Philox(np.random.SeedSequence([stream, seed])).random_raw(PROBE_TOKENS)
    return torch.from_numpy((random_words % np.uint64(vocabulary)).astype(np.int64))


def check_probe(saved: Manifest, now: Manifest) -> list[str]:
    """Reasons why this hand-off is not exact, in words. `now` describes the restored run at the saved step.

    Raises `CheckpointError` if the restored model does not answer as the saved one did, and `UnfitMachineError` if that
    is because the run left the range of fp16.
    """
    before, after = saved.probe, now.probe
    if before is None or after is None or before.tokens_sha256 != after.tokens_sha256:
        raise CheckpointError("the checkpoint has no probe for this tokenizer and seed, so it cannot be verified")
    setup = setup_differences(saved, now)
    if not _answers_alike(saved, now, is_same_setup=not setup):
        words = f"the restored model differs: probe loss {after.loss!r} here, {before.loss!r} when saved"
        if saved.precision == "bf16" and now.precision == "fp16":
            raise UnfitMachineError(
                f"this run was trained in bf16 and does not hold in the range of fp16, which is what "
                f"{now.hardware.name} computes in ({words}); use a card of compute capability 8.0 or newer"
            )
        raise CheckpointError(words)
    return [*setup, *_probe_differences(before, after), *_saved_inexact(saved)]


def _answers_alike(saved: Manifest, now: Manifest, *, is_same_setup: bool) -> bool:
    """Whether the restored model is the saved one. Another machine may compute a slightly different loss."""
    before, after = saved.probe, now.probe
    assert before is not None
    assert after is not None
    if before.values_sha256 is None:  # saved by an earlier version
        if before.loss != after.loss and is_same_setup:
            return False
    elif before.values_sha256 != after.values_sha256:
        return False
    tolerance = TOLERANCE if saved.precision == now.precision == "fp32" else TOLERANCE_HALF
    return abs(before.loss - after.loss) <= tolerance * max(1.0, abs(before.loss))


def setup_differences(saved: Manifest, now: Manifest) -> list[str]:
    """What differs of everything besides the state that may change the last bit of a result."""
    before, after = _setup(saved), _setup(now)
    found = [f"{name} was {before[name]} and is {after[name]}" for name in before if before[name] != after[name]]
    # A checkpoint of an earlier version has no further description of its machine.
    described = saved.state.get("setup")
    return found + (machine_setup.differences(described, now.state["setup"]) if described else [])


def _setup(manifest: Manifest) -> dict[str, Any]:
    machine = manifest.hardware
    return {
        "the device": (machine.device, machine.name, machine.compute_capability),
        "the number of CPUs": machine.cpu_count,
        "the number of threads": manifest.state.get("threads"),
        "the backend": manifest.backend,
        "the precision": manifest.precision,
        "the micro-batch": manifest.micro_batch_size,
        "the number of processes": manifest.world_size,
        "the set of packages": manifest.versions,
    }


def _probe_differences(before: Probe, after: Probe) -> list[str]:
    if before.loss != after.loss:
        return [f"the probe's loss was {before.loss!r} and is {after.loss!r}"]
    hashes = (before.gradients_sha256, after.gradients_sha256)
    return ["the probe's gradients differ"] if None not in hashes and hashes[0] != hashes[1] else []


def _saved_inexact(saved: Manifest) -> list[str]:
    kernels = "the session before used a kernel that is not deterministic"
    found = [] if saved.state.get("deterministic", True) else [kernels]
    if lost := saved.state.get("not_kept"):
        found.append(f"the checkpoint cannot contain the model's own state {', '.join(lost[:4])}")
    return found
