"""Benchmarks of an evaluation, asked by lm-eval with the model that is loaded. Imported only where one is asked.

lm-eval writes the prompts and judges the answers. Text becomes tokens, and tokens become answers, as for everything
else in an evaluation: lm-eval's own way may write the start token twice or not at all, sees today's date in a chat
template, and follows generation settings that come with the model. No cache of lm-eval's is used: its keys know neither
the model nor the adapter.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria

from worker.shared.answers_file import MAX_ITEM_BYTES, AskedBenchmark, clipped
from worker.shared.benchmark_files import read_items
from worker.shared.benchmark_list import BENCHMARKS, TASKS_FOLDER
from worker.shared.dataset_files import DatasetError, Message
from worker.shared.evaluation_spec import BenchmarkSpec
from worker.shared.evaluation_units import Measure, Unit
from worker.training import generation
from worker.training.encoding import Encoder
from worker.training.interface import PermanentError

ROWS_AT_ONCE = 4
"""Question and choice pairs of one batch. Their logits are in memory together, so it is small."""
MAX_TOKENS = 1_024
"""Tokens of a prompt with its answer at most. A longer item is not asked."""


class Benchmarks:
    """The benchmarks of an evaluation.

    `files` are those of the items, one for each of `asked`. `room` is the number of positions of the model. Raises
    `PermanentError` if a file does not belong to the job.
    """

    def __init__(
        self,
        asked: Sequence[BenchmarkSpec],
        files: Sequence[Path],
        model: Any,
        tokenizer: Any,
        encoder: Encoder,
        decoding: generation.Decoding,
        *,
        chat: bool,
        room: int,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is done here on purpose
        self._chat = chat
        self._lm = _Model(model, tokenizer, encoder, decoding, chat=chat, room=min(room, MAX_TOKENS))
        self._parts: list[_Part] = []
        for spec, path in zip(asked, files, strict=True):
            first = self._parts[-1].end if self._parts else 0
            self._parts.append(self._part(spec, path, first))

    def _part(self, spec: BenchmarkSpec, path: Path, first: int) -> _Part:
        benchmark = BENCHMARKS[spec.name]
        if spec.task_sha256 != benchmark.task_sha256:
            raise PermanentError(f"this worker asks {spec.name} in another way than the job expects; evaluate again")
        try:
            items = read_items(path, spec.name, spec.rows or 0)
        except DatasetError as error:
            raise PermanentError(f"the items of {spec.name}: {error}") from error
        task = _task(spec.name, items)
        return _Part(
            name=spec.name, metric=benchmark.metric, first=first, items=len(items), task=task, tokens=self._tokens(task)
        )

    def _tokens(self, task: Any) -> dict[int, int]:
        """Tokens of each item that has room, by its number."""
        task.build_all_requests(apply_chat_template=self._chat, chat_template=self._lm.apply_chat_template)
        tokens: dict[int, list[int]] = {}
        for request in task.instances:
            tokens.setdefault(request.doc_id, []).append(self._lm.tokens_of(request))
        return {item: sum(each) for item, each in tokens.items() if max(each) <= self._lm.max_length}

    @property
    def asked(self) -> list[AskedBenchmark]:
        """What the file of answers says of them."""
        return [
            AskedBenchmark(
                name=part.name,
                first=part.first,
                items=part.items,
                asked=sorted(part.tokens),
                harness=f"lm-eval {metadata.version('lm_eval')}",
                chat=self._chat,
            )
            for part in self._parts
        ]

    def lines(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """A line for each item of the unit that has room, by the model as it answers now."""
        part = next(part for part in self._parts if unit.begin < part.end)
        # In ascending order: lm-eval asks items in the order of the file, and names them in the order given here.
        items = [number - part.first for number in range(unit.begin, unit.end) if number - part.first in part.tokens]
        if not items:
            return
        found: Any = evaluate(
            self._lm,
            {"tasks": {part.name: part.task}},  # pyright: ignore[reportArgumentType] - the other entries are for groups
            samples={part.name: items},
            apply_chat_template=self._chat,
            bootstrap_iters=0,
        )
        for sample in found["samples"][part.name]:
            (answer,) = sample["filtered_resps"][:1]
            yield {
                "measure": Measure.BENCHMARKS,
                "arm": unit.arm,
                "number": part.first + sample["doc_id"],
                "correct": bool(sample[part.metric]),
                "answer": clipped(sample["resps"][0][0], MAX_ITEM_BYTES) if isinstance(answer, str) else "",
                "tokens": part.tokens[sample["doc_id"]],
            }


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One benchmark. `tokens` has the items that have room."""

    name: str
    metric: str
    first: int
    items: int
    task: Any
    tokens: Mapping[int, int]

    @property
    def end(self) -> int:
        return self.first + self.items


def _task(name: str, items: Sequence[Mapping[str, Any]]) -> Any:
    """lm-eval's task of our file with these items.

    Nothing is downloaded, and lm-eval's own thousands of task files are not read, which takes it a minute.
    """
    rows = Dataset.from_list([dict(item) for item in items])
    how = yaml.safe_load((TASKS_FOLDER / f"{name}.yaml").read_bytes())
    return _Task(config={**how, "custom_dataset": lambda **_: {"test": rows}})


class _Task(ConfigurableTask):
    """A task that shows no progress, which would be hundreds of lines in the session's log."""

    def build_all_requests(self, **how: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            super().build_all_requests(**how)


_Harness: Any = HFLM
"""lm-eval registers its class in a way that hides its type."""


class _Model(_Harness):
    """lm-eval's model of this library, with the tokens and the answers of an evaluation."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoder: Encoder,
        decoding: generation.Decoding,
        *,
        chat: bool,
        room: int,
    ) -> None:
        # A copy, because lm-eval may give it another padding token.
        own: Any = copy.deepcopy(tokenizer)
        super().__init__(pretrained=model, tokenizer=own, max_length=room, batch_size=ROWS_AT_ONCE)
        self._encoder, self._decoding, self._is_chat = encoder, decoding, chat

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        return self._encoder.own_text_of(turns, generation_prompt=add_generation_prompt)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        return self._encoder.written_ids(string) if self._is_chat else self._encoder.prompt_ids(string, chat=False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def tokens_of(self, request: Instance) -> int:
        """Tokens of a prompt with its answer, or with the longest answer that may be written."""
        prompt, answer = _arguments(request)
        if isinstance(answer, str):
            return len(self.tok_encode(prompt + answer))
        return len(self.tok_encode(prompt)) + answer["max_gen_toks"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each request. All of a unit have the same settings, and are one batch."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        settings = _arguments(requests[0])[1]
        stops, width = settings["until"], max(map(len, prompts))
        decoding = replace(self._decoding, max_new_tokens=settings["max_gen_toks"], temperature=0.0)
        stopping = stop_sequences_criteria(self.tokenizer, stops, width, len(prompts))  # pyright: ignore[reportArgumentType]
        written = generation.answers(self.model, prompts, decoding, None, stopping=stopping)
        return [_before(self.tok_decode(each.ids), stops) for each in written]  # pyright: ignore[reportArgumentType]


def _arguments(request: Any) -> tuple[str, Any]:
    """The prompt, and either an answer or the settings for writing one."""
    return request.args


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of these."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
