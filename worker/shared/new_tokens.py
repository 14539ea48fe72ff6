"""Tokens that a job adds to the tokenizer of its base model: a part of the job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from worker.shared.wire import Written

MAX_NEW = 1_000
MAX_LENGTH = 100


def _whole(text: str) -> str:
    if text != text.strip() or not text:
        raise ValueError("must be a text without white space at its ends")
    return text


NewToken = Annotated[str, Field(max_length=MAX_LENGTH), AfterValidator(_whole)]
TokenNumber = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]


class NewTokens(Written):
    """Keys of the job file, with the names of axolotl. What is at its default is not named: older workers refuse it."""

    tokens: Annotated[tuple[NewToken, ...], Field(max_length=MAX_NEW)] = Field(
        default=(), exclude_if=lambda tokens: not tokens
    )
    added_tokens_overrides: Annotated[dict[TokenNumber, NewToken], Field(max_length=MAX_NEW)] = Field(
        default={}, exclude_if=lambda overrides: not overrides
    )

    @field_validator("added_tokens_overrides", mode="before")
    @classmethod
    def _numbers_as_text(cls, given: Any) -> Any:
        """YAML has numbers as keys, and JSON has not. In the order of the numbers."""
        if not isinstance(given, Mapping):
            return given
        texts = {str(key) if isinstance(key, int) and not isinstance(key, bool) else key: given[key] for key in given}
        return dict(sorted(texts.items(), key=lambda pair: (len(str(pair[0])), str(pair[0]))))

    @model_validator(mode="after")
    def _each_once(self) -> NewTokens:
        new = self.new_tokens
        if twice := next((text for text in new if new.count(text) > 1), ""):
            raise ValueError(f"tokens and added_tokens_overrides name {twice!r} twice")
        return self

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """All of them: those in the place of others, then those that are added."""
        return (*self.added_tokens_overrides.values(), *self.tokens)
