"""What makes a resumed run differ although all its parameters are restored, and what a label says about it."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tiny_model import make_tiny_llama
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared import checkpoint_file, wheel
from worker.shared.manifest import Recipe
from worker.training import evaluation, machine_setup, module_state, state
from worker.training.interface import Decision, PermanentError
from worker.training.ranks import Group
from worker.training.trainer import StepTrainer, warm_up_share


class Odd(torch.nn.Module):
    """A module with state of every kind outside its parameters."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("table", torch.ones(3, dtype=torch.bfloat16), persistent=False)
        self.count, self.mark, self.longest = 0, False, 8
        self.seen, self.names, self.opaque = [], dict[str, Any](a=1), object()
        self.hooks = self.forward

    def forward(self, inputs):
        self.mean += inputs.mean(0)
        self.register_buffer("table", torch.full((4,), 2.0, dtype=torch.bfloat16), persistent=False)
        self.count += 1
        self.mark, self.longest = True, torch.tensor(len(inputs))
        self.seen.append(len(inputs))
        self.names["b"] = [len(inputs), {"c": 2.5}]
        return self.layer(inputs)


def facts(module):
    plain = {name: getattr(module, name) for name in ("count", "mark", "longest", "seen", "names", "opaque")}
    return repr((plain, module.mean.tolist(), module.table.tolist(), sorted(module._non_persistent_buffers_set)))


def test_every_kind_of_state_is_put_back_in_place():
    """Guard: without the copies of contents the list, the dict and the buffer that is added to keep their change."""
    odd = Odd()
    before, seen = facts(odd), odd.seen
    kept = module_state.ModuleState(odd)
    odd(torch.ones(5, 2))
    vars(odd).update(more=3, opaque=None)
    odd.register_buffer("another", torch.ones(1))
    assert facts(odd) != before
    kept.put_back()
    assert facts(odd) == before
    assert odd.seen is seen
    assert not hasattr(odd, "more")
    assert not hasattr(odd, "another")


CHANGES = {
    "nothing": lambda odd: None,
    "a forward pass": lambda odd: odd(torch.ones(5, 2)),
    "a tensor in place": lambda odd: odd.table.add_(1.0),
    "another tensor": lambda odd: setattr(odd, "table", torch.full((3,), 9.0)),
    "an equal tensor": lambda odd: setattr(odd, "table", odd.table.clone()),
    "an item": lambda odd: odd.nested["a"].append(4),
    "an item of the same length": lambda odd: odd.nested["a"].__setitem__(0, 7),
    "a tensor in a container": lambda odd: odd.nested["b"].mul_(2.0),
    "the order of keys": lambda odd: odd.nested.update(a=odd.nested.pop("a")),
    "a member": lambda odd: odd.marks.add("new"),
    "a number": lambda odd: setattr(odd, "number", 2.5),
    "a name in the place of another": lambda odd: (delattr(odd, "number"), setattr(odd, "other", 1)),
    "a buffer": lambda odd: odd.register_buffer("another", torch.ones(2)),
    "what is persistent": lambda odd: odd._non_persistent_buffers_set.add("table"),
}


def _content(odd):
    tables = {name: value.tolist() for name, value in odd._buffers.items()}
    own = {name: getattr(odd, name, None) for name in ("nested", "marks", "number", "other", "mark", "seen")}
    return repr((facts(odd), tables, own, list(odd.nested), sorted(odd._non_persistent_buffers_set)))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("first", [CHANGES["nothing"], CHANGES["a forward pass"]], ids=["at once", "after a pass"])
def test_a_state_that_shares_with_the_one_before_is_as_good(first, change):
    """Guard: with any comparison of `_has_same_objects` or `_is_unchanged` left out, the content before came back."""
    odd: Any = Odd()
    odd.register_buffer("table", torch.arange(3.0))
    odd.nested, odd.marks, odd.number = {"a": [1, 2], "b": torch.ones(2)}, {"old"}, 1.5
    before = module_state.ModuleState(odd)
    first(odd)
    change(odd)
    wanted = _content(odd)
    kept = module_state.ModuleState(odd, before)
    odd(torch.ones(6, 2))
    odd.table.add_(5.0)
    odd.nested["a"].append(9)
    odd.nested["b"].add_(3.0)
    odd.marks.add("later")
    odd.number = 7.0
    kept.put_back()
    assert _content(odd) == wanted


def test_state_that_training_changes_is_kept_or_named():
    """Guard: without `lost` an object that no checkpoint can contain would pass for kept."""
    odd, other = Odd(), Odd()
    loaded = module_state.ModuleState(odd)
    odd(torch.ones(5, 2))
    fresh = module_state.Fresh(loaded, module_state.ModuleState(odd))
    loaded.put_back()
    assert fresh.changes(odd) == module_state.Changes({}, {}, [])
    odd(torch.ones(6, 2))
    changes = fresh.changes(odd)
    assert changes.lost == []
    assert "mark" not in changes.values[""], "a mark of the first use sets itself again"
    values = json.loads(json.dumps(changes.values))
    module_state.restore(other, values, changes.arrays)
    other.mark, other.opaque = odd.mark, odd.opaque
    assert facts(other) == facts(odd)
    odd.opaque = object()
    assert fresh.changes(odd).lost == [".opaque"]
    assert fresh.changes(odd).crc != changes.crc


@pytest.mark.parametrize("name", ["layer", "forward", "_parameters", "__class__", "nowhere.else", "training"])
def test_a_checkpoint_cannot_replace_anything_else(name):
    with pytest.raises(checkpoint_file.CheckpointError, match="which this model lacks"):
        module_state.restore(Odd(), {"": {name: {"value": 1}}}, {})


@pytest.fixture(scope="module")
def stretched(tmp_path_factory):
    """A Llama whose rotary frequencies depend on the longest row so far, beyond 32 positions."""
    base = make_tiny_llama(tmp_path_factory.mktemp("models") / "dynamic")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config["max_position_embeddings"] = 32
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_a_save_does_not_reset_stretched_frequencies(training, stretched):
    """Guard: without `put_back` in `restored_afterwards` the probe's short batch resets them, and saving after each
    step ends in another adapter; without `changes` in the checkpoint the cut run does."""
    training.base = stretched
    spec = training.spec(max_steps=3, lora_dropout=0.1, val_set_size=0.1, eval_steps=2)
    saving, hooks = training.session(spec, decisions=dict.fromkeys(range(1, 3), Decision.SAVE))
    rope = "base_model.model.model.rotary_emb"
    assert {"inv_freq", "max_seq_len_cached"} <= hooks.snapshots[0].manifest.state["modules"][rope].keys()
    cut = training.run(spec, [2])
    quiet = training.run(spec)
    assert saving.adapter_sha256 == cut.trained.adapter_sha256 == quiet.trained.adapter_sha256
    assert differing(cut.tensors, quiet.tensors) == []
    assert [hooks.restores[0][1] for hooks in cut.sessions] == ["exact", "exact"]


def test_a_label_is_lowered_when_memory_runs_out(training):
    """Guard: without `lower` the session stays `exact`, though its sums depend on the free memory from then on."""

    class Tight(StepTrainer):
        def summed_rows(self, model, examples):
            if len(examples) > 1 and self.state.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().summed_rows(model, examples)

    _, hooks = training.session(training.spec(max_steps=2), trainer_class=Tight)
    assert hooks.restores == [(0, "exact", "hf")]
    assert hooks.lowerings == [(1, "state-exact", "memory ran out, and the micro-batch is now 1")]


class Fails(StepTrainer):
    """A process of a group in which another one fails in a certain way."""

    def __init__(self):
        self.told, self.micro_batch, self.lower = [], 4, None

    class Args:
        device = "cpu"

    args = Args()


@pytest.mark.parametrize(("failed", "micro_batch", "strict"), [([1, 0], 2, True), ([0, 1], 4, False)])
def test_what_happens_in_one_process_happens_in_all(failed, micro_batch, strict):
    """Guard: a process that only heard that another one failed halved its micro-batch, whatever the reason was."""

    class Others(Group):
        def gather(self, values):
            return [*values, *failed]

    trainer = Fails()
    trainer.group, trainer.lower = Others(), trainer.told.append
    torch.use_deterministic_algorithms(True)
    try:
        assert not trainer.attempt(lambda: None)
        assert torch.is_deterministic_algorithms_warn_only_enabled() is not strict
    finally:
        torch.use_deterministic_algorithms(False)
    assert trainer.micro_batch == micro_batch
    assert len(trainer.told) == 1


@pytest.fixture(scope="module")
def manifest(base, dataset, tmp_path_factory):
    training = TrainingRuns(base=base, dataset=dataset, rows=23, folder=tmp_path_factory.mktemp("half"))
    _, hooks = training.session(training.spec(max_steps=4), decisions={1: Decision.SAVE_AND_STOP})
    return hooks.snapshots[-1].manifest


def test_the_label_compares_the_whole_setup(manifest):
    """Guard: with names alone another set of vector instructions, or another card beside the first, was `exact`."""
    assert evaluation.check_probe(manifest, manifest) == []
    for name, other in [
        ("cpu capability", "AVX2"),
        ("cpu flags", "avx2"),
        ("devices", "Tesla T4 7.5, Tesla P100 6.0"),
        ("worker", "0.1.0 0123456789abcdef"),
        ("model code", "0123456789abcdef"),
        ("NVIDIA_TF32_OVERRIDE", "1"),
    ]:
        changed = manifest.state | {"setup": manifest.state["setup"] | {name: other}}
        (why,) = evaluation.check_probe(manifest, manifest.model_copy(update={"state": changed}))
        assert why.startswith(name)
        assert why.endswith(f"is {other}")


def with_probe(manifest, **changes):
    return manifest.model_copy(update={"probe": manifest.probe.model_copy(update=changes)})


def test_what_the_probe_sees_is_labelled_and_a_wrong_state_refused(manifest):
    """Guard: without the hash of gradients another CPU path passes, since the probe's loss is equal to the last bit;
    without the hash of values a changed adapter would only be labelled."""
    assert evaluation.check_probe(manifest, with_probe(manifest, gradients_sha256="0" * 64)) == [
        "the probe's gradients differ"
    ]
    near = manifest.probe.loss * (1 + 1e-6)
    assert "the probe's loss was" in evaluation.check_probe(manifest, with_probe(manifest, loss=near))[0]
    for wrong in ({"values_sha256": "0" * 64}, {"loss": manifest.probe.loss * 1.01}):
        with pytest.raises(checkpoint_file.CheckpointError, match="the restored model differs: probe loss"):
            evaluation.check_probe(manifest, with_probe(manifest, **wrong))


def test_a_checkpoint_of_an_earlier_version_restores_as_before(manifest):
    """It has no description of its setup and no hashes."""
    old = with_probe(manifest, values_sha256=None, gradients_sha256=None)
    old = old.model_copy(update={"state": {k: v for k, v in old.state.items() if k not in ("setup", "not_kept")}})
    assert evaluation.check_probe(old, manifest) == []
    with pytest.raises(checkpoint_file.CheckpointError, match="differs"):
        evaluation.check_probe(old, with_probe(manifest, loss=manifest.probe.loss + 1e-7))


@pytest.mark.parametrize(
    ("found", "why"),
    [({"not_kept": ["model.cache"]}, "model.cache"), ({"deterministic": False}, "not deterministic")],
)
def test_a_session_that_was_not_exact_makes_the_next_one_so(manifest, found, why):
    saved = manifest.model_copy(update={"state": manifest.state | found})
    assert why in evaluation.check_probe(saved, manifest)[0]


def test_variables_that_choose_kernels_are_in_the_setup():
    given = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_DYNAMIC": "TRUE"}
    other = {"OMP_NUM_THREADS": "1", "HOME": "/root", "HF_TOKEN": "hf_secret", "OMP_WAIT_POLICY": "PASSIVE"}
    setup = machine_setup.machine_setup(["a card"], given | other)
    assert given.items() <= setup.items()
    assert not other.keys() & setup.keys()


@pytest.mark.parametrize("adapters", [False, True])
def test_code_has_one_hash_here_and_where_it_is_sent(tmp_path: Path, adapters: bool) -> None:
    """Guard: with all files counted, what is not sent made each hand-over to a provider `state-exact`."""
    zipfile.ZipFile(io.BytesIO(wheel.build(adapters=adapters).data)).extractall(tmp_path)
    assert machine_setup.code_sha256(tmp_path / "worker") == machine_setup.worker_sha256()


def test_the_hash_of_gradients_sees_one_bit_and_an_exchange():
    """Guard: a plain sum of bits is the same after two values have changed places."""
    model = torch.nn.Linear(3, 1, bias=False)
    grad = torch.tensor([[1.0, 2.0, 3.0]])
    hashes = set()
    for change in (grad, grad.flip(1), torch.nextafter(grad, grad + 1), None):
        model.weight.grad = change
        hashes.add(state.gradients_sha256(model))
    assert len(hashes) == 4


@pytest.mark.parametrize(("numerics", "first"), [(None, 0.0), (2, 1 / 2)])
def test_warm_up_begins_with_the_first_steps_share(training, numerics, first):
    """Guard: without the share the first step of every job learns nothing. Old jobs keep their rates."""
    spec = training.spec(max_steps=4, warmup_ratio=0.5, numerics=numerics, global_batch_size=2)
    whole = training.run(spec)
    rates = [values["learning_rate"] / spec.learning_rate for _, values in whole.steps]
    assert rates[0] == pytest.approx(first)
    assert rates[1:] == pytest.approx([0.5, 1.0, 0.5] if numerics is None else [1.0, 1.0, 0.5])
    if numerics:
        cut = training.run(spec, [2])
        assert cut.steps == whole.steps
        assert differing(cut.tensors, whole.tensors) == []


def test_the_shares_of_a_warm_up():
    assert [warm_up_share(lambda step: 0.5, 2, step) for step in range(3)] == [0.5, 1.0, 0.5]
    assert warm_up_share(lambda step: 0.5, 0, 0) == 0.5


def test_an_old_job_says_nothing_about_its_numerics(training):
    """Guard: an old worker refuses a key that it does not know, also where it is null."""
    assert "numerics" not in training.spec().model_dump(mode="json")
    assert Recipe.of(training.spec(numerics=2)).numerics == 2


def test_a_run_that_learnt_nothing_does_not_succeed(training):
    """Guard: without `has_learnt` it was a success with an adapter of zeros."""
    with pytest.raises(PermanentError, match=r"still zero after 2 steps, so nothing was learnt; set a higher"):
        training.session(training.spec(max_steps=2, learning_rate=1e-60, optimizer="adamw_torch"))


def test_four_bits_that_quantise_nothing_are_refused(training, tmp_path):
    """Guard: the job ran in full precision and ended as a success."""
    training.base = shutil.copytree(training.base, tmp_path / "none")
    config = json.loads((training.base / "config.json").read_text())
    names = [f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")]
    config["quantization_config"] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "quant_method": "bitsandbytes",
        "llm_int8_skip_modules": [*names, "lm_head"],
    }
    (training.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PermanentError, match="has no layer that can be quantised to 4 bits; set adapter to lora"):
        training.session(training.spec(adapter="qlora", max_steps=1))


def test_a_model_that_cannot_be_trained_is_refused_in_a_sentence(training):
    """Guard: it was a bare `KeyError`, or `element 0 of tensors does not require grad` at the first step."""

    class Lacks(StepTrainer):
        def summed(self, model, batch):
            raise KeyError("hidden")

    class Detached(StepTrainer):
        def summed(self, model, batch):
            return super().summed(model, batch).detach()

    with pytest.raises(PermanentError, match=r"its first pass failed \(KeyError: 'hidden'\); choose another base"):
        training.session(training.spec(), trainer_class=Lacks)
    with pytest.raises(PermanentError, match=r"does not depend on the adapter.* choose other lora_target_modules"):
        training.session(training.spec(), trainer_class=Detached)


def test_a_pass_without_any_layer_is_no_error(training):
    """A model may drop all layers at random. Guard: `element 0 of tensors does not require grad`."""

    class Drops(StepTrainer):
        calls = 0

        def summed_rows(self, model, examples):
            Drops.calls += 1
            result = super().summed_rows(model, examples)
            return result.detach() if Drops.calls in (2, 5, 6) else result

    result, hooks = training.session(training.spec(max_steps=4), trainer_class=Drops)
    assert result.complete
    assert hooks.steps[2][1]["grad_norm"] == 0.0
