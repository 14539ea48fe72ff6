"""The judge model of an evaluation: another model, which compares both answers to each prompt in both orders.

It is loaded when the evaluated model was released, so a machine needs memory for one of them at a time. It is asked the
same as a judge model at an endpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.shared import causes, judge_prompt
from worker.shared.answers_file import MAX_SAID_BYTES, clipped
from worker.shared.dataset_files import Message
from worker.shared.evaluation_units import Arm, Measure, Unit
from worker.shared.job_spec import ENCODING, NUMERICS, JobSpec
from worker.shared.manifest import Hardware
from worker.training import base_model, generation, state
from worker.training.backends.base import check_fit
from worker.training.backends.hf import HfBackend
from worker.training.encoding import FALLBACK_TEMPLATE, Encoder, load_tokenizer
from worker.training.interface import PermanentError, UnfitMachineError
from worker.training.model_limits import ModelLimits
from worker.training.precision import precision_of

MAX_POSITIONS = 2**20
_VARIABLES = {"enable_thinking": False}
"""What chat templates are given. Models that write their reasoning first have no room for a verdict after it."""


@dataclass(frozen=True)
class Pair:
    """A prompt with two different answers."""

    prompt: list[dict[str, str]]
    answers: Mapping[str, str]


class Judge:
    """The judge model of an evaluation. All that can be known without its weights is checked when it is made.

    Raises `PermanentError` or `UnfitMachineError` with one sentence.
    """

    def __init__(self, spec: JobSpec, folder: Path, hardware: Hardware) -> None:
        assert spec.evaluation is not None
        assert spec.evaluation.judge is not None
        asked = spec.evaluation.judge
        if asked.prompt_version != judge_prompt.VERSION:
            raise PermanentError("this worker asks a judge model in another way than the job expects; evaluate again")
        self._name, self._folder, self._hardware = asked.model, folder, hardware
        self._precision = precision_of(hardware)
        with base_model.called_judge_model():
            base_model.check_code(self._name, folder, trust_remote_code=False)
            is_small = spec.adapter == "qlora" or base_model.is_quantised(self._name, folder)
            base_model.check_quantisation(self._name, folder, is_small)
            check_fit(self._name, base_model.load_bytes(self._name, folder, is_small, self._precision), hardware)
            self.sha256 = base_model.sha256(folder)
        self._tokenizer: Any = load_tokenizer(folder, trust_remote_code=False)
        if self._tokenizer.chat_template == FALLBACK_TEMPLATE:
            raise PermanentError(
                f"judge model {self._name} has no chat template, so it was not taught to follow instructions; use one "
                "that was, an instruct or chat model"
            )
        self._marks = sorted(
            (t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1),
            key=len,
            reverse=True,
        )
        self._spec = spec.model_copy(
            update={"base_model": self._name, "adapter": "qlora" if is_small else "lora", "numerics": NUMERICS}
        )
        self._encoder = Encoder(
            self._tokenizer,
            spec.sequence_len,
            train_on_inputs=False,
            encoding=ENCODING,
            rendered_at=spec.rendered_at,
            variables=_VARIABLES,
        )
        self._ids(judge_prompt.messages([], "", ""))
        self._pairs: Mapping[int, Pair] = {}

    def load(self, pairs: Mapping[int, Pair]) -> None:
        """Load the model, which will compare these pairs, by the numbers of their prompts."""
        with base_model.called_judge_model(), self._in_memory():
            self._model: Any = HfBackend().base(self._spec, self._folder, self._hardware, self._precision, trust=False)
        self._pairs, self._limits = pairs, ModelLimits.of(self._model)
        config = self._model.config.get_text_config()
        longest = self._limits.positions or getattr(config, "max_position_embeddings", None) or MAX_POSITIONS
        self._room = longest - judge_prompt.MAX_OUTPUT_TOKENS
        self._decoding = generation.decoding_for(
            self._model, self._tokenizer, self._encoder, judge_prompt.MAX_OUTPUT_TOKENS, 0.0
        )

    def lines(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """A line for each request of the unit that has room: the pairs with the answer of the unit's arm first."""
        requests = {number: self._request(number, unit.arm) for number in range(unit.begin, unit.end)}
        asked = {number: ids for number, ids in requests.items() if ids is not None and len(ids) <= self._room}
        if not asked:
            return
        for number, ids in asked.items():
            self._limits.check(ids, f"the judge's request on prompt {number + 1}")
        with state.evaluation_mode(self._model), self._in_memory():
            said = generation.answers(self._model, list(asked.values()), self._decoding, None)
        for (number, ids), found in zip(asked.items(), said, strict=True):
            text = str(self._tokenizer.decode(found.ids, skip_special_tokens=True))
            yield {
                "measure": Measure.JUDGE,
                "arm": unit.arm,
                "number": number,
                "text": clipped(text, MAX_SAID_BYTES),
                "tokens": len(ids) + len(found.ids),
            }

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            words = f"this machine ran out of memory with judge model {self._name}; use a smaller judge model"
            raise UnfitMachineError(f"{words} or a larger machine", causes.MEMORY) from error

    def _request(self, number: int, first: Arm) -> list[int] | None:
        pair = self._pairs.get(number)
        if pair is None:
            return None
        second = Arm.ADAPTER if first is Arm.BASE else Arm.BASE
        return self._ids(judge_prompt.messages(pair.prompt, pair.answers[first], pair.answers[second]))

    def _ids(self, sent: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a request. A template without a system turn gets its text at the start of the user's."""
        system, question = (self._plain(turn["content"]) for turn in sent)
        with contextlib.suppress(PermanentError):
            text = self._written((Message("system", system), Message("user", question)))
            if system in text:
                return self._encoder.written_ids(text)
        try:
            return self._encoder.written_ids(self._written((Message("user", f"{system}\n\n{question}"),)))
        except PermanentError as error:
            raise PermanentError(
                f"the chat template of judge model {self._name} refuses the question ({error.__cause__ or error}); use "
                "another model"
            ) from error

    def _written(self, turns: tuple[Message, ...]) -> str:
        return self._encoder.own_text_of(turns, generation_prompt=True)

    def _plain(self, text: str) -> str:
        """The text without control tokens of the judge, with which an answer could end its turn and begin another."""
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


def release(model: torch.nn.Module) -> None:
    """Free the memory of a model that is not used any more, whoever still refers to it."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
