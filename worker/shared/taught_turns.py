"""Rows as one dataset of a job teaches them: the roles that are trained on, only the last turn, which ends of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from worker.shared.dataset_spec import TaughtTurns
from worker.shared.job_spec import WITH_TURNS_KEYS
from worker.shared.row_formats import SHAREGPT_ROLES
from worker.shared.row_keys import DatasetError
from worker.shared.rows import Message, Row

USUAL = TaughtTurns()


def as_taught(row: Row, asked: TaughtTurns, encoding: int | None) -> Row:
    """The row as a job with this `encoding` trains on it. What a turn says of itself comes before its role.

    Both answers of a row of preferences are taught alike.

    Raises `DatasetError` without a line for a row that cannot be read so.
    """
    if row.rejected is not None:
        row = replace(row, rejected=as_taught(row.rejected, asked, encoding))
    if encoding is None or encoding < WITH_TURNS_KEYS:
        return _as_before(row)
    if asked == USUAL:
        return row
    if not row.messages:
        raise DatasetError(
            "is not a conversation, so roles_to_train, mask_history and train_on_eos do not apply; remove them"
        )
    roles = {SHAREGPT_ROLES.get(role, role) for role in asked.roles_to_train}
    taught = [
        place
        for place, turn in enumerate(row.messages)
        if place >= row.given and (turn.role in roles if turn.train is None else turn.train)
    ]
    chosen = set(taught[-1:] if asked.mask_history else taught)
    turns = tuple(_with(turn, place in chosen) for place, turn in enumerate(row.messages))
    return replace(row, messages=turns, ends=asked.train_on_eos)


def nothing_taught(rows: Sequence[Row]) -> bool:
    """Whether every one of these rows is a conversation none of whose turns is trained on."""
    return bool(rows) and all(row.messages and not row.taught for row in rows)


def _with(turn: Message, train: bool) -> Message:
    return (
        turn
        if (turn.role == "assistant" if turn.train is None else turn.train) is train
        else replace(turn, train=train)
    )


def _as_before(row: Row) -> Row:
    """The row of a job that began before its turns could have more than a role and a text."""
    if row.tools or any(turn.thought or turn.calls for turn in row.messages):
        raise DatasetError(
            "has tools, tool calls or a thought, which this job is too old to read; submit the job again"
        )
    if all(turn.train is None and not turn.name and not turn.call_id for turn in row.messages):
        return row
    return replace(row, messages=tuple(Message(turn.role, turn.content) for turn in row.messages))
