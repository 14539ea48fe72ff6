"""Exports: all records of one kind as a file, JSON Lines or CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import TypeAdapter

from orchestrator.entrypoints.api.csv_cells import as_csv
from orchestrator.entrypoints.api.responses import Time

Format = Literal["jsonl", "csv"]
FormatQuery = Annotated[Format, Query(alias="format")]
AS_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}, "text/csv": {}}}
}
_TIME: TypeAdapter[Any] = TypeAdapter(Time)


def export_file(records: Iterable[Any], kind: Any, form: Format, *, name: str = "") -> Response:
    """The records, dataclasses of this `kind` with a time `at`, in their order. A browser saves them as `name`."""
    lines = [
        asdict(record) | {"at": _TIME.dump_python(_TIME.validate_python(record.at), mode="json")} for record in records
    ]
    headers = {"Content-Disposition": f'attachment; filename="{name}.{form}"'} if name else None
    if form == "csv":
        text = as_csv([each.name for each in fields(kind)], [list(line.values()) for line in lines])
        return Response(text, media_type="text/csv", headers=headers)
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    return Response(text, media_type="application/x-ndjson", headers=headers)
