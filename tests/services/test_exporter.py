"""The process that exports on the server: what it is given, what it may not see, and how it ends."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.adapters.exporter import ProcessExporter
from orchestrator.domain.exports import ExportFormat, ExportSettings, Onto, WeightType
from orchestrator.ports.exports import ExportRequest, NotExported
from worker.export.run import Request
from worker.shared.process import process_birth

ASKED = ExportRequest(
    adapter=Path("adapter"),
    base="org/base@abc",
    out=Path("out"),
    settings=ExportSettings(format=ExportFormat.GGUF, type=WeightType.Q8_0, onto=Onto.NF4),
    out_name="job-gguf",
    adapter_name="job-adapter",
    spare_bytes=7,
)


def runs(text: str, **more) -> ProcessExporter:
    return ProcessExporter(command=(sys.executable, "-c", text), **more)


def never() -> bool:
    return False


def test_the_request_arrives_and_each_step_is_said(tmp_path):
    steps: list[str] = []
    text = (
        "import json, sys; request = json.load(sys.stdin); print('one', 'x' * 999, file=sys.stderr); "
        "print('two', file=sys.stderr); print('noise'); print(json.dumps(request))"
    )
    answer = runs(text).export(ASKED, steps.append, never)
    wanted = {"form": "gguf", "kind": "q8_0", "base": "org/base@abc", "onto": "nf4", "adapter_name": "job-adapter"}
    wanted |= {"out_name": "job-gguf", "spare_bytes": 7, "adapter": "adapter", "out": "out"}
    assert answer == wanted
    assert answer.keys() <= {each.name for each in fields(Request)}, "the program knows all of it"
    assert [step[:5] for step in steps] == ["one x", "two"]
    assert max(map(len, steps)) == 300


def test_no_credential_of_the_server_reaches_the_process(monkeypatch):
    """Guard: the process reads files of members, and loads models that they name."""
    for name in ("HF_TOKEN", "TRAINHOP_VAULT_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary")
    text = "import json, os, sys; sys.stdin.read(); print(json.dumps(dict(os.environ)))"
    exporter = runs(text, offline=True, endpoint="http://127.0.0.1:9", cache=Path("/cache"))
    seen = exporter.export(ASKED, print, never)
    assert "canary" not in str(seen)
    wanted = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": "/cache"}
    assert wanted.items() <= seen.items()
    assert seen["HF_TOKEN_PATH"] == os.devnull


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit(7)", r"^The export ended without a result \(exit code 7\)\. Nothing was published\.$"),
        ("print('no JSON')", r"without a result \(exit code 0\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"exit code -9"),
        ("import json, sys; print(json.dumps({'error': 'the disk is full'})); sys.exit(1)", r"^The disk is full\.$"),
    ],
)
def test_a_process_without_a_result_is_one_sentence(text, words):
    with pytest.raises(NotExported, match=words):
        runs(text).export(ASKED, print, never)


def test_a_cancelled_export_ends_its_process():
    begun = threading.Event()
    pids: list[int] = []

    def heard(step: str) -> None:
        pids.append(int(step))
        begun.set()

    text = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(3600)"
    with pytest.raises(NotExported, match="cancelled"):
        runs(text).export(ASKED, heard, begun.is_set)
    assert process_birth(pids[0]) is None


def test_an_export_that_takes_too_long_is_ended():
    with pytest.raises(NotExported, match=r"longer than 0\.0 hours"):
        runs("import time; time.sleep(3600)", longest_s=0.0).export(ASKED, print, never)


def test_what_is_missing_is_named():
    assert ProcessExporter().missing() == ""
    assert (
        "because no_such_module is not installed there" in ProcessExporter(needs=("json", "no_such_module")).missing()
    )
