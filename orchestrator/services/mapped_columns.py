"""Gives the columns and turns of a data file the names that its row format has, as the job file says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.plain_errors import nearest
from worker.shared.row_formats import ROLES, SHAREGPT_ROLES, is_known
from worker.shared.row_keys import DatasetError

_LISTS = ("messages", "conversations", "history")
"""Columns that are lists. In a cell of text they are JSON."""
_TEXTS = ("instruction", "output", "text")
_USUAL = {
    "messages": "field_messages",
    "system": "field_system",
    "instruction": "field_instruction",
    "input": "field_input",
    "output": "field_output",
    "text": "field",
}
_NEEDED = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.ALPACA: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
}
_QUESTION = {"instruction": "question", "output": "answer"}
Row = dict[str, Any]


def has_cells(first: tuple[int, Mapping[str, Any]] | None) -> bool:
    """Whether a list of the first row is JSON in a cell of text."""
    return first is not None and any(_is_cell(first[1].get(name)) for name in _LISTS)


class Columns:
    """Reads the names that a dataset gives. `begin` with the first row, and `end` after the last one."""

    def __init__(self, spec: DatasetSpec) -> None:
        self._spec, self.row_format = spec, spec.mapped_format
        self._roles = dict(SHAREGPT_ROLES)
        for role, names in spec.roles.items():
            self._roles |= dict.fromkeys([names] if isinstance(names, str) else names, role)
        self._sources: dict[str, str] = {}
        self._found: set[str] = set()
        self._known: tuple[str, ...] = ()
        self.unread: tuple[str, ...] = ()

    @property
    def renames(self) -> bool:
        """Whether rows are read under other names, or their turns are."""
        return bool(self._spec.mapping or self._sources)

    def begin(self, line: int, first: Mapping[str, Any]) -> None:
        """Look at the first row. Raises `DatasetError` if it lacks a column that its format needs."""
        spec, self._known = self._spec, tuple(map(str, first))
        named = {usual: name for usual, key in _USUAL.items() if (name := getattr(spec, key))}
        if self._has_question(first):
            self.row_format = RowFormat.ALPACA
            named = _QUESTION | named
        if not (spec.mapping or named):
            return
        self._sources = {name: name for name in self._needed(first)} | named
        self.unread = tuple(name for name in named if name in first and name not in self._sources.values())
        for name in self._needed(first):
            self._refuse_without(self._sources[name], line, first)

    def _has_question(self, first: Mapping[str, Any]) -> bool:
        if self.row_format not in (RowFormat.AUTO, RowFormat.ALPACA) or is_known(first):
            return False
        others = {usual for usual in _QUESTION if getattr(self._spec, _USUAL[usual])}
        return all(_QUESTION[usual] in first for usual in _QUESTION.keys() - others) and len(others) < len(_QUESTION)

    def _needed(self, first: Mapping[str, Any]) -> tuple[str, ...]:
        needed = _NEEDED.get(self.row_format, ())
        if needed == ("messages",) and "messages" not in first and "conversations" in first:
            return ("messages",) if self._spec.field_messages else ()
        return needed

    def renamed(self, line: int, record: Mapping[str, Any]) -> Row:
        """The row with the usual names. Raises `DatasetError`."""
        row: Row = {str(name): value for name, value in record.items()}
        if self._sources:
            taken = {usual: row.get(name) for usual, name in self._sources.items() if name in row}
            self._found.update(self._sources[usual] for usual in taken)
            row = {n: v for n, v in row.items() if n not in self._sources and n not in self._sources.values()} | taken
            self._check(line, row)
        for name in _LISTS:
            if _is_cell(row.get(name)):
                row[name] = _parsed(row[name], self._sources.get(name, name), line)
        if self.row_format is RowFormat.MESSAGES and self._spec.mapping:
            self._rename_turns(line, row)
        return row

    def _check(self, line: int, row: Row) -> None:
        for usual in _NEEDED.get(self.row_format, ()):
            name = self._sources.get(usual, usual)
            if usual in self._sources and row.get(usual) is None:
                raise DatasetError(f"column '{name}' is missing", line)
            if usual in _TEXTS and name != usual:
                _refuse_unless_text(row[usual], name, line)

    def _refuse_without(self, name: str, line: int, first: Mapping[str, Any]) -> None:
        if name not in first:
            raise DatasetError(f"there is no column '{name}'{nearest(name, self._known) or self._list()}", line)

    def _list(self) -> str:
        return f"; the columns are {', '.join(name[:40] for name in self._known[:12])}"

    def end(self) -> None:
        """Raise `DatasetError` for a column that is named and that no row has."""
        for usual, name in self._sources.items():
            if getattr(self._spec, _USUAL[usual]) and name not in self._found:
                raise DatasetError(f"no row has a column '{name}'{nearest(name, self._known) or self._list()}")

    def _rename_turns(self, line: int, row: Row) -> None:
        if self._spec.field_messages is None and "messages" not in row and "conversations" in row:
            row["messages"] = row.pop("conversations")
        if not isinstance(row.get("messages"), list):
            return
        turns: list[Any] = row["messages"]
        found: list[Row] = [turn for turn in turns if isinstance(turn, dict)]
        for name in self._spec.message_property_mappings.values():
            if found and not any(name in turn for turn in found):
                raise DatasetError(f"no turn has a '{name}'{nearest(name, map(str, found[0]))}", line)
        if len(found) == len(turns):  # the reader says what is wrong with another list
            row["messages"] = [self._turn(turn, line) for turn in found]

    def _turn(self, turn: Mapping[str, Any], line: int) -> Row:
        names = dict(self._spec.message_property_mappings)
        for usual, other in (("role", "from"), ("content", "value")):
            if usual not in turn and other in turn:
                names.setdefault(usual, other)
        kept = {n: v for n, v in turn.items() if n not in names and n not in names.values()}
        made = kept | {usual: turn[name] for usual, name in names.items() if name in turn}
        role = made.get("role")
        if isinstance(role, str):
            made["role"] = self._roles.get(role, role)
            if made["role"] not in ROLES:
                raise DatasetError(f"unknown role '{role[:40]}'; say under 'roles' which role it is", line)
        return made


def _is_cell(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[")


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        python = "; it is a list as Python prints it, so write it with json.dumps" if "'" in text else ""
        raise DatasetError(f"'{name}' is not valid JSON{python}", line) from None


def _refuse_unless_text(value: object, name: str, line: int) -> None:
    if not isinstance(value, str):
        raise DatasetError(f"'{name}' must be a string, not {type(value).__name__}", line)
    if not value.strip():
        raise DatasetError(f"'{name}' is empty; fill it in or remove the row", line)
