"""Chat templates of known families: those that TRL carries as files, and public formats written down here.

Where the answers begin and end is written down by hand, from the templates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Family:
    """A chat template, and the texts that end an answer.

    An answer begins where the template's own prompt ends, or `after` this text: TRL marks the answers of some templates
    from there, and some have no prompt. With `begin`, this text is a part of the answer.
    """

    template: str
    ends: tuple[str, ...]
    after: str = ""
    begin: str = ""


def _turns(user: str, assistant: str, system: str = "", *, prompt: str) -> str:
    """A template of texts around the content `@` of each role. No `system`: the template refuses such a turn."""
    parts = {role: text.partition("@") for role, text in (("user", user), ("assistant", assistant), ("system", system))}
    written = "{% for m in messages %}"
    for number, (role, (before, _, after)) in enumerate(parts.items()):
        written += f"{{% {'elif' if number else 'if'} m['role'] == '{role}' %}}"
        written += (
            f"{{{{ {before!r} + m['content'] + {after!r} }}}}" if before or after else "{{ raise_exception('no') }}"
        )
    written += "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    return written + f"{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"


def _chatml(default: str = "") -> str:
    start = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + default + "<|im_end|>\n{% endif %}"
    return (start if default else "") + (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set lead = '<<SYS>>\n' + "
    "messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
    "alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (lead if loop.first else '') + "
    "m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
_MISTRAL_TOOLS = (
    "{% set users = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set users.last = "
    "loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m['role'] == 'user' %}{% if tools and "
    "loop.index0 == users.last %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + m['content'] + '[/INST]' }}{% elif m['role'] == 'tool' %}{% if m['tool_call_id'] | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ '[TOOL_RESULTS]' + m['content'] + '[/TOOL_RESULTS]' }}{% elif m['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['tool_calls'] %}[TOOL_CALLS]"
    "{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}{{ eos_token }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_GRANITE = (
    "{% if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' + (tools | tojson) + '<|end_of_text|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' }}"
    "{% if m['tool_calls'] %}{{ '<|tool_call|>' }}{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}"
    "{% endfor %}{% endif %}{{ m['content'] + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
_END = "<|im_end|>"
"""The end token of the benchmark's tokenizer."""

_WRITTEN = {
    "chatml": Family(_chatml(), ("<|im_end|>",)),
    "smollm2": Family(_chatml("You are a helpful AI assistant named SmolLM."), ("<|im_end|>",)),
    "zephyr": Family(
        _turns("<|user|>\n@</s>\n", "<|assistant|>\n@</s>\n", "<|system|>\n@</s>\n", prompt="<|assistant|>\n"),
        ("</s>",),
    ),
    "vicuna": Family(_turns("USER: @ ", "ASSISTANT: @</s>\n", "@\n\n", prompt="ASSISTANT:"), ("</s>",)),
    "alpaca": Family(
        _turns("### Instruction:\n@\n\n", "### Response:\n@</s>\n\n", "@\n\n", prompt="### Response:\n"), ("</s>",)
    ),
    "llama2": Family(_LLAMA_2, (_END,), after="[/INST]"),
    "mistral": Family(_turns("[INST] @ [/INST]", " @</s>", prompt=""), ("</s>",), after="[/INST]"),
    "mistral_tools": Family(_MISTRAL_TOOLS, (_END,), after="]"),
    "phi4": Family(
        _turns(
            "<|im_start|>user<|im_sep|>@<|im_end|>",
            "<|im_start|>assistant<|im_sep|>@<|im_end|>",
            "<|im_start|>system<|im_sep|>@<|im_end|>",
            prompt="<|im_start|>assistant<|im_sep|>",
        ),
        ("<|im_end|>",),
    ),
    "granite": Family(_GRANITE, ("<|end_of_text|>",)),
    "olmo": Family(
        _turns("<|user|>\n@\n", "<|assistant|>\n@<|endoftext|>\n", "<|system|>\n@\n", prompt="<|assistant|>\n"),
        ("<|endoftext|>",),
    ),
    "falcon": Family(_turns("User: @\n", "Falcon: @\n", "System: @\n", prompt="Falcon:"), ("\n",)),
    "openchat": Family(
        _turns(
            "GPT4 Correct User: @<|end_of_turn|>",
            "GPT4 Correct Assistant: @<|end_of_turn|>",
            "@<|end_of_turn|>",
            prompt="GPT4 Correct Assistant:",
        ),
        ("<|end_of_turn|>",),
    ),
    "deepseek_coder": Family(
        _turns("### Instruction:\n@\n", "### Response:\n@\n<|EOT|>\n", "@", prompt="### Response:"), ("<|EOT|>",)
    ),
    "internlm2": Family("{{ bos_token }}" + _chatml(), ("<|im_end|>",)),
}

_CHATML_ENDS, _LLAMA_3_ENDS = ("<|im_end|>",), ("<|eot_id|>", "<|eom_id|>")
_COHERE = Family("", ("<|END_OF_TURN_TOKEN|>",))
_DEEPSEEK = Family("", ("<｜end▁of▁sentence｜>",), begin="<｜Assistant｜>")
_THINKS = Family("", _CHATML_ENDS, after="<|im_start|>assistant\n")
_OF_TRL: dict[str, Family] = {
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "deepseek_r1_distill": _DEEPSEEK,
    "deepseekv3": _DEEPSEEK,
    "gemma": Family("", ("<end_of_turn>",)),
    "gemma3": Family("", ("<end_of_turn>",)),
    "gemma4": Family("", ("<turn|>", "<|tool_response>")),
    "glm4moe": Family("", ("<|user|>", "<|observation|>")),
    "gptoss": Family("", ("<|end|>", "<|return|>", "<|call|>"), begin="<|start|>assistant"),
    "idefics3": Family("", ("<end_of_utterance>",)),
    "lfm2_v2": Family("", _CHATML_ENDS),
    "lfm2_2_5_v2": Family("", _CHATML_ENDS),
    "llama3": Family("", _LLAMA_3_ENDS),
    "llama3_1": Family("", _LLAMA_3_ENDS),
    "llama3_2": Family("", _LLAMA_3_ENDS),
    "muse_glimmer": Family("", ("<|eot|>",), begin="<|start|>assistant"),
    "nemotron_3_nano": _THINKS,
    "nemotron_3_super": _THINKS,
    "phi3": Family("", ("<|end|>\n<|im_end|>", "<|end|>")),
    "phi3_5": Family("", ("<|end|>\n<|im_end|>", "<|end|>")),
    "qwen2_5": Family("", _CHATML_ENDS, after="<|im_start|>assistant"),
    "qwen3": Family("", _CHATML_ENDS),
    "qwen3_5_nothink": _THINKS,
    "qwen3_5_think": _THINKS,
    "qwen3_6": _THINKS,
    "qwen3_instruct_2507": Family("", _CHATML_ENDS),
    "qwen3_vl": Family("", _CHATML_ENDS),
}


def families() -> dict[str, Family]:
    """All templates by their names."""
    found = find_spec("trl")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "chat_templates"
    texts = {name: (folder / f"{name}.jinja").read_text(encoding="utf-8") for name in _OF_TRL}
    return _WRITTEN | {name: replace(each, template=texts[name]) for name, each in _OF_TRL.items()}
