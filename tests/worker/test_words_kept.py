"""All words of a row are taught, and a prompt at inference begins as the rows that were trained."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from worker.shared.dataset_files import Message, Row
from worker.training.interface import PermanentError

START, END = "<s>", "</s>"
SAMPLES = ["def add(a, b): return a + b", "what is it? it is good, yes", "question: and answer: no", "é日本 ok"] * 3
SYSTEM, HI, HELLO = Message("system", "be kind"), Message("user", "hi"), Message("assistant", "hello")
CHAT = (HI, HELLO, Message("user", "more"), Message("assistant", "bye now"))
THOUGHT = Message("assistant", "<think>well</think>yes")

PHI3_FIRST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content']"
    " + '<|end|>\n<|assistant|>\n' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
MISTRAL_V3 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
SYSTEM_LATE = MISTRAL_V3.replace("loop.last and", "loop.index0 + 2 >= rest | length and")
"""The system turn stands before the last question."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN35 = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
JSON_TOOL = CHATML.replace("{{ m.content | trim }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}")
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgeneration %}\n{% elif m.role == 'user' %}"
    "<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def sentencepiece(**more):
    """A tokenizer like Llama-2's: a space before each piece, `<s>` before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", START, END, "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(SAMPLES, trainer)
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=START, eos_token=END, unk_token="<unk>", **more)


@pytest.fixture(scope="module")
def pieces():
    return sentencepiece()


@pytest.fixture
def tokenizer():
    from benchmarks.tiny_model import byte_tokenizer

    return byte_tokenizer()


def encoder(tokenizer, template=None, *, everything=False, length=512, encoding: int | None = 2):
    from worker.training.encoding import Encoder

    if template:
        tokenizer.chat_template = template
    return Encoder(tokenizer, length, everything, encoding=encoding)


def learnt(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != -100])


SWALLOWED = [
    (PHI3_FIRST, (SYSTEM, HI, HELLO), r"leaves out turn 1 \(system, 'be kind'\); write its text into the first user"),
    (R1, (HI, THOUGHT), r"leaves out the thought of turn 2 .*; remove the text up to </think>"),
    (R1, (HI, THOUGHT, *CHAT), "leaves out the thought of turn 2"),
    (MISTRAL_V3, (SYSTEM, *CHAT), r"leaves out turn 1 \(system"),
    (MISTRAL_V3, (Message("system", "S"), *CHAT), r"leaves out turn 1 \(system, 'S'\)"),
    (MISTRAL_V3, (Message("system", "hi"), *CHAT), r"leaves out turn 1 \(system, 'hi'\)"),
    (QWEN3, (HI, THOUGHT, *CHAT), "leaves out the thought of turn 2"),
    (MARKED, (SYSTEM, HI, HELLO), r"leaves out turn 1 \(system"),
    (MARKED, (HI, THOUGHT), "leaves out the thought of turn 2"),
    (PHI3_FIRST, (HI, Message("tool", "42"), HELLO), r"leaves out turn 2 \(tool, '42'\); remove the turn"),
    ("{{ messages[-1].content }}", (HI, HELLO), r"leaves out turn 1 \(user"),
    (
        CHATML.replace("trim", "truncate(6, True, '', 0)"),
        (HI, Message("assistant", "a long answer")),
        "leaves out turn",
    ),
]


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("template", "messages", "words"), SWALLOWED)
def test_a_turn_that_the_template_leaves_out_is_refused(tokenizer, template, messages, words, everything):
    """Guards: without `LeftOut` all were trained, with `train_on_inputs` too; without `_of_roles` a short system turn
    was found in the text of another."""
    made = encoder(tokenizer, template, everything=everything)
    for check in (made.rendered, made.encode):
        with pytest.raises(PermanentError, match=words):
            check(Row(messages=messages))
    assert encoder(tokenizer, template, everything=True, encoding=None).encode(Row(messages=messages)).labels


KEPT = [
    (CHATML, (HI, Message("assistant", "\n  a  b\n\n"))),
    (SYSTEM_LATE, (Message("system", "say hi"), *CHAT)),
    (SYSTEM_LATE, (Message("system", "hi"), HI, HELLO)),
    (QWEN3, (HI, THOUGHT)),
    (QWEN3, (HI, Message("assistant", "<think>\n\n</think>\n\nyes"), *CHAT)),
    (R1, (HI, Message("assistant", "<think></think>yes"))),
    (JSON_TOOL, (HI, Message("tool", '{"é": "a\n<b>"}'), HELLO)),
    (CHATML, (Message("developer", "kind"), HI, HELLO)),
    (CHATML, (HI, Message("assistant", ""), HI, HELLO)),
]


@pytest.mark.parametrize(("template", "messages"), KEPT)
def test_a_turn_that_the_template_only_changes_is_trained(tokenizer, template, messages):
    """Guards: white space, a system turn that moves, an empty thought and JSON were each taken for a lost turn."""
    text = learnt(tokenizer, encoder(tokenizer, template, everything=True).encode(Row(messages=messages)))
    assert messages[-1].content.split()[-1][-3:] in text


def test_the_advice_for_a_template_without_spans_loses_no_words(tokenizer):
    """The refusal recommends `train_on_inputs`. A template that also leaves a turn out is refused for that instead."""
    unstable = "{{ messages | length }}{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}"
    made = encoder(tokenizer, unstable)
    with pytest.raises(PermanentError, match="leaves out turn 1"):
        made.encode(Row(messages=(SYSTEM, *CHAT)))
    with pytest.raises(PermanentError, match="set train_on_inputs"):
        made.encode(Row(messages=CHAT))
    text = learnt(tokenizer, encoder(tokenizer, unstable, everything=True).encode(Row(messages=CHAT)))
    assert all(message.content in text for message in CHAT[1:])


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("def add(", "a, b): return"),
        ("what is it?", " it is good"),
        ("what is it? ", "it is good"),
        ("que", "stion: no"),
        ("é日", "本 ok"),
        ("", "it is good"),
    ],
)
def test_prompt_and_completion_are_one_text(pieces, prompt, completion):
    """Guard: tokenised apart, the first reads `def add( a, b): return`."""
    example = encoder(pieces).encode(Row(prompt=prompt, text=completion))
    assert example.input_ids == [*pieces(prompt + completion)["input_ids"], pieces.eos_token_id]
    assert pieces.decode(example.input_ids, skip_special_tokens=True) == prompt + completion
    assert learnt(pieces, example).replace(" ", "").endswith((completion + END).replace(" ", ""))
    assert example.labels[0] == -100
    first = encoder(pieces, encoding=None).encode(Row(prompt="def add(", text="a, b)"))
    assert pieces.decode(first.input_ids, skip_special_tokens=True) == "def add( a, b)"


def test_one_start_token_and_one_end_token(pieces):
    """Guard: a text that begins with `<s>` had two, and one that ends with `</s>` taught the end twice."""
    made = encoder(pieces)
    for row in (Row(text="<s>it is good"), Row(prompt="<s>it is", text=" good</s>"), Row(text="it is good</s>")):
        ids = made.encode(row).input_ids
        assert (ids.count(1), ids.count(2), ids[0], ids[-1]) == (1, 1, 1, 2)
    assert made.prompt_ids("<s>it is", chat=False) == made.prompt_ids("it is", chat=False)
    chat = encoder(pieces, "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    ids = chat.encode(Row(messages=(Message("user", "<s>hi"), HELLO))).input_ids
    assert ids.count(1) == 1
    first = encoder(pieces, encoding=None).encode(Row(text="<s>it is good"))
    assert first.input_ids[:2] == [1, 1]


def test_a_tokenizer_that_ends_each_text(pieces):
    """Guard: the end token that it adds to a prompt stood between prompt and completion."""
    from tokenizers import processors

    ending = sentencepiece()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    made = encoder(ending)
    assert made.encode(Row(prompt="it is", text=" good")) == encoder(pieces).encode(Row(prompt="it is", text=" good"))
    assert made.prompt_ids("it is", chat=False) == encoder(pieces).prompt_ids("it is", chat=False)


def found(tokenizer, row, template=None):
    from worker.training.encoding_findings import findings

    return " ".join(findings(encoder(tokenizer, template), tokenizer, [row]))


def test_findings(tokenizer, pieces):
    """Guards: without `_of_beginnings`, `_of_prompt`, `_of_end` or `_of_texts` one of these is silent."""
    once, twice = Row(messages=CHAT[:2]), Row(messages=CHAT)
    assert found(tokenizer, once, CHATML) == found(tokenizer, twice, CHATML) == ""
    assert found(tokenizer, once, QWEN3) == ""
    assert "begins the last answer of a row with '<think>" in found(tokenizer, twice, QWEN3)
    assert found(tokenizer, Row(messages=CHAT, given=2), QWEN3) == ""
    assert "answers begin where nothing was trained" in found(tokenizer, once, R1)
    assert "A prompt ends with '<think>" in found(tokenizer, twice, QWEN35)
    assert "not trained" not in found(tokenizer, once, MISTRAL_V3)
    stop = found(pieces, once, CHATML)
    assert "Answers end with" in stop
    assert "<|im_end|>" in stop
    assert "stops only at '</s>', which is not trained" in stop
    assert found(pieces, Row(prompt="it is", text=" good")) == ""
    assert "joins the end of a prompt" in found(pieces, Row(prompt="it is ", text="good"))
    assert "has no end token" in found(sentencepiece_without_end(), Row(text="it is good"))


def sentencepiece_without_end():
    made = sentencepiece()
    made.eos_token = None
    return made


def test_the_models_own_stop_tokens_count(tokenizer, tmp_path):
    """Guard: with the tokenizer's end token alone, instruction-tuned models with two got a false warning."""
    pieces = sentencepiece()
    pieces.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    saved = pieces.from_pretrained(tmp_path)
    assert Path(saved.name_or_path) == tmp_path
    assert found(saved, Row(messages=CHAT), CHATML) == ""


def test_templates_that_trl_ships(tokenizer):
    """Real templates keep every turn of a plain conversation, or say that they do not."""
    found_spec = find_spec("trl")  # its import takes seconds
    assert found_spec is not None
    assert found_spec.origin is not None
    folder = Path(found_spec.origin).parent / "chat_templates"
    seen = []
    for name in ("qwen2_5", "qwen3", "llama3_1", "gemma3", "lfm2", "deepseek_r1_distill", "qwen3_5_think"):
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        text = learnt(tokenizer, encoder(tokenizer, template).encode(Row(messages=(SYSTEM, *CHAT))))
        assert "hello" in text
        assert "bye now" in text
        seen.append(found(tokenizer, Row(messages=(SYSTEM, *CHAT)), template))
    assert [bool("begins the last answer" in words) for words in seen] == [False, True, *[False] * 4, True]


def test_rows_that_teach_nothing_are_left_out(tokenizer):
    """Guard: without `with_trained_tokens` a step of such rows had loss 0.0. Short rows are not tokenised for it."""
    from worker.training.untrained import with_trained_tokens

    long = Message("user", "x" * 100)
    rows = [Row(messages=CHAT), Row(messages=(long, HELLO)), Row(prompt="y" * 90, text="a"), Row(text="z" * 90)]
    made = encoder(tokenizer, CHATML, length=80)
    assert with_trained_tokens(rows, [0, 1, 2, 3], made) == [0, 3]
    assert with_trained_tokens(rows, [3, 1], made) == [3]
    assert [made.may_teach_nothing(row) for row in rows] == [False, True, True, False]
    with pytest.raises(PermanentError, match="no row has a trained token within its first 80 tokens"):
        with_trained_tokens(rows, [1, 2], made)
    every = encoder(tokenizer, CHATML, length=80, everything=True)
    assert with_trained_tokens(rows, [0, 1, 2, 3], every) == [0, 1, 2, 3]
