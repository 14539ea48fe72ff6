"""What a session trains on depends on the job alone, and every row is checked before the first step."""

import hashlib
import json
import locale
import os
import shutil
import time
import zipfile
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.dataset_files import Message, Row
from worker.shared.job_spec import ENCODING
from worker.shared.messages import Assignment
from worker.training.data import check_rows
from worker.training.encoding import Encoder, load_tokenizer
from worker.training.interface import Decision, PermanentError
from worker.training.model_limits import ModelLimits
from worker.training.pinned_time import strftime_at
from worker.training.untrained import with_trained_tokens

MIDNIGHT = 1_790_000_000.0
"""The job's time, 21 September 2026 in UTC."""
DATED = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\n{{ strftime_now('%d %b %Y %H:%M') }}<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = Row(messages=(Message("user", "hi"), Message("assistant", "hello")))


@pytest.fixture
def zone():
    """Moves this process to another time zone."""
    before = os.environ.get("TZ")

    def move(name):
        os.environ["TZ"] = name
        time.tzset()

    yield move
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def with_template(training, folder, template):
    """The tiny model with another chat template."""
    training.base = shutil.copytree(training.base, folder / "templated")
    (training.base / "chat_template.jinja").write_text(template)


def test_every_directive_is_the_same_text_on_every_machine(zone):
    """Guard: without the fixed texts `%s` followed the zone, and the names of months and days the locale."""
    directives = "aAwdbBmyYHIMpPSfzZjUWcxXeDFTrRhklCGuVs%"
    for seconds in (0.0, MIDNIGHT, MIDNIGHT + 43_200.5, 4_102_444_799.0):
        zone("UTC")
        as_library = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
        wanted = [as_library.strftime(f"%{each}") for each in directives]
        for place in ("UTC", "Pacific/Kiritimati", "America/Los_Angeles"):
            zone(place)
            assert [strftime_at(seconds)(f"%{each}") for each in directives] == wanted
    assert strftime_at(MIDNIGHT)("Today: %-d %B, 100%%") == "Today: 21 September, 100%"
    assert locale.setlocale(locale.LC_TIME) == "C", "else the texts above were not those of the library"


def test_training_and_prompts_see_the_time_of_the_job(training, tmp_path):
    """Guard: without the variable the template's own clock was read, by each of these three."""
    with_template(training, tmp_path, DATED)
    tokenizer = load_tokenizer(training.base, trust_remote_code=False)
    marked = DATED.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    for template in (DATED, marked):
        tokenizer.chat_template = template
        encoder = Encoder(tokenizer, 512, train_on_inputs=False, rendered_at=MIDNIGHT)
        for ids in (encoder.encode(CHAT).input_ids, encoder.prompt_ids("hi", chat=True)):
            assert "21 Sep 2026" in tokenizer.decode(ids)
    assert "21 Sep 2026" in encoder.rendered(CHAT)
    assert encoder.is_repeatable
    assert not Encoder(tokenizer, 512, train_on_inputs=False).is_repeatable


def halfway(training, spec, name="first"):
    _, hooks = training.session(spec, decisions={2: Decision.SAVE_AND_STOP}, name=name)
    path = training.folder / f"{name}.safetensors"
    checkpoint_file.write(path, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    return path, hooks.snapshots[-1]


def test_a_run_goes_on_in_another_zone_with_the_same_rows(training, tmp_path, zone):
    """Guard: without the pinned time the adapter was another one and was called exact. Without the hash in the recipe
    the session with another time trained on.
    """
    with_template(training, tmp_path, DATED)
    spec = training.spec(max_steps=4, sequence_len=160, rendered_at=MIDNIGHT)
    zone("America/Los_Angeles")
    whole, unbroken = training.session(spec)
    path, snapshot = halfway(training, spec)
    zone("Pacific/Kiritimati")
    result, hooks = training.session(spec, resume=path)
    assert hooks.restores == [(2, "exact", "hf")]
    assert hooks.steps == unbroken.steps[2:]
    assert result.adapter_sha256 == whole.adapter_sha256
    assert differing(hooks.snapshots[-1].tensors, unbroken.snapshots[-1].tensors) == []
    assert snapshot.manifest.recipe.rows_sha256 == hooks.snapshots[-1].manifest.recipe.rows_sha256

    with pytest.raises(CheckpointError, match=r"^the rows of this job are rendered .* clone the job from its start \("):
        training.session(spec.model_copy(update={"rendered_at": MIDNIGHT + 86_400}), resume=path)
    changed = snapshot.manifest.model_copy(update={"next_tokens_sha256": "0" * 64})
    checkpoint_file.write(path, snapshot.tensors, changed)
    with pytest.raises(CheckpointError, match=r"tokens of the next update: .* here, '0000"):
        training.session(spec, resume=path)


def test_a_checkpoint_of_an_older_version_goes_on(training, tmp_path):
    """Guard: with the rows among the facts that a checkpoint must have, no older one could be continued. A date in the
    rows of a job without a time is not compared.
    """
    path, snapshot = halfway(training, training.spec(max_steps=3))
    bare = snapshot.manifest.recipe.model_copy(update={"rows_sha256": None})
    older = snapshot.manifest.model_copy(update={"recipe": bare, "next_tokens_sha256": None})
    checkpoint_file.write(path, snapshot.tensors, older)
    _, hooks = training.session(training.spec(max_steps=3), resume=path)
    assert hooks.snapshots[-1].manifest.recipe.rows_sha256 == snapshot.manifest.recipe.rows_sha256
    with_template(training, tmp_path, DATED)
    _, dated = halfway(training, training.spec(max_steps=3, sequence_len=160), "dated")
    assert (dated.manifest.recipe.rows_sha256, dated.manifest.next_tokens_sha256) == (None, None)


def rows_with(training, folder, number, content):
    """The data with another answer in one row."""
    lines = training.dataset.read_text().splitlines()
    row = json.loads(lines[number])
    row["messages"][-1]["content"] = content
    lines[number] = json.dumps(row)
    training.dataset = folder / "rows.jsonl"
    training.dataset.write_text("\n".join(lines))


def never():
    """A trainer that must not get as far as a step."""
    from worker.training.trainer import StepTrainer

    class Never(StepTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            raise AssertionError("a step was begun")

    return Never


@pytest.mark.parametrize("place", ["trained", "held out"])
def test_a_token_outside_the_model_is_found_before_the_first_step(training, tmp_path, place):
    """Guard: without the check of every row, a job of one step ended well although row 23 has such a token, and a
    longer one failed when it came to it.
    """
    from worker.shared.row_split import split

    tokenizer = load_tokenizer(training.base, trust_remote_code=False)
    tokenizer.add_tokens(["<|more|>"])
    training.base = shutil.copytree(training.base, tmp_path / "model")
    tokenizer.save_pretrained(training.base)
    kept, apart = split(training.rows, 3, 42)
    number = int(kept[-1] if place == "trained" else apart[-1])
    rows_with(training, tmp_path, number, "an odd <|more|> token")
    spec = training.spec(max_steps=1, global_batch_size=1, micro_batch_size=1, val_set_size=3 / training.rows)
    with pytest.raises(
        PermanentError, match=rf"^row {number + 1} of the dataset has token \d+, but the model has only"
    ):
        training.session(spec)


def test_a_template_that_closes_the_conversation_is_found_first(training, tmp_path):
    """Guard: as above; the row is one of several turns, which this template renders otherwise in the middle."""
    plain = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    with_template(training, tmp_path, "{{ messages | length }}" + plain)
    with pytest.raises(PermanentError, match=r"^row 1: the chat template renders an earlier turn differently"):
        training.session(training.spec(max_steps=1))


@pytest.mark.parametrize("draw", ["{{ ['a', 'b'] | random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_its_text_is_refused(training, tmp_path, draw):
    """Guard: without the refusal each session trained on other rows and was called exact."""
    with_template(training, tmp_path, draw + DATED)
    with pytest.raises(PermanentError, match="the chat template draws random text"):
        training.session(training.spec(max_steps=1, rendered_at=MIDNIGHT))


def test_a_tokenizer_draws_no_tokens(tmp_path):
    """Guard: with the dropout that such a file asks for, a text had other tokens each time."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    merges = Tokenizer(models.BPE(dropout=0.5))
    merges.pre_tokenizer = pre_tokenizers.Whitespace()
    merges.train_from_iterator(["low lower lowest new newer newest"] * 9, trainers.BpeTrainer(vocab_size=60))
    PreTrainedTokenizerFast(tokenizer_object=merges, eos_token="low").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, trust_remote_code=False)
    encoder = Encoder(tokenizer, 512, train_on_inputs=False)
    row = Row(text="lowest newest lower newer " * 4)
    assert len({tuple(encoder.encode(row).input_ids) for _ in range(20)}) == 1
    merged: Any = tokenizer
    merged.backend_tokenizer.model.dropout = 0.5
    with pytest.raises(PermanentError, match="row 1 gives other tokens each time it is tokenised"):
        check_rows([row], [0], encoder, ModelLimits(tokens=60), 512)


def test_a_text_that_the_tokenizer_cannot_read_is_named(tmp_path):
    """Guard: without the sentence the library's bare exception ended three sessions at the step of the row."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"known": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    encoder = Encoder(load_tokenizer(tmp_path, trust_remote_code=False), 512, train_on_inputs=False)
    rows = [Row(text="known known"), Row(text="known other")]
    with pytest.raises(PermanentError, match=r"^row 2: the tokenizer cannot read the text \(.*UNK.*change or remove"):
        check_rows(rows, [0, 1], encoder, ModelLimits(tokens=60), 512)
    with pytest.raises(PermanentError, match=r"^row 2: the tokenizer cannot read the text"):
        with_trained_tokens(rows, [0, 1], encoder)


def test_an_older_worker_reads_the_assignment(training):
    """Guard: with the time inside the job file, a worker that does not know the key refused the whole assignment."""
    spec = training.spec(rendered_at=MIDNIGHT)
    outer = spec.model_copy(update={"rendered_at": None})
    sent = Assignment(
        job="j", lease="l", fence=1, spec=outer, rendered_at=MIDNIGHT, seconds_left=1.0, datasets=()
    ).model_dump_json()
    assert "rendered_at" not in json.loads(sent)["spec"]
    assert Assignment.model_validate_json(sent).whole_spec == spec


OWN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_job_writes_rows_prompts_and_its_adapter_with_its_own_template(training):
    """Guards: without `template` in `load_tokenizer` the model's own wrote the rows; with it in the encoder alone, the
    adapter's folder had the model's."""
    spec = training.spec(max_steps=1, chat_template_jinja=OWN, sequence_len=160, encoding=ENCODING)
    tokenizer = load_tokenizer(training.base, trust_remote_code=False, template=spec.own_template)
    encoder = Encoder(tokenizer, 512, train_on_inputs=False, encoding=ENCODING)
    example = encoder.encode(CHAT)
    end = tokenizer.eos_token
    assert tokenizer.decode(example.input_ids) == f"[user] hi{end}[assistant] hello{end}"
    assert tokenizer.decode([label for label in example.labels if label >= 0]) == f"hello{end}"
    assert tokenizer.decode(encoder.prompt_ids("hi", chat=True)) == f"[user] hi{end}[assistant] "
    trained, hooks = training.session(spec)
    with zipfile.ZipFile(trained.adapter_zip) as files:
        assert files.read("chat_template.jinja").decode() == OWN
    assert hooks.snapshots[-1].manifest.recipe.chat_template_sha256 == hashlib.sha256(OWN.encode()).hexdigest()
