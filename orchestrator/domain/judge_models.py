"""Judge models: how their answers are read, and the families that they belong to."""

from __future__ import annotations

import re

from orchestrator.domain.trust.judge import Slot


def verdict_in(text: str) -> Slot | None:
    """The verdict of an answer that is one of the three words. None for all other texts."""
    word = text.strip().strip("\"'`*.").casefold()
    return Slot(word) if word in tuple(Slot) else None


_FAMILIES = {
    "qwen": ("qwen", "qwq"),
    "llama": ("llama", "vicuna", "alpaca"),
    "mistral": ("mistral", "mixtral", "ministral", "magistral", "codestral", "pixtral"),
    "gemma": ("gemma", "gemini"),
    "gpt": ("gpt", "chatgpt"),
    "claude": ("claude",),
    "deepseek": ("deepseek",),
    "phi": ("phi",),
    "smollm": ("smollm", "smolvlm"),
    "falcon": ("falcon",),
    "olmo": ("olmo",),
    "granite": ("granite",),
    "glm": ("glm", "chatglm"),
    "command": ("command", "aya"),
    "yi": ("yi",),
    "internlm": ("internlm",),
    "grok": ("grok",),
    "kimi": ("kimi", "moonlight"),
    "nemotron": ("nemotron",),
}
_SIZES_AND_KINDS = {"base", "chat", "instruct", "mini", "model", "tiny", "small", "large", "test", "the", "judge"}


def families(model: str) -> frozenset[str]:
    """The model families that a name belongs to. A name of an unknown family is a family of its own."""
    own = model.partition("@")[0].rstrip("/").rpartition("/")[2].casefold()
    words = re.findall(r"[a-z]+", own)
    known = {name for name, spellings in _FAMILIES.items() if any(w.startswith(spellings) for w in words)}
    if known:
        return frozenset(known)
    return frozenset(word for word in words[:1] if len(word) > 2 and word not in _SIZES_AND_KINDS)


def is_same_model(judge: str, base: str) -> bool:
    """Whether both names are those of one model, in whatever revision."""
    return judge.partition("@")[0].rstrip("/").casefold() == base.partition("@")[0].rstrip("/").casefold()


def shared_family(judge: str, base: str) -> str:
    """The family that both models belong to, or an empty string. A model that judges itself has at least its name."""
    own = base.partition("@")[0] if is_same_model(judge, base) else ""
    return next(iter(sorted(families(judge) & families(base))), own)
