"""A chat template of the job's own, in place of the one that comes with the base model."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from worker.shared.wire import not_blank

TemplateName = Literal["tokenizer_default", "chatml", "jinja"]
USUAL: TemplateName = "tokenizer_default"
MAX_TEMPLATE = 32_768
"""Characters. The longest template of a known model has half of them."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")
"""Where a template draws text."""


def _template(text: str) -> str:
    """White space at the ends is part of a template. Raises `ValueError` for a text that cannot be one."""
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"must have at most {MAX_TEMPLATE:,} characters")
    not_blank(text)
    return text


Template = Annotated[str, AfterValidator(_template)]


def fault_of(name: TemplateName, text: str | None) -> str:
    """Why the two keys do not belong together, or ""."""
    if name == "jinja" and text is None:
        return "chat_template: jinja needs chat_template_jinja, the text of the template"
    if name == "chatml" and text is not None:
        return "chat_template: chatml and chat_template_jinja exclude each other"
    return ""


def template_of(name: TemplateName, text: str | None) -> str | None:
    """The text of the template. None for the one that comes with the base model."""
    return CHATML if name == "chatml" else text


def template_sha256(text: str | None) -> str:
    """Hash of a template. Empty for the one that comes with the base model."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()
