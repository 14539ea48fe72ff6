"""Which tokens are trained on, for templates of every kind."""

import pytest

from worker.shared.dataset_files import Message, Row
from worker.training.interface import PermanentError

CHAT = (
    Message("system", "be kind"),
    Message("user", "hi"),
    Message("assistant", "hello"),
    Message("user", "more"),
    Message("assistant", "é bye"),
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
UNSTABLE = "{{ messages | length }}:{% for m in messages %}{{ m['content'] }};{% endfor %}"


@pytest.fixture
def tokenizer(base):
    from worker.training.encoding import load_tokenizer

    return load_tokenizer(base, trust_remote_code=False)


def encode(tokenizer, row, length=512, everything=False):
    from worker.training.encoding import Encoder

    return Encoder(tokenizer, length, everything).encode(row)


def trained_text(tokenizer, example):
    assert all(label in (-100, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    return tokenizer.decode([label for label in example.labels if label != -100])


def test_only_the_assistant_is_trained(tokenizer):
    """Fails when the generation prompt is left out of the prefix: the role header is trained then."""
    example = encode(tokenizer, Row(messages=CHAT))
    assert trained_text(tokenizer, example) == "hello<|im_end|>\né bye<|im_end|>\n"
    assert tokenizer.decode(example.input_ids).startswith("<|im_start|>system\nbe kind<|im_end|>\n")


def test_generation_marks_of_the_template_are_followed(tokenizer):
    tokenizer.chat_template = MARKED
    assert trained_text(tokenizer, encode(tokenizer, Row(messages=CHAT))) == "hello<|im_end|>é bye<|im_end|>"


def test_a_template_that_decorates_the_last_turn(tokenizer):
    """Fails without `_end_by_content`: rendering the conversation in part is no prefix of the whole."""
    tokenizer.chat_template = THINKING
    text = trained_text(tokenizer, encode(tokenizer, Row(messages=CHAT)))
    assert text == "hello<|im_end|>\n<think>\n\n</think>\n\né bye<|im_end|>\n"


def test_a_template_that_cannot_be_masked_is_refused(tokenizer):
    tokenizer.chat_template = UNSTABLE
    with pytest.raises(PermanentError, match="renders an earlier turn differently"):
        encode(tokenizer, Row(messages=CHAT))
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(PermanentError, match="chat template refuses a row of the dataset: no system role"):
        encode(tokenizer, Row(messages=CHAT))


def test_training_on_everything_needs_no_spans(tokenizer):
    """What the refusal above advises. Guard: as long as spans were computed first it was refused all the same."""
    tokenizer.chat_template = UNSTABLE
    example = encode(tokenizer, Row(messages=CHAT), everything=True)
    assert trained_text(tokenizer, example) == "5:be kind;hi;hello;more;é bye;"[1:]


def test_a_template_that_opens_a_thought_for_the_model(tokenizer):
    """Guard: without `_begin_by_content` all rows were refused. A thought that the template drops is still refused."""
    tokenizer.chat_template = OPENING
    text = trained_text(tokenizer, encode(tokenizer, Row(messages=CHAT)))
    assert text == "hello<|im_end|>\né bye<|im_end|>\n"
    begins_alike = Row(messages=(Message("user", "hi"), Message("assistant", "<table>")))
    assert trained_text(tokenizer, encode(tokenizer, begins_alike)) == "<table><|im_end|>\n"
    dropped = Row(messages=(Message("user", "hi"), Message("assistant", "<think>well</think>yes")))
    with pytest.raises(PermanentError, match="renders an earlier turn differently"):
        encode(tokenizer, dropped)


@pytest.mark.parametrize("marked", [False, True])
def test_a_prompt_of_messages_is_not_trained(tokenizer, marked):
    """Guard: without `given` the examples that a prompt shows were learnt as if they were answers."""
    if marked:
        tokenizer.chat_template = MARKED
    end = "<|im_end|>" if marked else "<|im_end|>\n"
    text = trained_text(tokenizer, encode(tokenizer, Row(messages=CHAT, given=4)))
    assert text == f"é bye{end}"


def test_the_fallback_template(tokenizer):
    from worker.training.encoding import FALLBACK_TEMPLATE

    tokenizer.chat_template = FALLBACK_TEMPLATE
    example = encode(tokenizer, Row(messages=CHAT[1:3]))
    assert tokenizer.decode(example.input_ids) == "### User:\nhi\n\n### Assistant:\nhello<|im_end|>\n\n"
    assert trained_text(tokenizer, example) == "hello<|im_end|>\n\n"


def test_texts_and_completions(tokenizer):
    assert trained_text(tokenizer, encode(tokenizer, Row(text="abc"))) == "bc<|im_end|>"
    assert trained_text(tokenizer, encode(tokenizer, Row(prompt="q: ", text="abc"))) == "abc<|im_end|>"
    everything = encode(tokenizer, Row(messages=CHAT), everything=True)
    assert everything.labels[1:] == everything.input_ids[1:]


def test_truncation_keeps_the_row(tokenizer):
    example = encode(tokenizer, Row(messages=CHAT), length=8)
    assert len(example.input_ids) == 8
    assert set(example.labels) == {-100}


def test_collate_pads_right(tokenizer):
    from worker.training.data import collate
    from worker.training.encoding import Example

    batch = collate([Example([5, 6], [-100, 6]), Example([7], [-100])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["labels"].tolist() == [[-100, 6], [-100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
