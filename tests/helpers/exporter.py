"""An exporter that a test holds and lets go, and adapters as machines send them."""

from __future__ import annotations

import functools
import io
import json
import threading
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.ports.exports import ExportRequest, NotExported
from tests.helpers.waiting import PATIENCE_S

WEIGHTS = "adapter_model.safetensors"
FILES = {"model-f16.gguf": b"weights" * 9, "Modelfile": b"FROM ./model-f16.gguf"}
"""What a machine makes."""
REPORT: dict[str, Any] = {
    "format": "gguf",
    "type": "fp16",
    "path": "out",
    "architecture": "Llama",
    "base": "tiny",
    "onto": "original",
    "trained_on": "original",
    "check": {"error": 0.001, "same": 1.0, "tokens": 128, "adapter_effect": 0.2},
    "notes": ["the <b> is escaped"],
    "commands": {"ollama": "ollama create out -f out/Modelfile"},
}
Packed = tuple[bytes, str]
"""An archive, and the sha256 of the weights in it."""


class HeldExporter:
    """Implements `ports.Exporter`: it writes one file. An export begins, and waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.may_end = threading.Event()
        """Cleared, an export that is cancelled takes its time to end."""
        self.may_end.set()
        self.requests: list[ExportRequest] = []
        self.error: Exception | None = None
        self.absent = ""

    def missing(self) -> str:
        return self.absent

    def export(
        self, request: ExportRequest, say: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        assert (request.adapter / WEIGHTS).is_file()
        self.requests.append(request)
        say(f"writing {request.out}")
        self.begun.release()
        while not self.go_on.acquire(timeout=0.01):
            if is_cancelled():
                assert self.may_end.wait(PATIENCE_S)
                raise NotExported("The export was cancelled.")
        if self.error is not None:
            raise self.error
        return _write(request)


def _write(request: ExportRequest) -> dict[str, Any]:
    request.out.mkdir(parents=True)
    content = b"weights " * 1000
    (request.out / "adapter.gguf").write_bytes(content)
    file = {"name": "adapter.gguf", "bytes": len(content), "sha256": sha256(content).hexdigest()}
    report = {
        "format": request.settings.format,
        "architecture": "Llama",
        "base": request.base,
        "type": "fp32" if request.settings.type is None else request.settings.type,
        "path": request.out_name,
        "onto": request.settings.onto,
        "nf4_difference": None,
        "check": {"error": 0.001, "same": 1.0, "tokens": 128, "adapter_effect": 0.2},
        "files": [file],
        "notes": ["the <b> is escaped"],
        "commands": {"llama.cpp": f"llama-cli -m base.gguf --lora {request.out_name}/adapter.gguf"},
    }
    (request.out / "trainhop-export.json").write_text(json.dumps(report))
    return report


def packed(folder: Path) -> Packed:
    """An adapter's folder."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return archive.getvalue(), sha256((folder / WEIGHTS).read_bytes()).hexdigest()


@functools.cache  # an archive says when its files were added
def small_adapter() -> Packed:
    """One with weights that nobody reads."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(WEIGHTS, b"weights")
    return archive.getvalue(), sha256(b"weights").hexdigest()


def described(key: str, name: str, content: bytes) -> dict[str, Any]:
    """A file of an export as a machine describes it."""
    return {"name": name, "key": key, "sha256": sha256(content).hexdigest(), "size": len(content)}


def finish_export(machine: Any) -> Any:
    """A machine that speaks HTTP (`tests.http.http_client.Machine`) uploads an export and ends its job."""
    wanted = {"fence": machine.fence, "kind": "export", "count": len(FILES)}
    grants = machine.say("grants", wanted).json()
    for grant, content in zip(grants, FILES.values(), strict=True):
        assert machine.put(grant, content).is_success
    files = [described(grant["key"], *file) for grant, file in zip(grants, FILES.items(), strict=True)]
    return machine.say("finish", machine.said("finish", step=1, export={"files": files, "report": REPORT}))
