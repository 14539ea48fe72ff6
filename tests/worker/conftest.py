"""A tiny model, a small chat dataset, and hooks that record: one process, so that the imports are paid once."""

import json
from pathlib import Path

import pytest

from tests.helpers.training_runs import ROWS, TrainingRuns


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    from benchmarks.tiny_model import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is {i} squared?"},
                {"role": "assistant", "content": f"it is {i * i}. " * (1 + i % 3)},
            ]
        }
        for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def training(base, dataset, tmp_path):
    return TrainingRuns(base=base, dataset=dataset, rows=ROWS, folder=Path(tmp_path))


@pytest.fixture
def desk(tmp_path):
    """Outbox and saver of a session, and a server that answers."""
    from tests.helpers.session_desk import PATIENCE_S, Desk, Server

    made = Desk(Server(tmp_path), tmp_path)
    yield made
    made.saver.stop()
    made.server.mood = lambda: None
    made.outbox.close(PATIENCE_S)
