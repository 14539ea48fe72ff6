"""Turns that say whether they are trained on, thoughts, tool calls and tools: what is written, and what is trained."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.tiny_model import byte_tokenizer
from tests.worker.test_data import MARKED, THINKING
from tests.worker.test_look import asked, write
from tests.worker.test_training_templates import template
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.dataset_files import DatasetError, Message, Row, inspect, read_rows
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.job_spec import ENCODING, JobSpec
from worker.shared.manifest import Recipe
from worker.shared.row_formats import to_row
from worker.shared.taught_turns import as_taught
from worker.training.data import rendered_sha256
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.encoding_findings import findings
from worker.training.interface import PermanentError
from worker.training.token_preview import preview_tokens
from worker.training.untrained import with_trained_tokens

BEFORE = 3
"""The version in which a turn was a role and a text."""
CHATML = byte_tokenizer().chat_template
ASK, MORE = {"role": "user", "content": "ask"}, {"role": "user", "content": "more"}
SAY, BYE = {"role": "assistant", "content": "say"}, {"role": "assistant", "content": "bye"}
TURNS = [ASK, SAY, MORE, BYE]
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"place": "Łódź"}}}
FOUND = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "rain"}
PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "where"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks", "parameters": PLACE}}]
CALLING = {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, FOUND, BYE], "tools": TOOLS}


def thinking(*thoughts):
    turns = [dict(turn) for turn in TURNS]
    for turn, thought in zip((1, 3), thoughts, strict=False):
        if thought:
            turns[turn]["reasoning_content"] = thought
    return {"messages": turns}


def read(record, encoding=ENCODING, **taught):
    return as_taught(to_row(RowFormat.MESSAGES, 1, record), TaughtTurns(**taught), encoding)


def made(chat_template=CHATML, *, encoding=ENCODING, everything=False):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    return tokenizer, Encoder(tokenizer, 4096, everything, encoding=encoding)


def learnt(row, chat_template=CHATML, **how):
    """The trained parts of the text."""
    tokenizer, encoder = made(chat_template, **how)
    example = encoder.encode_full(row)
    assert all(label in (-100, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    runs, before = [], -100
    for label in example.labels:
        if label != -100 and before == -100:
            runs.append([])
        if label != -100:
            runs[-1].append(label)
        before = label
    return [tokenizer.decode(run).replace("<|im_end|>", "|") for run in runs]


SAYS = [
    ({"train": False}, {}, ["bye|"]),
    ({}, {"weight": 0}, ["say|"]),
    ({"training": True}, {"train": "no"}, ["say|"]),
]


@pytest.mark.parametrize(("first", "second", "wanted"), SAYS)
@pytest.mark.parametrize("chat_template", [CHATML, MARKED, THINKING, template("qwen2_5")])
def test_a_turn_says_whether_it_is_trained(chat_template, first, second, wanted):
    """Guard: without `taught` all answers are trained."""
    row = read({"messages": [ASK, SAY | first, MORE, BYE | second]})
    trained = [part.removesuffix("\n").rpartition("\n")[2] for part in learnt(row, chat_template)]
    assert trained == wanted


def test_a_question_can_be_trained_too():
    """Its text and the end of its turn, without what the template writes before it."""
    row = read({"messages": [ASK | {"train": True}, SAY, MORE, BYE | {"train": False}]})
    for chat_template, answer in ((CHATML, "say|\n"), (MARKED, "say|")):
        assert learnt(row, chat_template) == ["ask|", answer]
    assert learnt(read({"messages": TURNS}, roles_to_train=["human"])) == ["ask|", "more|"]
    assert learnt(read({"messages": TURNS}, roles_to_train=["user", "gpt"])) == ["ask|", "say|\n", "more|", "bye|\n"]
    assert learnt(read(CALLING, roles_to_train=["tool"]), template("qwen3")) == ["rain"]
    moved = "{% for m in messages %}{{ m['content'] }}{{ messages[0]['content'] }}{% endfor %}"
    with pytest.raises(
        PermanentError, match=r"turn 1 \(user\) is to be trained on, but cannot be found in what the chat"
    ):
        learnt(read({"messages": TURNS}, roles_to_train=["user"]), moved)


@pytest.mark.parametrize("chat_template", [CHATML, MARKED, THINKING, template("phi3"), template("qwen3")])
def test_only_the_last_turn(chat_template):
    """Guard: by a count of the template's marks, phi3's end of a conversation took the first token of the answer."""
    (trained,) = learnt(read({"messages": TURNS}, mask_history=True), chat_template)
    assert trained.removeprefix("<think>\n\n</think>\n\n").startswith("bye")
    (given,) = learnt(Row(read({"messages": TURNS}).messages, given=2), chat_template)
    assert given == trained


def test_which_ends_are_trained():
    """Guard: without `with_trained_ends` the ends of trained turns are trained, as by default."""
    rows = {ends: read({"messages": TURNS}, train_on_eos=ends) for ends in ("turn", "all", "last")}
    assert learnt(rows["turn"]) == ["say|\n", "bye|\n"]
    assert learnt(rows["all"]) == ["|", "say|\n", "|", "bye|\n"]
    assert learnt(rows["last"]) == ["say", "bye|"]
    assert learnt(rows["last"], MARKED) == ["say", "bye|"]
    with pytest.raises(
        DatasetError, match="is not a conversation, so roles_to_train, mask_history and train_on_eos do not"
    ):
        as_taught(Row(text="x"), TaughtTurns(train_on_eos="last"), ENCODING)


def test_training_on_everything_and_on_some_turns_exclude_each_other():
    spec = {"base_model": "m", "max_steps": 1, "train_on_inputs": True}
    for key in ({"roles_to_train": ["user"]}, {"mask_history": True}, {"train_on_eos": "all"}):
        with pytest.raises(ValueError, match="train_on_inputs trains on all turns, so it excludes roles_to_train"):
            JobSpec.model_validate(spec | {"datasets": [{"path": "x", **key}]})
    row = read({"messages": [ASK, SAY | {"train": False}, MORE, BYE]})
    with pytest.raises(PermanentError, match="says that it is not to be trained on, but train_on_inputs"):
        learnt(row, everything=True)


def test_a_row_of_which_nothing_is_trained_is_left_out_and_named(tmp_path):
    """Guard: without `_of_silent` only a number of rows without a trained token is said."""
    silent = {"messages": [ASK, SAY | {"weight": 0}]}
    _, encoder = made()
    assert with_trained_tokens([read(silent), read({"messages": TURNS})], [0, 1], encoder) == [1]
    with pytest.raises(PermanentError, match="no row has a trained token"):
        with_trained_tokens([read(silent)], [0], encoder)
    byte_tokenizer().save_pretrained(tmp_path)
    file = write(tmp_path / "rows", FileFormat.JSONL, [{"messages": TURNS}, silent, {"messages": TURNS}])
    reply = preview_tokens(asked(tmp_path, file, RowFormat.MESSAGES, FileFormat.JSONL))
    said = "The row in line 2 says that none of its turns is trained on, so it is left out."
    assert (reply["untrained"], reply["findings"]) == (1, (said,))
    reply = preview_tokens(
        asked(tmp_path, file, RowFormat.MESSAGES, FileFormat.JSONL, taught={"roles_to_train": ["tool"]})
    )
    assert reply["untaught"].startswith("no row has a trained token")


def test_a_thought_is_trained_before_its_answer():
    for name in ("reasoning_content", "reasoning", "thinking"):
        row = read({"messages": [ASK, SAY | {name: "hmm"}]})
        assert learnt(row, template("qwen3")) == ["<think>\nhmm\n</think>\n\nsay|\n"]
        (trained,) = learnt(row, template("gptoss"))
        assert "<|channel|>analysis<|message|>hmm<|end|>" in trained
    own = CHATML.replace("{{ message['content'] }}", "{{ message['thinking'] }}{{ message['content'] }}")
    assert own != CHATML
    assert learnt(read(thinking("hmm")), own) == ["hmmsay|\n", "bye|\n"]


def test_parts_of_thoughts_and_calls_are_read_like_their_keys():
    """As in LLaMA-Factory's newer files."""
    parts = [
        {"type": "reasoning", "value": "hm "},
        {"type": "reasoning", "value": "so"},
        {"type": "text", "value": "say"},
        {"type": "tool_call", "value": json.dumps(CALL["function"])},
    ]
    by_keys = SAY | {"reasoning_content": "hm so", "tool_calls": [{"function": CALL["function"]}], "weight": 0}
    ask = {"role": "user", "content": [{"type": "text", "value": "ask"}], "loss_weight": 0.0}
    by_parts = {"role": "assistant", "content": parts, "loss_weight": 0.0}
    assert read({"messages": [ask, by_parts, MORE, BYE]}) == read(
        {"messages": [ASK | {"weight": 0}, by_keys, MORE, BYE]}
    )
    for turn, words in (
        (by_parts | {"thinking": "x", "reasoning_content": "x"}, "has 'reasoning_content' and parts that say the same"),
        (
            SAY | {"content": [{"type": "tool_call", "value": "{"}]},
            "has parts of type tool_call that are not valid JSON",
        ),
        (SAY | {"content": [{"type": "text", "text": "a", "value": "b"}]}, "a part of text with 'value'"),
    ):
        with pytest.raises(DatasetError, match=words):
            read({"messages": [ASK, turn, MORE, BYE]})


def test_a_thought_that_is_not_written_is_refused():
    """Guard: without `_unsaid_thought` it fell away unsaid."""
    with pytest.raises(
        PermanentError, match=r"no place for the thought of turn 2 \('hmm...'\); write it into the text as"
    ):
        learnt(read(thinking("hmm")))
    with pytest.raises(
        PermanentError, match=r"leaves out the thought of turn 2 \('hmm...'\), and the row has no other one"
    ):
        learnt(read(thinking("hmm")), template("glm4moe"))
    row = read({"messages": [ASK, SAY | {"thinking": "hmm", "train": False}, MORE, BYE]})
    assert learnt(row) == ["bye|\n"], "the thought of a turn that is not trained on"


def test_thoughts_of_earlier_turns_that_are_dropped_are_counted():
    """Guard: without `_of_thoughts` nothing is said of the thoughts that such a template leaves out."""
    tokenizer, encoder = made(template("glm4moe"))
    row = read(thinking("hmm", "aha"))
    assert "aha" in learnt(row, template("glm4moe"))[-1]
    said = findings(encoder, tokenizer, [row, row])[-1]
    assert said.startswith("The chat template leaves out 2 of 4 thoughts in the first rows, so the model learns these")
    tokenizer, encoder = made(template("qwen3"))
    assert not any("thoughts" in each for each in findings(encoder, tokenizer, [row, row]))


def test_a_call_is_trained_and_its_answer_is_not():
    call = '<tool_call>\n{"name": "look", "arguments": {"place": "Łódź"}}\n</tool_call>|'
    assert [part.strip() for part in learnt(read(CALLING), template("qwen2_5"))] == [call, "bye|"]
    as_text = json.loads(json.dumps(CALLING))
    as_text["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"place": "Łódź"}'
    as_text["tools"] = json.dumps(TOOLS)
    assert read(as_text) == read(CALLING)
    tokenizer, encoder = made(template("qwen2_5"))
    row = read(CALLING)
    whole, prompt = encoder.encode_full(row).input_ids, encoder.answer_prompt(row.messages[:3], row.tools)
    assert whole[: len(prompt)] == prompt
    assert '"name": "look", "description": "looks"' in tokenizer.decode(prompt)


TEXT_CALLS = (  # like DeepSeek's: arguments are joined as text, and only a turn without content calls
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:"
    "{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name + '(' + c.function.arguments + ')' }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}|{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LISTED = (  # like those of models that see: a content is a list of parts
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}|{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_templates_that_read_calls_and_texts_in_another_form():
    """Guard: with objects alone, "" for no text, or texts alone, these templates refuse or lose them."""
    assert learnt(read(CALLING), TEXT_CALLS) == ['look({"place": "Łódź"})|', "bye|"]
    parts = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]}, SAY]
    }
    for chat_template, end in ((LISTED, "say|"), (CHATML, "say|\n")):
        _, encoder = made(chat_template)
        assert learnt(read(parts), chat_template) == [end]
        assert "ask" in encoder.rendered(read(parts))


LOST = [
    (CHATML, "leaves out the tools of the row"),
    (TEXT_CALLS.replace("c.function.name", "'f'"), r"leaves out the tool call of turn 2 \('look'\)"),
    (TEXT_CALLS.replace(" + c.function.arguments", ""), r"leaves out the tool call of turn 2 \('look'\)"),
    (TEXT_CALLS.replace("for c in m.tool_calls", "for c in m.tool_calls[:0]"), "leaves out the tool call of turn 2"),
    (
        TEXT_CALLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
        r"turn 3 \(tool, 'rain'\)",
    ),
    ("{{ raise_exception('no tools') if tools }}" + CHATML, "the chat template refuses a row of the dataset: no tools"),
]


@pytest.mark.parametrize(("chat_template", "words"), LOST, ids=[words for _, words in LOST])
def test_what_a_template_leaves_out_of_tools_is_refused(chat_template, words):
    """Guard: without `_by_shape` and `_missing_calls` calls and tools fell away unsaid."""
    with pytest.raises(PermanentError, match=words):
        learnt(read(CALLING), chat_template)


def test_a_job_of_an_earlier_version_reads_its_rows_as_it_began():
    """Guard: a question that says 'train': true, and a tool's name, would make other tokens in a running job."""
    record = {"messages": [ASK | {"train": True}, SAY, FOUND, BYE]}
    old = read(record, BEFORE)
    assert old == Row(tuple(Message(turn["role"], turn["content"]) for turn in record["messages"]))
    assert learnt(old, encoding=BEFORE) == ["say|\n", "bye|\n"]
    for newer in (CALLING, thinking("hmm"), {"messages": TURNS, "tools": TOOLS}):
        with pytest.raises(DatasetError, match="which this job is too old to read; submit the job again"):
            read(newer, BEFORE)


def test_the_hash_of_the_rows_covers_what_is_trained():
    """Guard: the texts of these rows are equal."""
    _, encoder = made()
    plain, also, last = (
        read({"messages": TURNS}),
        read({"messages": TURNS}, mask_history=True),
        read({"messages": TURNS}, train_on_eos="last"),
    )
    assert len({rendered_sha256([row], encoder) for row in (plain, also, last)}) == 3
    _, older = made(encoding=BEFORE)
    assert rendered_sha256([plain], encoder) == rendered_sha256([plain], older)


def test_the_keys_reach_the_recipe_and_not_older_workers():
    spec = JobSpec(base_model="m", datasets=({"path": "x"},), max_steps=1)  # pyright: ignore[reportArgumentType]
    assert not spec.model_dump()["datasets"][0].keys() & TaughtTurns.model_fields.keys()
    assert Recipe.of(spec).roles_to_train == ()
    changed = JobSpec.model_validate(
        {"base_model": "m", "max_steps": 1, "datasets": [{"path": "x"}, {"path": "y", "mask_history": True}]}
    )
    recipe = Recipe.of(changed)
    assert (recipe.roles_to_train, recipe.mask_history) == (("assistant", "assistant"), (False, True))
    assert recipe.train_on_eos == ("turn", "turn")
    assert {name for name, _, _ in recipe.differences(Recipe.of(spec))} >= {"roles_to_train", "mask_history"}


def test_an_adapter_says_at_which_tokens_its_answers_end(training, tmp_path):
    """A base model with an end token that the rows never have. Guard: without `_write_generation` answers go on."""
    training.base = shutil.copytree(training.base, tmp_path / "base")
    tokenizer = load_tokenizer(training.base, trust_remote_code=False)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(training.base)
    config = json.loads((training.base / "config.json").read_text()) | {"eos_token_id": 0}
    (training.base / "config.json").write_text(json.dumps(config))
    (training.base / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.5}')
    work = training.session(training.spec(max_steps=1, sample_prompts=("hi",)))[0].adapter_zip.parent
    settings = json.loads((work / "adapter" / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [0, 2], "temperature": 0.5}
    rows = [Row(messages=(Message("user", "hi"), Message("assistant", "hello")))]
    (said,) = findings(Encoder(tokenizer, 64, False, encoding=ENCODING), tokenizer, rows)
    assert "which is not trained, so it may not stop. Sample answers, evaluations and the generation_config" in said


@pytest.mark.parametrize(("name", "chat_template"), [("tool-calls", "qwen2_5"), ("thoughts", "qwen3")])
def test_the_examples_are_rows_to_train_on(name, chat_template):
    path = Path(__file__).parents[2] / "examples" / f"{name}.jsonl"
    assert (inspect(path).rows, inspect(path).unused) == (12, ())
    tokenizer, encoder = made(template(chat_template))
    rows = list(read_rows(path))
    trained = " ".join(tokenizer.decode([n for n in encoder.encode(row).labels if n >= 0]) for row in rows)
    assert trained.count("Next hop:") >= 12
    assert trained.count('"name": "altitude"') == 16 or "The difference is" in trained
    assert not any("leaves out" in said for said in findings(encoder, tokenizer, rows))


def test_a_run_with_calls_and_thoughts_goes_on_exactly(training, tmp_path):
    """Guard: without the keys in the recipe, the second session could train on other turns of the same rows."""
    training.base = shutil.copytree(training.base, tmp_path / "qwen3")
    (training.base / "chat_template.jinja").write_text(template("qwen3"))
    rows = [CALLING | {"messages": [*CALLING["messages"], MORE, BYE | {"thinking": f"{n}"}]} for n in range(8)]
    training.dataset = write(tmp_path / "rows.jsonl", FileFormat.JSONL, rows)
    data = {"path": "x", "rows": 8, "sha256": "0" * 64}
    how = {"max_steps": 3, "sequence_len": 1024, "encoding": ENCODING}
    spec = training.spec(datasets=(data | {"mask_history": True},), **how)
    whole, cut = (training.run(spec, cuts) for cuts in ((), (2,)))
    assert cut.trained.adapter_sha256 == whole.trained.adapter_sha256
    assert cut.sessions[1].restores == [(2, "exact", "hf")]
    other = training.spec(datasets=(data,), **how)
    with pytest.raises(CheckpointError, match="mask_history"):
        training.session(other, resume=training.folder / "run2" / "0.safetensors")
