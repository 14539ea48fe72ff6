"""The file of tasks of an evaluation: pinned, and refused if a check in it cannot be used."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.domain.errors import InvalidError
from orchestrator.services.context import Context
from orchestrator.services.data_reading import within_limits
from orchestrator.services.datasets import copied, resolve_dataset
from worker.shared.dataset_files import DatasetError
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.evaluation_spec import MAX_TASKS


def pinned_tasks(
    ctx: Context, member_id: str, asked: DatasetSpec | None, pointer: str, given: Collection[str] = ()
) -> DatasetSpec | None:
    """The file with its bytes pinned, after every check in it was tried. None if there is none.

    `pointer` is the place of its path in the request. `given` are files of a job that the member may clone. Raises
    `InvalidError` with the line of the first fault.
    """
    if asked is None:
        return None
    found = resolve_dataset(ctx, member_id, asked.model_copy(update={"type": RowFormat.TASK}), pointer, given)
    if (found.rows or 0) > MAX_TASKS:
        words = f"The file has {found.rows} tasks. An evaluation may have {MAX_TASKS}."
        raise InvalidError(words, [(pointer, words)])
    with ctx.uow() as tx:
        dataset = tx.datasets.get(found.sha256 or "")
    if dataset is None:
        raise InvalidError("The file of tasks was deleted. Upload it again.", [(pointer, "was deleted")])
    with copied(ctx, dataset) as path:
        try:
            within_limits("worker.shared.tasks:first_fault", path, FileFormat(dataset.file_format), {})
        except DatasetError as error:
            raise InvalidError(f"The tasks cannot be used: {error}.", [(pointer, str(error))]) from error
    return found
