"""What a job may not name, and the words it is refused with."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.providers.registry import Registry
from orchestrator.testing.environments import driver_env


def catalog(*allowed: Path, trusted: frozenset[str] = frozenset()) -> FolderAndHubCatalog:
    return FolderAndHubCatalog(allowed, trusted, offline=True)


def a_model(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file({"w": np.zeros((30, 10), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secrets", "~/.ssh/id_rsa", "a/b/c", "C:\\data", "./here", "x/../../etc", "file:///etc"]
)
def test_the_servers_disk_is_closed(name: str, tmp_path: Path) -> None:
    """Seen failing without `_permitted`. Uploads, hub ids and allowed folders are the only ways in."""
    for look in (catalog(tmp_path).model, lambda n: catalog(tmp_path).dataset(n, "train")):
        with pytest.raises(InvalidError, match="TRAINHOP_ALLOWED_FOLDERS"):
            look(name)


def test_a_link_out_of_an_allowed_folder_is_closed_too(tmp_path: Path) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret.jsonl"
    allowed.mkdir()
    secret.write_text("{}")
    (allowed / "link.jsonl").symlink_to(secret)
    with pytest.raises(InvalidError, match="not in an allowed folder"):
        catalog(allowed).dataset(str(allowed / "link.jsonl"), "train")


def test_an_allowed_model_is_found_and_its_parameters_counted(tmp_path: Path) -> None:
    model = catalog(tmp_path).model(str(a_model(tmp_path / "m")))
    assert model.parameters == 300


def test_weights_that_are_never_loaded_are_not_counted(tmp_path: Path) -> None:
    """Guard: the authors' own copy beside the shards doubled the parameters, and with them the memory."""
    folder = a_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    save_file({"w": np.zeros((30, 10), np.float32)}, folder / "consolidated.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert catalog(tmp_path).model(str(folder)).parameters == 300


def test_a_model_with_code_of_its_own_needs_the_operators_word(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", auto_map={"AutoModel": "evil.py"}, model_type="its_own")
    with pytest.raises(InvalidError, match="TRAINHOP_TRUSTED_MODELS"):
        catalog(tmp_path).model(str(folder))
    assert catalog(tmp_path, trusted=frozenset({str(folder)})).model(str(folder))


def test_a_model_that_the_library_knows_does_not_need_its_code(tmp_path: Path) -> None:
    """Guard: `auto_map` alone was refused, though transformers loads such models with its own code."""
    folder = a_model(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3"}, model_type="phi3")
    assert catalog(tmp_path).model(str(folder)).kind == "phi3"


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"no config\.json"):
        catalog(tmp_path).model(str(tmp_path))


UNUSABLE = ["~nobody-of-this-name/x", "/tmp/\0x", f"/{'a' * 300}", "{folder}/loop", "{folder}/" + "a" * 300]


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_path_that_no_computer_can_use_is_refused(name: str, tmp_path: Path) -> None:
    """Seen failing without `expanded`, and without the errors of `_permitted`: each was an internal error."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for look in (catalog(tmp_path).model, lambda n: catalog(tmp_path).dataset(n, "train")):
        with pytest.raises(InvalidError):
            look(name.format(folder=tmp_path))


def header(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


DAMAGED = [
    ("config.json", b"{"),
    ("config.json", b"\xff\xfe"),
    ("config.json", b"[" * 100_000),
    ("config.json", b"7"),
    ("config.json", b'{"text_config": [1]}'),
    ("model.safetensors", b"abc"),
    ("model.safetensors", header(b'{"w": 1}')),
    ("model.safetensors", header(b'{"w": {"shape": [-1, "x"]}}')),
    ("model.safetensors", header(b'{"w": {"sh', 1 << 50)),
    ("model.safetensors", header(b"[7]")),
]


@pytest.mark.parametrize(("file", "content"), DAMAGED)
def test_a_damaged_model_is_named_and_takes_no_memory(file: str, content: bytes, tmp_path: Path) -> None:
    """Seen failing without `_readable`, and without the limit of a header: a size of 2^50 is a `MemoryError`."""
    folder = a_model(tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(InvalidError, match=rf"{file} is damaged"):
        catalog(tmp_path).model(str(folder))


def test_a_dataset_of_a_hub_that_cannot_be_reached_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="upload the file"):
        catalog(tmp_path).dataset("org/data@main", "train")


def test_a_broken_driver_is_listed_with_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    broken = EntryPoint(name="broken", value="no_such_package.driver:Driver", group="trainhop.providers")
    registry = Registry.installed(lambda name, driver: driver_env(tmp_path / name), [broken])
    (entry,) = registry.entries()
    assert "no_such_package" in entry.problem
    with pytest.raises(ProviderUnavailable, match="broken is not available"):
        registry.get("broken")
    with pytest.raises(ProviderUnavailable, match="no provider kaggle"):
        registry.get("kaggle")
