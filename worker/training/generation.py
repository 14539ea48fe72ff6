"""Answers of a model to a batch of prompts, and the loss of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from worker.training.data import trained_tokens
from worker.training.encoding import Encoder, Example
from worker.training.end_tokens import answer_ends, stop_tokens
from worker.training.evaluation import pad_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: the tokens that end one, the padding, the limit, and the temperature (0: greedy)."""

    ends: frozenset[int]
    pad: int
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Generated:
    """The tokens of an answer without its end token. `truncated`: it reached the limit without one."""

    ids: list[int]
    truncated: bool


def decoding_for(
    model: Any, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, max_new_tokens: int, temperature: float
) -> Decoding:
    """The decoding of a loaded model.

    An answer ends with the model's end tokens, or with the token after an answer in the chat template, which an adapter
    learns even where the model has another one. The generation settings that come with the model are taken away,
    because some of them are not greedy.
    """
    known = model.get_input_embeddings().weight.shape[0]
    ends = answer_ends(model, tokenizer, encoder.own_text_of)
    stops = frozenset(ends) | {number for number in stop_tokens(tokenizer) if number < known}
    pad = pad_id_of(model, tokenizer)
    settings = GenerationConfig(pad_token_id=pad, eos_token_id=sorted(stops) or None)
    model.generation_config = settings
    if hasattr(model, "get_base_model"):  # it has an adapter
        model.get_base_model().generation_config = settings
    return Decoding(stops, pad, max_new_tokens, temperature)


def answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seeds: Sequence[int] | None,
    *,
    stopping: StoppingCriteriaList | None = None,
) -> list[Generated]:
    """An answer to each prompt, generated together. `seeds` has one for each prompt if tokens are drawn.

    `stopping` may end all of them earlier.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), decoding.pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):  # on the left, so that every answer begins in the same column
        ids[place, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[place, width - len(prompt) :] = 1
    drawn = [Drawn(decoding.temperature, seeds)] if decoding.temperature and seeds else []
    written = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        use_cache=True,
        logits_processor=LogitsProcessorList(drawn),
        stopping_criteria=stopping,
    )
    return [_until_the_end(row, decoding.ends) for row in written[:, width:].tolist()]


def tokens(model: Any, prompt: Sequence[int], decoding: Decoding, seed: int) -> Iterator[int]:
    """The tokens of an answer one at a time, without its end token, equal to those of `answers`.

    Between two of them the caller may do anything with the model, for example answer another prompt.
    """
    drawn = LogitsProcessorList([Drawn(decoding.temperature, [seed])] if decoding.temperature else [])
    ids, cache = torch.tensor([list(prompt)], dtype=torch.int64, device=model.device), None
    for _ in range(decoding.max_new_tokens):
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=1,
            do_sample=False,
            use_cache=True,
            logits_processor=drawn,
            return_dict_in_generate=True,
        )
        ids, cache = written.sequences, written.past_key_values
        token = int(ids[0, -1])
        if token in decoding.ends:
            return
        yield token


def _until_the_end(ids: list[int], ends: frozenset[int]) -> Generated:
    end = next((place for place, number in enumerate(ids) if number in ends), None)
    return Generated(ids[:end], truncated=end is None)


class Drawn(LogitsProcessor):
    """Draws each token by the Gumbel-max method: the most probable one after noise has the model's distribution.

    Each row has a generator of its own on the CPU, so its noise depends neither on the batch nor on the device.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        each = [torch.empty(scores.shape[1]).exponential_(generator=chance) for chance in self._generators]
        return scores.float() / self._temperature - torch.stack(each).log().to(scores.device)  # pyright: ignore[reportReturnType] - a tensor of floats


def seed_of(seed: int, number: int, arm: str) -> int:
    """The seed of an arm's answer to one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {arm}".encode()).digest()[:7])


def loss_of_answers(model: Any, row: Example) -> float:
    """Mean loss of the trained tokens of a row, in nats. The model has `worker.training.loss.add_summed_loss`."""
    ids, labels = (torch.tensor([part], dtype=torch.int64, device=model.device) for part in (row.input_ids, row.labels))
    total = model(input_ids=ids, attention_mask=torch.ones_like(ids), summed_labels=labels)
    return float(total) / trained_tokens([row])


def mean_loss(model: Any, ids: Sequence[int]) -> float:
    """Mean loss of the tokens after the first, in nats."""
    batch = torch.tensor([list(ids)], dtype=torch.int64, device=model.device)
    logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits
    return float(functional.cross_entropy(logits[0, :-1].float(), batch[0, 1:]))
