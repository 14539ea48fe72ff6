"""Tokens of a chat template and role words inside the text of turns, where the template did not write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen

COMMON = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|endofprompt|>", "<|startoftext|>", "<|end|>",
    "<|eot_id|>", "<|eom_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|python_tag|>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|pad|>", "<|channel|>",
    "<|message|>", "<|return|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<start_of_turn>", "<end_of_turn>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|turn>", "<turn|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "<bos>", "<eos>", "<|vision_start|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
"""Control tokens of the common families. `<s>` and `</s>` are not among them, because they are HTML, too."""
_ROLE_WORD = re.compile(
    r"^(?:#{1,4} ?(?:Instruction|Input|Response|System|User|Assistant|Human)s?:?|(?:User|Assistant|Human|System|AI|Bot|"
    r"Chatbot|GPT|ChatGPT|Gemini|Claude):)",
    re.MULTILINE,
)
_COMMON = re.compile("|".join(map(re.escape, sorted(COMMON, key=len, reverse=True))))


def has_template_text(answer: str) -> bool:
    """Whether an answer has a control token of a common family, or a line that begins with a role."""
    return bool(_COMMON.search(answer) or _ROLE_WORD.search(answer))


class TemplateTokens:
    """Looks for control tokens of common families, and for those of the job's tokenizer."""

    def __init__(self, special: Sequence[str] = ()) -> None:
        known = sorted({*COMMON, *(token for token in special if len(token) > 2)}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, known)))
        self._first = {token[0] for token in known}
        self._tokens, self._roles, self._in_text = (
            Found("template_tokens"),
            Found("template_tokens"),
            Found("template_tokens"),
        )
        self._rows = 0

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        self._rows += 1
        for turn in seen.all_turns:
            text = turn.said
            match = self._control.search(text) if any(sign in text for sign in self._first) else None
            if match and seen.is_conversation:
                self._tokens.add(seen, text, match.start(), match.end())
            elif match:
                self._in_text.add(seen, text, match.start(), match.end())
            elif seen.is_conversation and ":" in text and (role := _ROLE_WORD.search(text)):
                self._roles.add(seen, text, role.start(), role.end())

    def findings(self) -> tuple[RowsFound, ...]:
        """What was found."""
        rows, in_text = self._rows, "{count} of {total} rows ({share}) have control tokens in a text without turns"
        return (
            self._tokens.finding("{count} of {total} rows ({share}) have a control token in a turn", total=rows)
            + self._roles.finding(
                "{count} of {total} rows ({share}) have a line that begins with a role", total=rows, level="warn"
            )
            + self._in_text.finding(f"{in_text}, which may be intended", total=rows, level="list", removed=())
        )
