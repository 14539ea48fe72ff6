"""From a request of OpenAI's API to a job file, and from its faults to the keys of the request. Pure functions."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.entrypoints.openai.file_ids import sha256_of
from orchestrator.entrypoints.openai.requests import FineTuningJobCreate, Hyperparameters
from orchestrator.services.notes import MAX_NOTE
from worker.shared import spec_errors
from worker.shared.job_spec import JobSpec

EPOCHS = 2
"""Passes over the file where the request does not say how many, as in a job file of `trainhop init`."""
LEARNING_RATE = float(JobSpec.model_fields["learning_rate"].default)
"""What `learning_rate_multiplier` multiplies."""
_KEYS = {
    "base_model": "model",
    "datasets": "training_file",
    "name": "suffix",
    "seed": "seed",
    "rl": "method.type",
    "num_epochs": "hyperparameters.n_epochs",
    "global_batch_size": "hyperparameters.batch_size",
    "learning_rate": "hyperparameters.learning_rate_multiplier",
    "rl_beta": "hyperparameters.beta",
}
"""Keys of a job file, and the keys of the request that they come from."""


def job_file(asked: FineTuningJobCreate) -> JobSpec:
    """The job file of a request. Raises `InvalidError` and pydantic's `ValidationError` of the job file."""
    keys = _translated(asked)
    for key in asked.trainhop:
        if key in keys or key in ("base_model", "datasets"):
            where = _KEYS[key]
            raise InvalidError(f"trainhop.{key}: give it as {where}.", [(f"/trainhop/{key}", f"is given as {where}")])
    if not asked.trainhop.keys() & {"num_epochs", "max_steps"}:
        keys.setdefault("num_epochs", EPOCHS)
    return JobSpec.model_validate({**asked.trainhop, **keys})


def _translated(asked: FineTuningJobCreate) -> dict[str, Any]:
    settings = _hyperparameters(asked)
    multiplier = settings.learning_rate_multiplier
    given = {
        "base_model": asked.model,
        "datasets": [{"path": f"sha256:{_sha256_of(asked.training_file)}"}],
        "name": asked.suffix,
        "seed": asked.seed,
        "rl": "dpo" if asked.method is not None and asked.method.type == "dpo" else None,
        "num_epochs": settings.n_epochs,
        "global_batch_size": settings.batch_size,
        "learning_rate": None if multiplier is None else LEARNING_RATE * multiplier,
        "rl_beta": getattr(settings, "beta", None),
    }
    return {key: value for key, value in given.items() if value is not None}


def _sha256_of(file_id: str) -> str:
    try:
        return sha256_of(file_id)
    except NotFoundError as error:
        raise InvalidError(str(error), [("/training_file", "is not the id of a file")]) from error


def _hyperparameters(asked: FineTuningJobCreate) -> Hyperparameters:
    """Those of the method, or those of the request, which OpenAI's API has from before there were methods."""
    found = asked.method.hyperparameters if asked.method is not None else None
    if found is not None and asked.hyperparameters is not None:
        raise InvalidError(
            "hyperparameters: they are given in method, too. Keep those of the method.",
            [("/hyperparameters", "are given in method, too")],
        )
    return found or asked.hyperparameters or Hyperparameters()


def note_of(metadata: Mapping[str, str] | None) -> str:
    """The note of a job with this metadata: a line for each pair. Raises `InvalidError` if it is too long."""
    note = "\n".join(f"{key}: {value}" for key, value in (metadata or {}).items())
    if len(note) > MAX_NOTE:
        raise InvalidError(
            f"metadata: it is kept as the note of the job, which has at most {MAX_NOTE} characters. This one has "
            f"{len(note)}.",
            [("/metadata", f"makes more than {MAX_NOTE} characters")],
        )
    return note


def metadata_of(note: str) -> dict[str, str] | None:
    """The metadata of a job with this note. Lines without a key are those of `note`."""
    found: dict[str, str] = {}
    rest: list[str] = []
    for line in note.splitlines():
        key, colon, value = line.partition(": ")
        if colon:
            found[key] = value
        else:
            rest.append(line)
    return found | ({"note": "\n".join(rest)} if rest else {}) or None


@contextmanager
def in_their_words() -> Generator[None]:
    """Name the keys of the request in the errors of a job file."""
    try:
        yield
    except ValidationError as error:
        faults = [(pointer_of(pointer), words) for pointer, words in spec_errors.explain(error)]
        shown = "; ".join(f"{where[1:].replace('/', '.')}: {words}" for where, words in faults[:3])
        raise InvalidError(shown, faults) from error
    except InvalidError as error:
        raise type(error)(str(error), [(pointer_of(pointer), words) for pointer, words in error.problems]) from error


def pointer_of(pointer: str) -> str:
    """The place in the request for a place in the job file. Places of the request stay."""
    key, *rest = pointer.strip("/").split("/")
    if key in _KEYS and key != "seed":
        return "/" + _KEYS[key].replace(".", "/")
    if key in ("", "trainhop", *FineTuningJobCreate.model_fields):
        return pointer
    return "/" + "/".join(("trainhop", key, *rest))
