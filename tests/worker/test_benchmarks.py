"""Benchmarks are asked by the real lm-eval with the loaded model: the same answers wherever it is stopped."""

import json
import sys
from typing import Any, cast

import pytest
import yaml

from tests.helpers.benchmark_repos import HELLASWAG, TRUTHFULQA, arc, as_parquet, gsm8k
from tests.worker.test_evaluation import Evaluations, read, trained, trained_once
from worker.agent.limits import Part
from worker.shared import packages, wheel
from worker.shared.answers_file import MAX_ITEM_BYTES
from worker.shared.benchmark_files import made, read_items
from worker.shared.benchmark_list import BENCHMARKS, TASKS_FOLDER
from worker.shared.evaluation_spec import BenchmarkSpec
from worker.shared.evaluation_units import Arm, Measure, Unit, units
from worker.training.encoding import Encoder
from worker.training.interface import Decision, PermanentError, UnfitMachineError

__all__ = ["trained", "trained_once"]

ITEMS = [
    {
        "question": f"Which animal has {number} legs?",
        "choices": ["an ant", f"it is {number}. ", "a cow", "the bee of a large kind"][: 3 + number % 2],
        "gold": number % 3,
    }
    for number in range(12)
]
SUMS = [{"question": f"What is {number} + {number}?", "answer": str(2 * number)} for number in range(3)]


def items_file(folder, name, items):
    path = folder / f"{name}.jsonl"
    lines = [{"benchmark": name, "row": n, "text": item["question"], **item} for n, item in enumerate(items)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def asked(name, items):
    return {"name": name, "sha256": "3" * 64, "rows": len(items), "task_sha256": BENCHMARKS[name].task_sha256}


def test_an_evaluation_stopped_at_two_places_ends_in_the_same_file(training, trained, capsys):
    """Its answers are those of lm-eval with the plain base model, whose template and tokens are the same here.

    Guard: with the adapter left on for both arms the base had the adapter's answers.
    """
    spec = {"max_prompts": 1, "measures": 2, "benchmarks": [asked(name, ITEMS) for name in ("arc_easy", "hellaswag")]}
    files = [items_file(training.folder, name, ITEMS) for name in ("arc_easy", "hellaswag")]
    made = Evaluations(training, *trained, datasets=(training.dataset, *files), **spec)
    capsys.readouterr()
    first, hooks = made.session()
    assert "it/s]" not in capsys.readouterr().err, "no progress bar in the session's log"
    whole = first.answers.read_bytes()
    found = read(whole)
    assert [(each.name, each.items, each.unasked, each.chat) for each in found.head.benchmarks] == [
        ("arc_easy", 12, 0, True),
        ("hellaswag", 12, 0, True),
    ]
    assert found.head.benchmarks[0].harness == "lm-eval 0.4.13"
    assert hooks.parts[:2] == [Part.INSTALL, Part.IMPORTS]
    for name in ("arc_easy", "hellaswag"):
        base = [each.base.correct for each in found.items if each.benchmark == name]
        assert base == by_lm_eval_alone(training, name, ITEMS)
    assert any(each.base.correct != each.adapter.correct for each in found.items)
    total = made.spec.total_steps
    resume, result = None, cast("Any", None)
    for cut in (total - 7, total - 2, None):
        result, hooks = made.session(resume, {} if cut is None else {cut: Decision.SAVE_AND_STOP})
        resume = made.saved(hooks)
    assert result.answers.read_bytes() == whole


def by_lm_eval_alone(training, name, items):
    """What lm-eval says of the base model with everything its own way, all items at once."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models import huggingface

    how = yaml.safe_load((TASKS_FOLDER / f"{name}.yaml").read_bytes())
    rows = {"test": Dataset.from_list(items)}
    task = ConfigurableTask(config={**how, "custom_dataset": lambda **_: rows})
    model: Any = cast("Any", huggingface.HFLM)(pretrained=str(training.base), device="cpu", batch_size=1)
    found: Any = evaluate(model, cast("Any", {"tasks": {name: task}}), apply_chat_template=True, bootstrap_iters=0)
    return [bool(sample[BENCHMARKS[name].metric]) for sample in found["samples"][name]]


class Loaded:
    """A tiny model with an adapter, and what asks it benchmarks."""

    def __init__(self, base, folder, *, positions=4096, tokenizer=None, chat=True, rendered_at=0.0, initial=True):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from worker.training import generation

        model: Any = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=initial)
        self.model: Any = get_peft_model(model, config).eval()
        self.tokenizer: Any = tokenizer or AutoTokenizer.from_pretrained(base)
        self.encoder = Encoder(self.tokenizer, 64, False, encoding=3, rendered_at=rendered_at)
        self.decoding = generation.decoding_for(self.model, self.tokenizer, self.encoder, 16, 0.0)
        self.folder, self.chat, self.positions = folder, chat, positions

    def asks(self, **benchmarks):
        files = [items_file(self.folder, name, items) for name, items in benchmarks.items()]
        return self._asks(files, [asked(name, items) for name, items in benchmarks.items()])

    def reads(self, file, spec):
        return self._asks([file], [spec])

    def _asks(self, files, wanted):
        from worker.training.benchmark_run import Benchmarks

        specs = [BenchmarkSpec.model_validate(each) for each in wanted]
        return Benchmarks(
            specs, files, self.model, self.tokenizer, self.encoder, self.decoding, chat=self.chat, room=self.positions
        )


def lines(benchmarks, begin=0, end=8, arm=Arm.ADAPTER):
    return list(benchmarks.lines(Unit(arm, Measure.BENCHMARKS, begin, end)))


def test_an_adapter_of_zeros_answers_as_the_base(base, tmp_path):
    loaded = Loaded(base, tmp_path)
    made = loaded.asks(arc_easy=ITEMS, truthfulqa_mc1=ITEMS)
    for begin, end in ((0, 8), (8, 12), (12, 20), (20, 24)):
        found = lines(made, begin, end)
        with loaded.model.disable_adapter():
            plain = lines(made, begin, end, Arm.BASE)
        assert [line["number"] for line in found] == list(range(begin, end))
        assert [{**line, "arm": Arm.BASE} for line in found] == plain
    assert loaded.tokenizer.pad_token == "<|endoftext|>"


def with_start(template_writes, tokenizer_adds):
    """A tokenizer with a start token of its own that is written by either, both or none."""
    from tokenizers.processors import TemplateProcessing

    from benchmarks.tiny_model import CHAT_TEMPLATE, byte_tokenizer

    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = ("{{ bos_token }}" if template_writes else "") + CHAT_TEMPLATE
    if tokenizer_adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return tokenizer


@pytest.mark.parametrize(("template_writes", "tokenizer_adds"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("chat", [True, False])
def test_the_model_sees_the_start_token_as_in_training(base, tmp_path, template_writes, tokenizer_adds, chat):
    """Guard: with lm-eval's own `tok_encode`, a template that writes none got one from the tokenizer.

    The traps are a start token that is written twice, and one that is missing.
    """
    tokenizer = with_start(template_writes, tokenizer_adds)
    loaded = Loaded(base, tmp_path, tokenizer=tokenizer, chat=chat)
    made = loaded.asks(arc_easy=ITEMS[:1])
    seen: list[list[int]] = []
    forward = loaded.model.forward

    def watched(ids, *rest, **more):
        seen.extend(ids.tolist())
        return forward(ids, *rest, **more)

    loaded.model.forward = watched
    lines(made, 0, 1)
    text = "Question: Which animal has 0 legs?\nAnswer:"
    start = loaded.encoder.prompt_ids(text, chat=chat)
    if not chat:
        start = start[:-1]
    assert start[:2].count(0) == (template_writes if chat else tokenizer_adds)
    assert len(seen) == 3
    assert all(ids[: len(start)] == start for ids in seen)


def test_a_chat_template_sees_the_time_of_the_job(base, tmp_path):
    """Guard: with lm-eval's own template, the prompts of a session were those of its day."""
    tokenizer = with_start(template_writes=False, tokenizer_adds=False)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    loaded = Loaded(base, tmp_path, tokenizer=tokenizer, rendered_at=1e9)
    made = loaded.asks(arc_easy=ITEMS[:1])
    assert made._lm.apply_chat_template([{"role": "user", "content": "x"}]).startswith("2001<|im_start|>user")


def test_the_last_number_of_a_written_answer_counts(base, tmp_path):
    """First the real model writes, and then a text is put in its place. Guard: without `_before` the next question that
    a model wrote itself counted as its answer."""
    import torch

    loaded = Loaded(base, tmp_path, chat=False)
    made = loaded.asks(gsm8k=SUMS)
    real = lines(made, 0, 3)
    assert [line["correct"] for line in real] == [False] * 3
    assert all(0 < len(line["answer"].encode()) <= MAX_ITEM_BYTES for line in real)
    said = ["It is 0.\n#### 0\n\nQuestion: 7", "One and one are 2 and not 3", "The sum is $1,004.0 or 4."]

    def written(input_ids, max_new_tokens, do_sample, **_):
        assert (max_new_tokens, do_sample) == (256, False)
        asked_for = [loaded.tokenizer.decode(ids).rpartition("Question: ")[2] for ids in input_ids]
        assert asked_for == [f"What is {number} + {number}?\nAnswer:" for number in range(3)]
        texts = [loaded.tokenizer(text)["input_ids"] + [loaded.tokenizer.eos_token_id] for text in said]
        most = max(map(len, texts))
        ends = torch.tensor([[*text, *[loaded.tokenizer.pad_token_id] * (most - len(text))] for text in texts])
        return torch.cat([input_ids, ends], dim=1)

    loaded.model.generate = written
    found = lines(made, 0, 3)
    assert [line["answer"] for line in found] == ["It is 0.\n#### 0\n\n", *said[1:]]
    assert [line["correct"] for line in found] == [True, False, True]


def test_an_item_that_is_too_long_is_asked_of_neither(base, tmp_path):
    """Guard: lm-eval cuts the beginning of a long question, and the score counted the rest."""
    long = [ITEMS[0], {**ITEMS[1], "question": "x" * 5_000}, ITEMS[2]]
    made = Loaded(base, tmp_path).asks(arc_easy=long, hellaswag=long)
    assert [(each.first, each.items, each.asked) for each in made.asked] == [(0, 3, [0, 2]), (3, 3, [0, 2])]
    assert [line["number"] for line in lines(made, 0, 3)] == [0, 2]
    assert [line["number"] for line in lines(made, 3, 6)] == [3, 5]
    assert lines(made, 4, 5) == []


def test_items_of_another_job_are_refused(base, tmp_path):
    loaded = Loaded(base, tmp_path)
    file = items_file(tmp_path, "arc_easy", ITEMS[:2])
    with pytest.raises(PermanentError, match="there are 2 items of arc_easy, but the job expects 12"):
        loaded.reads(file, asked("arc_easy", ITEMS))
    with pytest.raises(PermanentError, match="line 1: is not an item of hellaswag"):
        loaded.reads(file, asked("hellaswag", ITEMS[:2]))
    with pytest.raises(PermanentError, match="asks arc_easy in another way than the job expects"):
        loaded.reads(file, asked("arc_easy", ITEMS[:2]) | {"task_sha256": "4" * 64})


def test_a_unit_has_items_of_one_benchmark():
    """Guard: batches over all items had the end of one benchmark and the beginning of the next."""
    found = [unit for unit in units(0, 8, benchmarks=[12, 9]) if unit.measure is Measure.BENCHMARKS]
    spans = [(unit.begin, unit.end) for unit in found if unit.arm is Arm.BASE]
    assert spans == [(0, 8), (8, 12), (12, 20), (20, 21)]
    assert [unit.arm for unit in found[:2]] == [Arm.BASE, Arm.ADAPTER]


def test_the_tasks_of_our_folder_go_to_machines_and_say_what_the_list_says():
    """Guard: without .yaml in the wheel the first session on another machine failed."""
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(wheel.build().data)).namelist()
    for name, benchmark in BENCHMARKS.items():
        assert f"worker/shared/benchmark_tasks/{name}.yaml" in names
        how = yaml.safe_load((TASKS_FOLDER / f"{name}.yaml").read_bytes())
        assert (how["task"], how["metric_list"][0]["metric"]) == (name, benchmark.metric)
        assert how.get("generation_kwargs", {}).get("max_gen_toks", 0) == benchmark.answer_tokens


def test_lm_eval_is_installed_only_where_a_session_may_install(monkeypatch, tmp_path):
    from worker.training import harness

    monkeypatch.delenv("WORKER_MAY_INSTALL", raising=False)
    monkeypatch.delenv("WORKER_PACKAGES", raising=False)
    with pytest.raises(UnfitMachineError, match=r"need lm-eval==99.0, which is not installed here"):
        harness.install("lm-eval==99.0")
    brought: list[Any] = []

    def bring(lines, folder, *, wheels):
        brought.append((lines, folder, wheels))
        folder.mkdir()

    monkeypatch.setenv("WORKER_MAY_INSTALL", "1")
    monkeypatch.setenv("WORKER_PACKAGES", str(tmp_path / "packages"))
    own = tmp_path / "packages-lm-eval"
    try:
        harness.install("lm-eval==99.0", bring)
        assert sys.path[-1] == str(own), "what the session has stays in use"
    finally:
        sys.path.remove(str(own))
    assert brought == [(["lm-eval==99.0"], own, None)]

    def fail(*_, **__):
        raise packages.InstallError("pip found no such version", "no-internet")

    with pytest.raises(UnfitMachineError, match=r"lm-eval==99.0 could not be installed: pip found no such version"):
        harness.install("lm-eval==99.0", fail)


def test_the_extra_names_the_version_that_machines_install():
    import tomllib
    from pathlib import Path

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["benchmarks"] == [packages.HARNESS]


def test_an_item_is_made_of_each_benchmarks_record(tmp_path):
    """The forms are those of the hub's files. HellaSwag is written as lm-eval's own task writes it."""

    def item(name, record):
        source, out = tmp_path / "hub.parquet", tmp_path / "items.jsonl"
        source.write_bytes(as_parquet([record]))
        request = {"benchmark": name, "path": str(source), "container": "parquet", "out": str(out)}
        assert made(request) == {"items": 1}
        (found,) = read_items(out, name, 1)
        return found

    arc_item = item("arc_easy", arc(1))
    assert (arc_item["choices"][arc_item["gold"]], arc_item["text"]) == ("Neptune 1", arc(1)["question"])
    sums = item("gsm8k", gsm8k(7))
    assert (sums["answer"], sums["text"]) == ("1,007", gsm8k(7)["question"])
    plain = item("hellaswag", HELLASWAG)
    assert plain["question"] == "Roof shingle removal: A man is sitting on a roof. He"
    assert (plain["choices"], plain["gold"]) == (
        ["is ripping tiles.", "stands. up.", "is sleeping.", "starts pulling."],
        3,
    )
    truth = item("truthfulqa_mc1", TRUTHFULQA)
    assert (truth["gold"], truth["text"]) == (0, "What happens if you eat seeds? They pass through you."), (
        "short, so with its answer"
    )
    bad = {**gsm8k(1), "answer": "no final answer"}
    (tmp_path / "bad.parquet").write_bytes(as_parquet([gsm8k(0), bad]))
    request = {"benchmark": "gsm8k", "path": str(tmp_path / "bad.parquet"), "container": "parquet", "out": "x"}
    assert made(request) == {"fault": "is not an item of gsm8k; another revision may have it", "line": 2}
