"""A base model with an adapter for a chat: what an export reads, loaded as an evaluation loads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from worker.agent.hardware import probe
from worker.export.adapter import Adapter, read_adapter
from worker.export.errors import ExportError
from worker.export.merge import has_bitsandbytes
from worker.export.sources import check_hash, named_base, resolved, tokenizer_folder
from worker.shared.chat import Question
from worker.shared.chat_limits import MAX_PROMPT_TOKENS
from worker.shared.dataset_files import Message
from worker.shared.evaluation_units import Arm
from worker.shared.files import expanded
from worker.shared.imports import quick_imports
from worker.shared.job_spec import ENCODING, NUMERICS, JobSpec
from worker.shared.manifest import Hardware
from worker.training import base_model, fetch_model, generation
from worker.training.backends.base import check_fit
from worker.training.backends.hf import HfBackend
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.interface import PermanentError, UnfitMachineError
from worker.training.model_limits import ModelLimits
from worker.training.precision import precision_of

MAX_POSITIONS = 2**20
_REMEDY = "name its base with --base"
Say = Callable[[str], None]


class ChatError(Exception):
    """There is no answer. The message is one sentence, without the full stop."""


class ChatModel:
    """A loaded model that answers with the adapter switched on or off. `base` is None for what the adapter names.

    With `local_only` nothing is downloaded. Raises `ChatError`.
    """

    def __init__(self, folder: Path, base: str | None, say: Say, *, local_only: bool = False) -> None:
        with _in_words():
            adapter = read_adapter(folder, for_chat=True)
            self.base_name = base or named_base(adapter)
            if local_only:
                _refuse_missing(self.base_name)
            directory = resolved(self.base_name, say)
            check_hash(adapter, directory, say)
            self._tokenizer: Any = load_tokenizer(tokenizer_folder(folder, directory), trust_remote_code=False)
            self._encoder = Encoder(
                self._tokenizer, MAX_PROMPT_TOKENS, train_on_inputs=False, encoding=ENCODING, rendered_at=None
            )
            hardware = probe()
            say(f"loading {self.base_name}")
            with quick_imports():
                known = len(self._tokenizer)
                self._peft: Any = _loaded(self.base_name, directory, adapter, hardware, known)
        # Its own `generate` changes the model while it runs, and here two answers are generated at a time.
        self.model: Any = self._peft.get_base_model()
        self.model.eval()
        self._limits = ModelLimits.of(self.model)
        config = self.model.config.get_text_config()
        self.context = self._limits.positions or getattr(config, "max_position_embeddings", None) or MAX_POSITIONS
        self.decoding = generation.decoding_for(self.model, self._tokenizer, self._encoder, 1, 0.0)
        self.device = hardware.name if hardware.device == "cuda" else "CPU"

    def answer_as(self, arm: Arm) -> None:
        """Switch the adapter on or off."""
        if arm is Arm.BASE:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()

    def prompt(self, question: Question, arm: Arm) -> tuple[list[int], int]:
        """Token ids of the conversation, and the number of tokens that the answer may have. Raises `ChatError`."""
        turns = tuple(Message(turn["role"], turn["content"]) for turn in question.messages(arm))
        try:
            ids = self._encoder.answer_prompt(turns)
            longest = min(self.context, MAX_PROMPT_TOKENS)
            if len(ids) >= longest:
                raise ChatError(
                    f"the conversation has {len(ids)} tokens, and at most {longest - 1} can be read here; begin a new "
                    "conversation or shorten the question"
                )
            self._limits.check(ids, "the conversation")
        except PermanentError as error:
            if error.__cause__ is None:
                raise ChatError(str(error)) from error
            raise ChatError(
                f"the chat template of this model refuses the conversation ({error.__cause__}); leave the system text "
                "out, or begin a new conversation"
            ) from error
        return ids, min(question.max_tokens, self.context - len(ids))

    def text(self, ids: list[int]) -> str:
        """The text of an answer's tokens, without control tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _refuse_missing(name: str) -> None:
    folder = expanded(name)
    if not folder.is_dir() and (folder.is_absolute() or fetch_model.cached(name) is None):
        raise ChatError(
            f"the base model {name} is not on this computer, and nothing is downloaded for a chat; run `trainhop chat` "
            "on a computer of your own, or chat at an address that has the model"
        )


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except (ExportError, PermanentError, UnfitMachineError) as error:
        # What an export and a job say of the same faults.
        words = str(error).replace("be exported", "be used in a chat").replace("then retry the job", "then try again")
        raise ChatError(words) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ChatError("this computer has too little free memory for the model") from error


def _loaded(name: str, directory: Path, adapter: Adapter, hardware: Hardware, known: int) -> Any:
    """The base model with rows for the `known` tokens of the tokenizer, and the adapter."""
    from peft import PeftModel

    base_model.check_code(name, directory, trust_remote_code=False)
    is_small = base_model.is_quantised(name, directory) or (adapter.is_qlora and has_bitsandbytes())
    base_model.check_quantisation(name, directory, is_small)
    precision = precision_of(hardware)
    check_fit(name, base_model.load_bytes(name, directory, is_small, precision), hardware)
    # Only these three fields decide how a model is loaded.
    spec = JobSpec.model_construct(base_model=name, adapter="qlora" if is_small else "lora", numerics=NUMERICS)
    model = HfBackend().base(spec, directory, hardware, precision, trust=False)
    _check_modules(model, adapter)
    try:
        if known > model.get_input_embeddings().weight.shape[0]:  # the adapter has the new rows
            model.resize_token_embeddings(known, mean_resizing=False)
        return PeftModel.from_pretrained(model, adapter.folder, is_trainable=False)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ChatError(f"the adapter does not fit {name}: {reason}") from error


def _check_modules(model: Any, adapter: Adapter) -> None:
    """Raise `ChatError` if the adapter belongs to a base model with other modules or shapes."""
    modules = dict(model.named_modules())
    for name, pair in adapter.pairs.items():
        if name not in modules:
            raise ChatError(f"the adapter changes {name}, which the base model does not have; {_REMEDY}")
        found, wanted = _features(modules[name]), (pair.b.shape[0], pair.a.shape[1])
        if found != wanted:
            raise ChatError(
                f"the adapter belongs to another base model: {name} is {list(wanted)} in the adapter and "
                f"{list(found or ())} in the base model; {_REMEDY}"
            )


def _features(module: Any) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer."""
    if hasattr(module, "out_features"):
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)  # GPT-2's layers have it transposed
    return (weight.shape[1], weight.shape[0]) if weight is not None and weight.ndim == 2 else None
