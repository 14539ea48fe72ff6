"""The checkpoint file: exact, whole or absent, and refused whenever anything about it is off."""

import hashlib
import json
import random
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file

from worker.shared.checkpoint_file import CheckpointError, check_recipe, load, read_manifest, sha256_file, write
from worker.shared.files import UNFINISHED
from worker.shared.manifest import Hardware, Manifest, Recipe
from worker.shared.schedules import ScheduleSettings

RECIPE = Recipe(
    base_model="org/model@abc",
    adapter="qlora",
    lora_r=16,
    lora_alpha=32.0,
    lora_dropout=0.1,
    lora_target_modules=("q_proj", "v_proj"),
    sequence_len=512,
    global_batch_size=8,
    max_steps=100,
    learning_rate=2e-4,
    lr_scheduler="linear",
    warmup_ratio=0.03,
    optimizer="adamw_8bit",
    max_grad_norm=1.0,
    weight_decay=0.01,
    lora_layers_to_transform=(0, 1),
    lora_target_parameters=("mlp.experts.down_proj",),
    peft_trainable_token_indices=(5, 6),
    tokens=("<a>",),
    added_tokens_overrides={"7": "<b>"},
    neftune_noise_alpha=5.0,
    seed=42,
    train_on_inputs=False,
    val_set_size=0.1,
    dataset_sha256=("a" * 64,),
    train_rows=90,
    encoding=2,
    numerics=2,
    val_split=2,
    untrained_rows=1,
    dataset_repeats=(2.0, 0.5),
    roles_to_train=("user assistant",),
    mask_history=(True,),
    train_on_eos=("last",),
    chat_template_sha256="f" * 64,
    lora_model_sha256="9" * 64,
    base_sha256="b" * 64,
    tokenizer_sha256="c" * 64,
    parameters_sha256="d" * 64,
    trainable_dtype="float32",
    rows_sha256="e" * 64,
)
MANIFEST = Manifest(
    job="j",
    fence=1,
    step=5,
    recipe=RECIPE,
    epoch=0,
    index=40,
    samples_seen=40,
    wall_seconds=1.5,
    backend="hf",
    precision="fp32",
    micro_batch_size=2,
    hardware=Hardware(),
    versions={"torch": "2"},
    state={"x": [1, 0.1]},
)
TENSORS = {
    "b.codes": np.arange(7, dtype=np.uint8),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(3, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path, TENSORS, MANIFEST)
    return path


def test_round_trip(tmp_path, file):
    path = tmp_path / "again.safetensors"
    digest, size = write(path, dict(reversed(TENSORS.items())), MANIFEST)
    assert path.read_bytes() == file.read_bytes()
    assert (digest, size) == (sha256_file(path), path.stat().st_size)
    tensors, manifest = load(path, digest)
    assert manifest == MANIFEST
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    assert list(tmp_path.glob(UNFINISHED)) == []


def test_it_is_a_safetensors_file(file):
    for name, array in load_file(file).items():
        np.testing.assert_array_equal(array, TENSORS[name])


def test_the_manifest_is_read_from_the_head_alone(file):
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert read_manifest(file) == read_manifest(data[:end]) == MANIFEST
    with pytest.raises(CheckpointError, match="cut off inside its header"):
        read_manifest(data[: end - 1])
    with pytest.raises(CheckpointError, match="cut off before its header"):
        read_manifest(b"1234")


def test_every_truncation_is_refused(file):
    """Fails without the length checks in `_header` and `_tensors`."""
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load(file)
    file.write_bytes(data + b"x")
    with pytest.raises(CheckpointError, match="1 bytes follow its last tensor"):
        load(file)


def test_every_flipped_byte_is_refused(file):
    """Fails without the comparison of sha256."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=f"has sha256 [0-9a-f]+, expected {digest}; download it again"):
            load(file, digest)


def _file(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00" * 8, "not a valid header size"),
        (b"\xff" * 16, "not a valid header size"),
        (_file(b"nonsense"), "header is not JSON"),
        (_file(b"[" * 50_000), "header is not JSON"),
        (_file([1]), "not a JSON object"),
        (_file({}), "has no manifest"),
        (_file({"\ud800": 1}), "header is not JSON"),
        (_file({"__metadata__": {"trainhop": '{"job": "\\ud800"}'}}), "manifest is not JSON"),
        (_file(b'{"a": 1, "a": 1}'), "names a twice"),
        (_file(b'{"__metadata__": {"a": 1, "a": 1}}'), "a key appears twice"),
        (_file({"__metadata__": {"format": "pt"}}), "has no manifest"),
        (_file({"__metadata__": {"trainhop": "{"}}), "manifest is not JSON"),
        (_file({"__metadata__": {"trainhop": "{}"}}), "manifest is not valid at job"),
        (_file({"__metadata__": {"trainhop": '{"protocol": 99}'}}), "has protocol 99, this program 1; update"),
    ],
)
def test_what_is_no_checkpoint_is_called_so(data, words):
    with pytest.raises(CheckpointError, match=words):
        read_manifest(data)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"shape": [1]},
        7,
    ],
)
def test_a_lying_header_is_refused(tmp_path, entry):
    path = tmp_path / "c"
    path.write_bytes(_file({"__metadata__": {"trainhop": MANIFEST.model_dump_json()}, "t": entry}) + b"\0" * 4)
    with pytest.raises(CheckpointError, match="tensor t"):
        load(path)


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands for a disk that is full. Fails when the partial file is not removed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "c", TENSORS, MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_mismatch_shows_both_values():
    other = RECIPE.model_copy(update={"learning_rate": 1e-3, "lora_r": 8, "base_sha256": None})
    with pytest.raises(CheckpointError) as caught:
        check_recipe(RECIPE, other)
    assert "lora_r: 16 (job) != 8 (checkpoint)" in str(caught.value)
    assert "learning_rate: 0.0002 (job) != 0.001 (checkpoint)" in str(caught.value)
    assert "base_sha256: " in str(caught.value)


def test_ten_thousand_mutated_recipes_are_refused():
    """Fails when any field is left out of the comparison. What the server does not know yet does not count."""
    rng = random.Random(0)
    check_recipe(RECIPE, RECIPE)
    hashes = ("base_sha256", "tokenizer_sha256", "parameters_sha256", "trainable_dtype", "rows_sha256")
    hashes += ("untrained_rows",)
    check_recipe(RECIPE.model_copy(update=dict.fromkeys(hashes)), RECIPE)
    names = list(Recipe.model_fields)
    for number in range(10_000):
        name = names[number % len(names)]
        with pytest.raises(CheckpointError, match=f"{name}: "):
            check_recipe(RECIPE, RECIPE.model_copy(update={name: _mutated(getattr(RECIPE, name), rng)}))


def _mutated(value, rng):
    match value:
        case bool():
            return not value
        case int():
            return value + rng.choice([-1, 1]) * rng.randint(1, 10**6)
        case float():
            return value * (1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-9, 3))
        case str():
            place = rng.randrange(len(value))
            return value[:place] + chr(rng.randint(0x100, 0x2FF)) + value[place + 1 :]
        case ScheduleSettings():
            return value.model_copy(update={"power": rng.uniform(0.1, 9)})
        case dict():
            return value | {"rl_beta": rng.random()}
        case _:
            return (*value, f"x{rng.random()}") if rng.random() < 0.5 else value[1:]
