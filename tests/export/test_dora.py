"""Adapters with DoRA: merged with the bits of PEFT, and refused where a format has no place for the magnitudes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.export.models import make_adapter
from tests.export.conftest import Pairing
from tests.export.test_every_architecture import peft
from worker.export.errors import ExportError
from worker.export.sources import open_sources


@pytest.fixture
def dora(llama, tmp_path) -> Pairing:
    """Its magnitudes are far from the lengths of the rows, so that a merge without them would be noticed."""
    folder = make_adapter(tmp_path / "dora", llama.base, use_dora=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    scaled = {name: value.abs() + 0.5 if "magnitude" in name else value for name, value in tensors.items()}
    save_file(scaled, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return Pairing(llama.base, folder)


def test_a_merge_of_dora_has_the_bits_of_peft(dora: Pairing, tmp_path: Path) -> None:
    """Guards: without the magnitudes in `Merged` each weight differed; without them in the probe the check failed."""
    merged = peft(dora).merge_and_unload().state_dict()
    weights = dora.sources().weights(with_adapter=True, onto="original")
    for name in weights.names():
        found = torch.cat(list(weights.blocks(name)))
        assert torch.equal(found, merged[name].float()), name
    for form in ("merged", "gguf"):
        report = dora.export(tmp_path / form, form, "fp16")
        assert report["check"]["error"] < 5e-3
        assert report["check"]["same"] == 1.0
        assert not any("--enable-lora" in command for command in report["commands"].values())


def test_dora_has_no_gguf_adapter(dora: Pairing, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no place for DoRA's magnitudes; export it as merged or gguf"):
        dora.export(tmp_path / "out", "gguf-adapter")
    assert not (tmp_path / "out").exists()


def test_magnitudes_must_fit_their_module(dora: Pairing) -> None:
    path = dora.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "magnitude" in name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, path)
    with pytest.raises(ExportError, match=r"DoRA's magnitudes of .* are"):
        open_sources(dora.adapter, str(dora.base), lambda _: None)
