"""HEAD: the small document that names a run's newest checkpoint, and the session that holds the run."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from worker.shared.shared_places.errors import RefusedError
from worker.shared.wire import Bytes, Count, Id, Line, Sha256, Wire

HEAD = "HEAD.json"
"""The document's name."""
CHECKPOINTS = "checkpoints/"
"""Names of checkpoints begin with this."""
PROTOCOL = 1
State = Literal["running", "released", "finished"]


class Stored(Wire):
    """A checkpoint in the place: the file's name and content, and the number of steps it has trained."""

    name: Annotated[str, Field(pattern=r"^checkpoints/[\w.-]{1,120}$")]
    sha256: Sha256
    size: Bytes
    step: Count


class Head(Wire):
    """One content of HEAD.

    `epoch` grows each time a session takes the run over. `writer` is that session, `where` and `since` describe it to
    people; nothing is decided by them. `nonce` is fresh in every HEAD, so that no two contents are equal. `job` is the
    sha256 of the job, whose text is the file `job_name(job)`.
    """

    protocol: Literal[1] = PROTOCOL
    epoch: Count
    writer: Id
    nonce: Id
    checkpoint: Stored | None = None
    parent: Stored | None = None
    job: Sha256
    state: State
    where: Line = ""
    since: Line = ""

    @property
    def step(self) -> int:
        """Steps that are saved."""
        return self.checkpoint.step if self.checkpoint is not None else 0

    def encoded(self) -> bytes:
        """The document."""
        return self.model_dump_json(indent=1).encode()

    def changed(self, **fields: object) -> Head:
        """The next HEAD: these fields changed, and a fresh nonce."""
        return Head.model_validate({**self.model_dump(), "nonce": secrets.token_hex(16), **fields})


def first_head(job: str, writer: str) -> Head:
    """The HEAD of a place that has just been opened: nobody holds the run yet."""
    return Head(epoch=0, writer=writer, nonce=secrets.token_hex(16), job=job, state="released")


def read_head(text: bytes) -> Head:
    """Raises `RefusedError` for anything but a HEAD that this version can read."""
    try:
        return Head.model_validate_json(text)
    except ValidationError:
        raise RefusedError(
            f"{HEAD} in the shared place cannot be read: it was changed by hand, or by a newer version of Trainhop"
        ) from None


def job_name(sha256: str) -> str:
    """The name of the file with the job."""
    return f"job-{sha256}.json"


def checkpoint_name(epoch: int, step: int) -> str:
    """A name that is used once.

    The holder deletes files by name. It may do so late, when another session holds the run. With a name that depended
    on the content alone it could then delete a file that the other session has stored again.
    """
    return f"{CHECKPOINTS}{step:08d}-{epoch}-{secrets.token_hex(6)}.safetensors"
