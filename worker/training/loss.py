"""Cross-entropy from hidden states in slices, so that the logits of a whole micro-batch never exist at once.

At 2,048 tokens and a vocabulary of 32,768, the logits of two rows take half a gigabyte in fp32, and so does their
gradient. A slice takes 128 MiB for any batch.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from worker.training.encoding import IGNORE

SLICE_ELEMENTS = 2**25
"""Logits computed at once. A constant, because the order of summation must be the same on every machine."""

_CHANGES_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logits_mup_width_multiplier",
)
"""Settings of models that compute more than one matrix product from the last hidden state to the logits."""

Hidden = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(causal model, input_ids, attention_mask)` to the input of its head: (batch, length, width)."""


def backbone_states(causal: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The last hidden states of any transformers model, without its head."""
    return causal.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True
    ).last_hidden_state


def add_summed_loss(causal: Any, hidden: Hidden) -> None:
    """Add the arguments `summed_labels` and `token_labels` to a causal model's `forward`.

    With the first it returns the summed loss, with the second the loss of each token: (batch, length - 1), and 0 for a
    label of `IGNORE`. It is part of `forward`, so that wrappers of the model (PEFT, autocast) still apply.
    """
    original = causal.forward
    direct = _reaches_its_head_directly(causal)

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        summed_labels: torch.Tensor | None = None,
        token_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        labels, by_token = (summed_labels, False) if token_labels is None else (token_labels, True)
        if labels is None:
            return original(*args, **kwargs)
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if direct and _has_plain_head(self):
            of_states = token_losses if by_token else summed_loss
            return of_states(hidden(self, ids, mask), self.get_output_embeddings(), labels)
        logits = _wide(original(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1])
        reduction = "none" if by_token else "sum"
        losses = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction=reduction)
        return losses.view(len(labels), -1) if by_token else losses

    causal.forward = types.MethodType(forward, causal)


def summed_loss(
    states: torch.Tensor, head: Any, labels: torch.Tensor, *, slice_elements: int = SLICE_ELEMENTS
) -> torch.Tensor:
    """Sum of the cross-entropies of each state with the label after it, as an fp32 scalar.

    `states` is (batch, length, width). Labels of `IGNORE` do not count. The head is frozen, so only the states get a
    gradient. At most `slice_elements` logits exist at once.
    """
    return _cross_entropy(states, head, labels, slice_elements)[0]


def token_losses(
    states: torch.Tensor, head: Any, labels: torch.Tensor, *, slice_elements: int = SLICE_ELEMENTS
) -> torch.Tensor:
    """The cross-entropy of each state with the label after it: (batch, length - 1) in fp32, 0 where it does not count.

    Each may have its own weight in what is trained on. Otherwise as `summed_loss`.
    """
    return _cross_entropy(states, head, labels, slice_elements)[1].view(len(labels), -1)


def _cross_entropy(states: torch.Tensor, head: Any, labels: torch.Tensor, slice_elements: int) -> Any:
    return _CrossEntropy.apply(
        states[:, :-1].flatten(0, 1), head.weight, head.bias, labels[:, 1:].flatten(), slice_elements
    )


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _has_plain_head(causal: Any) -> bool:
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    frozen = isinstance(head, nn.Linear) and not any(p.requires_grad for p in head.parameters())
    return frozen and all(getattr(config, name, None) in (None, 1, 1.0) for name in _CHANGES_LOGITS)


def _reaches_its_head_directly(causal: Any) -> bool:
    """Whether there are no weights between backbone and head. BERT-like models have a dense layer and a norm there."""
    known = {id(p) for part in (causal.base_model, causal.get_output_embeddings()) if part for p in part.parameters()}
    return all(id(parameter) in known for parameter in causal.parameters())


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient in the forward pass, slice by slice, while the slice's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        slice_elements: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        states = states.to(weight.dtype)
        rows = max(1, slice_elements // weight.shape[0])
        kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=kind, device=states.device)
        losses = torch.empty(len(labels), dtype=kind, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(labels), rows):
            part = slice(begin, begin + rows)
            trained = labels[part] != IGNORE
            label = labels[part].clamp(min=0)[:, None]
            logits = _wide(linear(states[part], weight, bias))
            spread = logits.logsumexp(dim=1, keepdim=True)
            of_tokens = (spread - logits.gather(1, label))[:, 0] * trained
            total += of_tokens.sum()
            losses[part] = of_tokens
            if gradient is not None:
                share = logits.sub_(spread).exp_()
                share.scatter_(1, label, share.gather(1, label) - 1.0)
                gradient[part] = share.mul_(trained[:, None]).to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total, losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        of_sum, of_tokens = grad_outputs
        factor = of_sum if of_tokens is None else of_tokens[:, None]
        # In fp32, since the product of loss scale and a small gradient may exceed the range of fp16.
        return (_wide(gradient) * factor).to(gradient.dtype), None, None, None, None
