"""TRL's training templates: chat templates that write all answers of a conversation alike, and mark them."""

from __future__ import annotations

import hashlib
from typing import Any

_HASHES = """
    0d7e56ca41705b79 2147c474f41b522b 273d8e0e683b8850 2c17243a977fd064 3636d0f0bd6bef02 44f815868bf02fa4
    5504d163d879bfb6 563b1ce7d61d50a9 56a1447ad31926fd 575fb74f54ed264d 58933db77d3099b4 64f85b198065d0fb
    78d976a442bcde2f 7de1c58e208eda46 82753bef5cedc493 830005085ddd94ce 90c33aee14aa2a22 9aeb7eac68ad87bb
    a0bc6f6fc7a29a80 a4aee8afcf2e0711 a4c9919cbbd4acdd a55ee1b1660128b7 ab7813c3abdd9cb6 ba03a121d097859c
    c3cf9e34abf4f9e3 cd8e9439f0570856 cef187400d62a595 cfc67e5f349f3769 dcaee66df77bfbb7 e84f32a23fdda276
    ecd6ae513fe103f0
"""
_REPLACED = frozenset(_HASHES.split())
"""Chat templates for which TRL has a training template, by the start of their sha256. A test compares them with TRL.

They are listed, because the import of TRL takes seconds, and a server may show rows without it.
"""


def training_template(tokenizer: Any) -> str | None:
    """TRL's training template for the tokenizer's chat template. None if it has none, or none is needed.

    Raises `ImportError` if there is one and TRL is not installed.
    """
    template = tokenizer.chat_template
    own = template.get("default") if isinstance(template, dict) else template
    if hashlib.sha256(str(own).encode(errors="replace")).hexdigest()[:16] not in _REPLACED:
        return None
    from trl.chat_template_utils import get_training_chat_template

    return get_training_chat_template(tokenizer)
