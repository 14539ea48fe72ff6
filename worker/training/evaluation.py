"""What is measured besides the training loss: held-out loss, sample answers, and the probe that checks a restore."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from worker.shared.checkpoint_file import CheckpointError
from worker.shared.messages import Fidelity, Manifest, Probe, Sample
from worker.training.data import Rows, collate
from worker.training.encoding import IGNORE, Encoder
from worker.training.model_limits import Room
from worker.training.state import undisturbed

PROBE_TOKENS = 24
TOLERANCE = 1e-3
"""Largest relative difference of the probe loss between two machines that both compute in fp32."""
TOLERANCE_HALF = 1e-2
"""The same where one of them computes in bf16 or fp16, whose rounding differs between kinds of GPU."""

SummedLoss = Callable[[dict[str, torch.Tensor]], float]
"""Loss of a batch, summed over its trained tokens, for the model in its current mode."""


def eval_loss(
    model: torch.nn.Module, summed_loss: SummedLoss, rows: Rows, batch_size: int, pad_id: int
) -> float | None:
    """Mean loss per trained token of the held-out rows; `None` if they hold no trained token. Disturbs nothing."""
    total, tokens = 0.0, 0
    with undisturbed(model):
        for begin in range(0, len(rows), batch_size):
            batch = collate([rows[i] for i in range(begin, min(begin + batch_size, len(rows)))], pad_id)
            count = int(batch["labels"].ne(IGNORE).sum())
            if count:
                total += summed_loss(batch)
                tokens += count
    return total / tokens if tokens else None


def answer(
    model: Any, tokenizer: Any, encoder: Encoder, prompts: tuple[str, ...], step: int, max_tokens: int, chat: bool
) -> tuple[Sample, ...]:
    """Greedy answers to `prompts`, each of at most `max_tokens` tokens. Disturbs nothing."""
    samples = []
    room = Room.of(model.get_base_model())
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    with undisturbed(model):
        for prompt in prompts:
            ids = torch.tensor([encoder.prompt_ids(prompt, chat)], device=model.device)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room.left(ids.shape[1], max_tokens),
                do_sample=False,
                use_cache=True,
                eos_token_id=sorted(ends) or None,
                pad_token_id=pad_id_of(model, tokenizer),
            )
            text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
            samples.append(Sample(step=step, prompt=prompt, text=text))
    return tuple(samples)


def pad_id_of(model: Any, tokenizer: Any) -> int:
    """Id to pad with; any that the model knows will do, since padding is masked out."""
    known = model.get_input_embeddings().weight.shape[0]
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < known), 0)


def probe(model: torch.nn.Module, summed_loss: SummedLoss, seed: int, vocabulary: int) -> Probe:
    """Loss of one fixed batch of `PROBE_TOKENS` tokens, a function of seed and vocabulary size. Disturbs nothing."""
    words = np.random.Philox(np.random.SeedSequence([2, seed])).random_raw(PROBE_TOKENS)
    ids = torch.from_numpy((words % np.uint64(vocabulary)).astype(np.int64))[None, :]
    labels = ids.clone()
    labels[0, 0] = IGNORE
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    with undisturbed(model):
        loss = summed_loss({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return Probe(tokens_sha256=digest, loss=loss / (PROBE_TOKENS - 1))


def check_probe(saved: Manifest, now: Manifest) -> Fidelity:
    """Label of this hand-off; `now` describes the restored run at the saved step.

    On the same setup the probe's loss has to be equal to the last bit; elsewhere within the tolerance. Raises
    `CheckpointError` if the restored model does not answer as the saved one did.
    """
    before, after = saved.probe, now.probe
    if before is None or after is None or before.tokens_sha256 != after.tokens_sha256:
        raise CheckpointError("the checkpoint carries no probe for this tokenizer and seed, so it cannot be verified")
    same = _setup(saved) == _setup(now)
    if same and before.loss == after.loss:
        return Fidelity.EXACT if saved.state.get("deterministic", True) else Fidelity.STATE_EXACT
    tolerance = TOLERANCE if saved.precision == now.precision == "fp32" else TOLERANCE_HALF
    close = abs(before.loss - after.loss) <= tolerance * max(1.0, abs(before.loss))
    if same or not close:
        where = "the same setup" if same else "another machine"
        raise CheckpointError(
            f"the restored model answers differently: probe loss {after.loss!r} on {where}, {before.loss!r} when saved"
        )
    return Fidelity.STATE_EXACT


def _setup(manifest: Manifest) -> list[Any]:
    """Everything besides the state that may change the last bit of a result."""
    machine = manifest.hardware
    return [
        (machine.device, machine.name, machine.compute_capability, machine.cpu_count, manifest.state.get("threads")),
        (manifest.backend, manifest.precision, manifest.micro_batch_size, manifest.world_size),
        manifest.versions,
    ]
