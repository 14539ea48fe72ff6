"""OpenAI's own client against a real server, which really trains: operations, and errors in the client's own classes.

Each operation asserts what it answered. One whose answer is wrong, or that raises, is named.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai

from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import WORDS, write_rows
from benchmarks.tiny_model import make_tiny_llama

STEPS, EPOCHS = 6, 2
PATIENCE_S = 120.0
TINY = {"adapter": "lora", "lora_r": 4, "sequence_len": 160}
Check = tuple[str, Callable[[], bool]]


def _pair(number: int) -> dict[str, Any]:
    """A row of preferences in OpenAI's form."""
    good, bad = " ".join(WORDS[number % 12 :]) + f" {number}", " ".join(WORDS[: number % 12]) + f" no {number}"
    return {
        "input": {"messages": [{"role": "user", "content": f"{WORDS[-1 - number % 12]} {number * number}"}]},
        "preferred_output": [{"role": "assistant", "content": good}],
        "non_preferred_output": [{"role": "assistant", "content": bad}],
    }


class Story:
    """A person who knows OpenAI's client: what they do, in its order, and what they are refused."""

    def __init__(self, client: openai.OpenAI, stranger: openai.OpenAI, folder: Path, model: Path) -> None:
        self._client, self._stranger, self._folder, self._model = client, stranger, folder, str(model)
        self._file: Any = None
        self._job: Any = None
        self._waiting: Any = None

    def operations(self) -> Iterator[Check]:
        """Every operation of the API, one after the other. They build on each other."""
        yield "files.create", self._upload
        yield "files.list", lambda: [file.id for file in self._client.files.list()] == [self._file.id]
        yield "files.retrieve", lambda: self._client.files.retrieve(self._file.id) == self._file
        yield "files.content", self._content
        yield "jobs.create", self._create
        yield "jobs.retrieve", lambda: self._now().model == self._model
        yield "jobs.retrieve until it has succeeded", self._succeeded
        yield "jobs.list, page by page", self._listed
        yield "jobs.list_events, page by page", self._events
        yield "jobs.checkpoints.list", self._checkpoints
        yield "files.content of the adapter", self._adapter
        yield "files.content of the metrics", self._metrics
        yield "jobs.create with preferences", self._preferences
        yield "jobs.pause", lambda: self._jobs.pause(self._waiting.id).status in ("paused", "queued", "running")
        yield "jobs.resume", lambda: self._jobs.resume(self._waiting.id).status in ("queued", "running")
        yield "jobs.cancel", lambda: self._jobs.cancel(self._waiting.id).id == self._waiting.id
        yield "files.delete", lambda: self._client.files.delete(self._file.id).deleted

    def errors(self) -> Iterator[tuple[type[Exception], Callable[[], Any]]]:
        """Requests that are refused, each with the client's class for it."""
        job = {"model": self._model, "training_file": f"file-{'0' * 64}"}
        yield openai.AuthenticationError, self._stranger.files.list
        yield openai.NotFoundError, lambda: self._jobs.retrieve("job-none")
        yield openai.NotFoundError, lambda: self._client.files.retrieve("file-none")
        yield openai.BadRequestError, lambda: self._jobs.create(**job)
        yield openai.BadRequestError, lambda: self._jobs.create(**job, integrations=[{"type": "wandb"}])  # pyright: ignore[reportArgumentType]
        yield openai.BadRequestError, lambda: self._jobs.create(**job, method={"type": "reinforcement"})
        yield openai.BadRequestError, lambda: self._client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        yield openai.ConflictError, lambda: self._jobs.pause(self._job.id)
        yield openai.ConflictError, lambda: self._jobs.resume(self._job.id)
        yield openai.PermissionDeniedError, lambda: self._client.files.delete(f"file-{self._job.id}-adapter")

    @property
    def _jobs(self) -> Any:
        return self._client.fine_tuning.jobs

    def _now(self) -> Any:
        return self._jobs.retrieve(self._job.id)

    def _upload(self) -> bool:
        with write_rows(self._folder / "rows.jsonl", 24).open("rb") as file:
            self._file = self._client.files.create(file=file, purpose="fine-tune")
        return self._file.bytes == (self._folder / "rows.jsonl").stat().st_size

    def _content(self) -> bool:
        return self._client.files.content(self._file.id).read() == (self._folder / "rows.jsonl").read_bytes()

    def _create(self) -> bool:
        settings = {"n_epochs": EPOCHS, "batch_size": 8, "learning_rate_multiplier": 5}
        self._job = self._jobs.create(
            model=self._model,
            training_file=self._file.id,
            suffix="openai",
            seed=7,
            metadata={"team": "maps"},
            method={"type": "supervised", "supervised": {"hyperparameters": settings}},
            extra_body={"trainhop": TINY},
        )
        return self._job.hyperparameters.model_dump() == settings and self._job.metadata == {"team": "maps"}

    def _succeeded(self) -> bool:
        end = time.monotonic() + PATIENCE_S
        while (now := self._now()).status not in ("succeeded", "failed", "cancelled") and time.monotonic() < end:
            time.sleep(0.2)
        return now.status == "succeeded" and now.fine_tuned_model == now.id and (now.trained_tokens or 0) > 0

    def _listed(self) -> bool:
        return [job.id for job in self._jobs.list(limit=1)] == [self._job.id]

    def _events(self) -> bool:
        said = [event.message for event in self._jobs.list_events(self._job.id, limit=2)]
        return said[-1].startswith("Job submitted") and any(each.startswith("Job succeeded") for each in said)

    def _checkpoints(self) -> bool:
        newest = next(iter(self._jobs.checkpoints.list(self._job.id)))
        return newest.step_number == STEPS and newest.metrics.train_loss > 0

    def _adapter(self) -> bool:
        path = self._folder / "adapter.zip"
        self._client.files.content(self._now().result_files[-1]).write_to_file(path)
        return "adapter_model.safetensors" in zipfile.ZipFile(path).namelist()

    def _metrics(self) -> bool:
        return "loss,1," in self._client.files.content(self._now().result_files[0]).text

    def _preferences(self) -> bool:
        rows = b"".join(json.dumps(_pair(number)).encode() + b"\n" for number in range(16))
        file = self._client.files.create(file=("pairs.jsonl", rows), purpose="fine-tune")
        method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 500}}}
        self._waiting = self._jobs.create(
            model=self._model, training_file=file.id, method=method, extra_body={"trainhop": TINY}
        )
        return self._waiting.method.dpo.hyperparameters.beta == 0.2


def figures(folder: Path) -> Iterator[Figure]:
    """Operations whose answer is right, and errors that arrive in the client's own class."""
    with ExitStack() as stack:
        model = make_tiny_llama(folder / "models" / "base")
        settings = {"allowed_folders": json.dumps([str(model.parent)]), "offline": True, "report_every_s": 1}
        server = stack.enter_context(lab(folder / "lab", **settings, local_slots=1))
        url = str(server.client.base_url).rstrip("/").removesuffix("/api/v1") + "/v1"
        client, stranger = (
            stack.enter_context(openai.OpenAI(base_url=url, api_key=key, max_retries=0))
            for key in (_token(server), "wrong")
        )
        story = Story(client, stranger, folder, model)
        done = [(name, _problem(check)) for name, check in story.operations()]
        refused = [(kind.__name__, _wrong(kind, ask)) for kind, ask in story.errors()]
    yield _share("operations of OpenAI's client", done)
    yield _share("errors in the client's own classes", refused)
    classes = len({name for name, _ in refused})
    yield Figure(name="classes of errors", value=classes, bar=">= 5", ok=classes >= 5)


def _token(server: Lab) -> str:
    return (server.data / "admin.token").read_text().strip()


def _share(name: str, found: list[tuple[str, str]]) -> Figure:
    wrong = [f"{what}: {problem}" for what, problem in found if problem]
    value: Any = f"{len(found) - len(wrong)} of {len(found)}"
    return Figure(name=name, value=[value, *wrong] if wrong else value, bar="all", ok=not wrong)


def _problem(check: Callable[[], bool]) -> str:
    try:
        return "" if check() else "another answer than expected"
    except Exception as error:  # noqa: BLE001  what went wrong is the finding
        return f"{type(error).__name__}: {error}"[:300]


def _wrong(kind: type[Exception], ask: Callable[[], Any]) -> str:
    try:
        ask()
    except kind:
        return ""
    except Exception as error:  # noqa: BLE001  another class is the finding
        return f"{type(error).__name__}: {error}"[:300]
    return "was not refused"
