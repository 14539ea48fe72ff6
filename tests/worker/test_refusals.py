"""What must not run fails loudly, in a sentence, before or instead of training."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from worker.shared import causes, checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.training.interface import Decision, PermanentError, UnfitMachineError

SPEC = {"optimizer": "adamw_8bit", "lora_r": 128, "max_steps": 4}


@pytest.fixture
def half(training):
    """A checkpoint after two steps: its path, tensors and manifest."""
    _, hooks = training.session(training.spec(**SPEC), decisions={2: Decision.SAVE_AND_STOP})
    tensors, manifest = dict(hooks.snapshots[-1].tensors), hooks.snapshots[-1].manifest
    path = training.folder / "half.safetensors"
    checkpoint_file.write(path, tensors, manifest)
    return path, tensors, manifest


def resume(training, path, tensors, manifest, **changes):
    checkpoint_file.write(path, tensors, manifest)
    return training.session(training.spec(**(SPEC | changes)), resume=path)


def test_a_changed_checkpoint_is_never_continued(training, half):
    """Never a silently fresh adapter: fails without `_check_names`, without the type check of `_copy`, without the
    probe."""
    path, tensors, manifest = half
    adapter = next(name for name in tensors if name.startswith("adapter.") and "lora_B" in name)
    codes = next(name for name in tensors if name.endswith(".state1") and tensors[name].dtype == np.uint8)
    for name in (adapter, codes, codes.replace("state1", "step"), "rng.torch", "rng.python"):
        with pytest.raises(CheckpointError, match="lacks"):
            resume(training, path, {n: a for n, a in tensors.items() if n != name}, manifest)
    with pytest.raises(CheckpointError, match=r"1 tensors too many, the first being adapter.more"):
        resume(training, path, tensors | {"adapter.more": tensors[adapter]}, manifest)
    for wrong in (tensors[adapter].astype(np.float16), tensors[adapter].T):
        with pytest.raises(CheckpointError, match=f"tensor {adapter} is"):
            resume(training, path, tensors | {adapter: wrong}, manifest)
    with pytest.raises(CheckpointError, match="differs: probe loss"):
        resume(training, path, tensors | {adapter: np.zeros_like(tensors[adapter])}, manifest)


def test_another_run_is_refused(training, half):
    path, tensors, manifest = half
    for changes, words in [
        ({"learning_rate": 1e-3}, r"learning_rate: 0.001 \(job\) != 0.01 \(checkpoint\)"),
        ({"lora_dropout": 0.2}, "lora_dropout"),
        ({"max_steps": 8}, "max_steps"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            resume(training, path, tensors, manifest, **changes)
    with pytest.raises(CheckpointError, match=r"data position \(0, 3\) does not match its step, expected \(0, 8\)"):
        resume(training, path, tensors, manifest.model_copy(update={"index": 3}))
    with pytest.raises(CheckpointError, match="belongs to job other, not to job"):
        resume(training, path, tensors, manifest.model_copy(update={"job": "other"}))


def test_another_base_model_is_refused(training, half, tmp_path):
    """The name alone does not tell: the weights under it may have changed."""
    from benchmarks.tiny_model import make_tiny_llama

    path, tensors, manifest = half
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    training.base = make_tiny_llama(tmp_path / "other", seed=1)
    manifest = manifest.model_copy(
        update={"recipe": manifest.recipe.model_copy(update={"base_model": str(training.base)})}
    )
    with pytest.raises(CheckpointError, match="base_sha256"):
        resume(training, path, tensors, manifest)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"lora_target_modules": ("nope",)}, PermanentError, "match nothing in .*: down_proj, gate_proj, k_proj"),
        ({"base_model": "./no/such"}, PermanentError, "base model ./no/such was not found as a folder or on"),
        ({"backend": "unsloth"}, UnfitMachineError, "backend unsloth cannot run here: this machine has no GPU"),
    ],
)
def test_bad_jobs(training, changes, error, words):
    with pytest.raises(error, match=words):
        training.session(training.spec(**changes))


class _NoSuchRepository(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def fetched_from(port, tmp_path):
    """What a machine whose hub answers at `port` says of a model that it does not have."""
    code = """
from worker.training.base_model import resolve
try:
    resolve("org/model")
except Exception as error:
    print(type(error).__name__, error)
"""
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | there, capture_output=True, text=True, check=True
    )
    return ran.stdout


def test_a_hub_that_does_not_have_the_model_and_one_that_is_out_of_reach(tmp_path):
    """Guard: with one refusal for both, a job that went on while the hub was away had failed for good."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NoSuchRepository)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = fetched_from(server.server_port, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert said.startswith("PermanentError base model org/model was not found as a folder or on Hugging Face (404")
    said = fetched_from(server.server_port, tmp_path)
    assert said.startswith(
        "UnfitMachineError base model org/model is not on this machine and could not be downloaded from Hugging Face"
    )


def test_custom_code_is_refused(training, tmp_path):
    training.base = shutil.copytree(training.base, tmp_path / "custom")
    own = {"auto_map": {"AutoModelForCausalLM": "x.Y"}, "model_type": "its_own"}
    config = json.loads((training.base / "config.json").read_text()) | own
    (training.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PermanentError, match="needs its own code, which is not allowed here"):
        training.session(training.spec())
    (training.base / "model.safetensors").unlink()
    (training.base / "config.json").write_text("{}")
    with pytest.raises(PermanentError, match=r"has no .safetensors weights"):
        training.session(training.spec())


def test_a_model_too_large_for_the_machine(training, tmp_path):
    """A tensor of 4 TiB, of which the disk holds nothing."""
    training.base = shutil.copytree(training.base, tmp_path / "large")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    weights = training.base / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, 8 + len(header) + 2**42)
    with pytest.raises(UnfitMachineError, match=r"needs about .* but the free memory of this machine is") as refused:
        training.session(training.spec())
    assert refused.value.cause == causes.MEMORY


def test_running_out_of_memory(training):
    import torch

    from worker.training.trainer import StepTrainer

    class Full(StepTrainer):
        def summed(self, model, batch):
            return torch.empty(2**60)

    with pytest.raises(UnfitMachineError, match=r"ran out of memory .* smaller micro_batch_size"):
        training.session(training.spec(), trainer_class=Full)


def test_a_loss_that_is_no_number(training):
    """Fails without the check in `on_step_end`: the run would go on, and save, with weights that are lost."""
    from worker.training.trainer import StepTrainer

    class Lost(StepTrainer):
        def summed(self, model, batch):
            return super().summed(model, batch) * float("nan")

    with pytest.raises(PermanentError, match="loss became nan at step 1; lower learning_rate or check the dataset"):
        training.session(training.spec(), trainer_class=Lost)


def test_a_wrong_dataset(training, tmp_path):
    with pytest.raises(PermanentError, match="have 23 rows, but the job expects 22"):
        training.session(training.spec(datasets=({"path": "chat", "rows": 22, "sha256": "0" * 64},)))
    training.dataset = tmp_path / "bad"
    training.dataset.write_text('{"messages": []}\n')
    with pytest.raises(PermanentError, match="dataset chat: line 1: has no assistant turn"):
        training.session(training.spec())


def test_rows_without_trained_tokens_do_no_harm(training):
    """Fails when the loss divides by a token count of zero."""
    training.dataset = training.folder / "some.jsonl"
    training.dataset.write_text(
        '{"prompt": "a long question", "completion": "a"}\n' * 5 + '{"prompt": "a", "completion": "b"}\n'
    )
    training.rows = 6
    _, hooks = training.session(training.spec(sequence_len=8, max_steps=6, global_batch_size=1, micro_batch_size=1))
    assert [values["loss"] for _, values in hooks.steps].count(0.0) == 5


def test_a_job_with_nothing_to_learn(training):
    """Guard: without `check_rows` it took all its steps, learnt nothing and was called a success."""
    with pytest.raises(PermanentError, match="no row has a trained token within its first 8 tokens; set a larger"):
        training.session(training.spec(sequence_len=8, max_steps=2))


def test_a_row_that_the_template_refuses_is_named_before_the_first_step(training, tmp_path):
    """Guard: without the rendering in `check_rows` the job failed at whichever step first came to the row."""
    from benchmarks.tiny_model import byte_tokenizer

    training.base = shutil.copytree(training.base, tmp_path / "strict")
    tokenizer = byte_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(training.base)
    rows = training.dataset.read_text().splitlines()
    rows[7] = json.dumps({"system": "be kind", **json.loads(rows[7])})
    training.dataset = tmp_path / "chat.jsonl"
    training.dataset.write_text("\n".join(rows))
    with pytest.raises(PermanentError, match="row 8: the chat template refuses a row of the dataset: no system here"):
        training.session(training.spec(max_steps=1, global_batch_size=1, micro_batch_size=1))


def test_every_trainable_parameter_is_fp32(training, monkeypatch):
    """The T4's loss scaler needs it, and no CPU test would notice. Fails without the cast in `build_trainer`."""
    import torch

    from worker.training.trainer import StepTrainer

    seen = []

    class Watched(StepTrainer):
        def train(self, *given, **more):
            assert self.model is not None
            seen.extend(p.dtype for p in self.model.parameters() if p.requires_grad)
            return super().train(*given, **more)

    training.session(training.spec(adapter="qlora", max_steps=1), trainer_class=Watched)
    assert set(seen) == {torch.float32}


def test_the_export_is_a_peft_folder(training):
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = training.run(training.spec(max_steps=2))
    folder = training.folder / "unpacked"
    with zipfile.ZipFile(run.trained.adapter_zip) as packed:
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
            packed.namelist()
        )
        packed.extractall(folder)
    assert checkpoint_file.sha256_file(folder / "adapter_model.safetensors") == run.trained.adapter_sha256
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(training.base), folder)
    for name, value in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(value, torch.from_numpy(run.tensors[f"adapter.{name}"].copy()))
    assert AutoPeftModelForCausalLM.from_pretrained(folder) is not None
    assert AutoTokenizer.from_pretrained(folder).chat_template
