"""The files that people have: other names of columns, JSON in cells, packed, UTF-16, other separators, shards."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import DatasetFile
from orchestrator.services import clones, dataset_preparing, datasets, jobs
from orchestrator.services.dataset_preparing import Most, Source, prepared
from orchestrator.services.job_pinning import for_machines
from tests.helpers.world import FakeCatalog, World
from worker.shared.dataset_files import DatasetError, Message, Row, inspect, read_rows
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CHAT = Row(messages=(Message("user", "q"), Message("assistant", "a")))
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TEXTS = json.dumps({"text": "ä"}, ensure_ascii=False) + "\n" + json.dumps({"text": "b"}) + "\n"


@pytest.fixture
def rows_of(tmp_path: Path):
    """The rows of files by name, as a machine reads them, and which file that is. A process a case takes seconds."""

    def at_once(_function: str, _path: Path, container: FileFormat, how: dict[str, Any], **_: int) -> dict[str, Any]:
        return dataset_preparing.made_in({"container": container} | how)

    def read(files: dict[str, bytes], row_format: RowFormat = RowFormat.AUTO, **mapping: Any):
        sources = []
        for name, content in files.items():
            path = tmp_path / f"upload-{name}"  # an upload has no ending
            path.write_bytes(content)
            sources.append(Source(path=path, name=name))
        named = DatasetSpec(path="x", type=row_format, **mapping).mapping
        with prepared(sources, datasets.file_format(next(iter(files))), row_format, named, apart=at_once) as ready:
            info = inspect(ready.path, ready.row_format, ready.container)
            return ready, info, list(read_rows(ready.path, info.type, ready.container))

    return read


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


MAPPED = [
    ({"turns": TURNS}, {"field_messages": "turns"}, CHAT),
    ({"conversations": FROM}, {"field_messages": "conversations"}, CHAT),
    (
        {"m": [{"who": "kim", "says": "q"}, {"who": "bot", "says": "a"}], "messages": "other"},
        {
            "field_messages": "m",
            "message_property_mappings": {"role": "who", "content": "says"},
            "roles": {"user": ["kim"], "assistant": "bot"},
        },
        CHAT,
    ),
    (
        {"messages": TURNS, "rule": "s"},
        {"field_system": "rule"},
        Row((Message("system", "s"), *CHAT.messages)),
    ),
    ({"frage": "q", "antwort": "a"}, {"field_instruction": "frage", "field_output": "antwort"}, CHAT),
    (
        {"output": "q", "instruction": "a", "x": "i"},
        {"field_instruction": "output", "field_output": "instruction", "field_input": "x"},
        Row((Message("user", "q\n\ni"), Message("assistant", "a"))),
    ),
    ({"body": "t", "text": "another"}, {"field": "body"}, Row(text="t")),
    ({"question": "q", "answer": "a"}, {}, CHAT),
    ({"question": "q", "reply": "a"}, {"field_output": "reply"}, CHAT),
]


@pytest.mark.parametrize(("record", "mapping", "row"), MAPPED)
def test_columns_are_read_under_the_names_that_they_have(rows_of, record, mapping, row):
    """Guard: without `renamed` the file was refused as an unknown format, or another column was read."""
    ready, info, rows = rows_of({"rows.jsonl": lines(record, record)}, **mapping)
    assert rows == [row, row]
    assert ready.name == "rows.jsonl"
    assert not DatasetSpec(path="x", type=info.type).mapping


def test_columns_that_others_are_named_in_place_of_are_told(rows_of):
    ready, _, _ = rows_of({"rows.jsonl": lines({"body": "t", "text": "another"})}, field="body")
    assert ready.unread == ("text",)


@pytest.mark.parametrize(
    ("rows", "mapping", "words"),
    [
        ([{"turns": TURNS}], {"field_messages": "turn"}, "line 1: there is no column 'turn'; did you mean 'turns'?"),
        ([{"a": "b"}], {"field": "zzz"}, "line 1: there is no column 'zzz'; the columns are a"),
        ([{"turns": TURNS}, {"x": 1}], {"field_messages": "turns"}, "line 2: column 'turns' is missing"),
        (
            [{"messages": TURNS}],
            {"field_system": "mesages"},
            "no row has a column 'mesages'; did you mean 'messages'?",
        ),
        (
            [{"messages": FROM}],
            {"message_property_mappings": {"content": "valeu"}},
            "line 1: no turn has a 'valeu'; did you mean 'value'?",
        ),
        (
            [{"messages": [{"role": "kim", "content": "q"}]}],
            {"field_messages": "messages"},
            "line 1: unknown role 'kim'; say under 'roles' which role it is",
        ),
        ([{"q": "x", "a": ["b"]}], {"field_instruction": "q", "field_output": "a"}, "'a' must be a string, not list"),
        ([{"q": "x", "a": " "}], {"field_instruction": "q", "field_output": "a"}, "line 1: 'a' is empty"),
        ([{"question": "q"}], {}, "line 1: unknown row format with keys ['question']"),
        ([{"body": "t", "label": 0}], {"field": "body"}, "line 1: has label 0, but every answer is taught"),
    ],
)
def test_what_the_names_do_not_fit_is_said_in_words(rows_of, rows, mapping, words):
    """Guards: without `_refuse_without`, `end` and the look at a row's turns the last sentence was about a column that
    the file's author had never named."""
    with pytest.raises(DatasetError) as caught:
        rows_of({"rows.jsonl": lines(*rows)}, **mapping)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"field_messages": "m", "field_output": "o"}, "belong to different row formats"),
        ({"type": "text", "field_messages": "m"}, "field_messages belongs to rows of type messages, not text"),
        ({"type": "task", "field_system": "s"}, "field_system belongs to conversations"),
        ({"field": "t", "field_system": "s"}, "field_system belongs to conversations"),
        ({"roles": {"user": ["x"] * 17}}, "at most 16"),
        ({"field": "x" * 201}, "at most 200"),
    ],
)
def test_names_of_two_formats_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        DatasetSpec(path="x", **given)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(("column", "turns"), [("messages", TURNS), ("conversations", FROM)])
def test_json_in_a_cell_is_read(rows_of, tmp_path, kind, column, turns):
    cell = json.dumps(turns)
    if kind == "csv":
        content = f'id,{column}\n1,"{cell.replace(chr(34), chr(34) * 2)}"\n'.encode()
    elif kind == "parquet":
        parquet.write_table(pa.table({column: [cell]}), tmp_path / "made")
        content = (tmp_path / "made").read_bytes()
    else:
        content = lines({column: cell})
    ready, _, rows = rows_of({f"rows.{kind}": content})
    assert rows == [CHAT]
    assert ready.container is FileFormat.JSONL


def test_a_list_as_python_prints_it_is_named(rows_of):
    with pytest.raises(DatasetError, match="line 2: 'messages' is not valid JSON; it is a list as Python prints it"):
        rows_of({"rows.csv": f'messages\n"{TURNS}"\n'.encode()})


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # a name of a test is the same in all processes


PACKED = packed(TEXTS.encode())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", PACKED),
        ("rows.jsonl", PACKED),
        ("rows.jsonl.gz", TEXTS.encode()),
        ("rows.JSONL.GZ", packed(TEXTS[:5].encode()) + packed(TEXTS[5:].encode())),
        ("rows.json.gz", packed(b'[{"text": "\xc3\xa4"},\n{"text": "b"}]')),
        ("rows.csv.gz", packed("text\nä\nb\n".encode())),
        ("rows.jsonl", TEXTS.encode("utf-16")),
        ("rows.jsonl", TEXTS.encode("utf-16-le")),
        ("rows.jsonl", TEXTS.encode("utf-16-be")),
        ("rows.jsonl", TEXTS.encode("utf-32")),
        ("rows.csv", "\ufefftext\nä\nb\n".encode("utf-16-le")),
        ("rows.csv.gz", packed("text\r\nä\r\nb\r\n".encode("utf-16"))),
    ],
)
def test_packed_files_and_other_encodings_are_the_same_rows(rows_of, name, content):
    """Guards: without `_unpacked` and `_as_utf8` each was refused as not UTF-8."""
    ready, _, rows = rows_of({name: content})
    assert rows == [Row(text="ä"), Row(text="b")]
    assert ready.name.lower() == name.lower().removesuffix(".gz")


def test_a_packed_file_is_the_same_dataset_as_the_plain_one(rows_of):
    rows = lines({"text": "a"}, {"text": "b"})
    ready, _, _ = rows_of({"rows.jsonl": rows})
    assert ready.path.name == "upload-rows.jsonl"  # as it is
    seen: list[bytes] = []
    path = ready.path.with_name("packed")
    path.write_bytes(packed(rows))
    with prepared([Source(path=path, name="rows.jsonl.gz")], FileFormat.JSONL, RowFormat.AUTO, {}) as unpacked:
        seen.append(unpacked.path.read_bytes())
    assert seen == [rows]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PACKED[:-9], "is not a readable gzip file"),
        (PACKED + b"trailing", "is not a readable gzip file"),
        (packed(PACKED), "is packed twice"),
        (b"\xff\xfe" + b"\x00\xd8{\x00", "is not valid UTF-16; save the file as UTF-8"),
        (b'{"text": "\xe4"}\n', "line 1: is not UTF-8"),
        (packed(b""), "the file has no rows"),
    ],
)
def test_what_cannot_be_unpacked_is_said_in_words(rows_of, content, words):
    with pytest.raises(DatasetError, match=words):
        rows_of({"rows.jsonl": content})


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (Most(room=100, ratio=9), "unpacks to more than 0 MiB"),
        (Most(made=9), "unpacks to more than 0 MiB"),
        (Most(made=999_012), "has more than 0 MiB of rows"),
    ],
)
def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, most, words):
    """Guard: without the count in `_copy`, and that in `_write`, it filled the disk."""
    path = tmp_path / "bomb"
    path.write_bytes(packed(b'{"body": "' + b"\x7f" * 999_000 + b'"}'))
    asked = {"sources": [{"path": str(path), "name": "rows.jsonl.gz"}], "mapping": {"field": "body"}}
    with pytest.raises(DatasetError, match=words):
        dataset_preparing.made_in(asked | {"container": "jsonl", "row_format": "auto", "folder": str(tmp_path)}, most)


QUOTED = 'prompt{0}completion\r\n"a{0} b"{0}"c,;\t ""d""\nnext"\r\n'


@pytest.mark.parametrize(
    ("name", "sign"), [("rows.csv", ";"), ("rows.csv", "\t"), ("rows.tsv", "\t"), ("rows.csv", ",")]
)
def test_other_separators_are_read(rows_of, name, sign):
    ready, _, rows = rows_of({name: QUOTED.format(sign).encode()})
    assert rows == [Row(prompt=f"a{sign} b", text='c,;\t "d"\nnext')]
    assert ready.container is (FileFormat.CSV if sign == "," else FileFormat.JSONL)


@pytest.mark.parametrize("header", ["prompt,completion", '"prompt","completion"', "prompt,completion,a;b", "text"])
def test_a_comma_file_is_never_taken_for_another(rows_of, header):
    """Guard: with the most frequent sign of the first line, the third was read with semicolons."""
    columns = header.replace('"', "").split(",")
    rows = header + "\n" + ",".join('"x; y; z;\tw"' for _ in columns) + "\n"
    assert rows_of({"rows.csv": rows.encode()})[0].container is FileFormat.CSV


def test_a_header_alone_has_no_rows(rows_of):
    for header in (b"prompt;completion\n", b"prompt,completion\n"):
        with pytest.raises(DatasetError, match="the file has no rows"):
            rows_of({"rows.csv": header})


def test_rows_keep_the_lines_that_they_had(rows_of):
    """Guard: without the empty lines an error named a line of a file that nobody has."""
    rows = b'body;text\n"a\nb\n";x\n\n;y\n'
    with pytest.raises(DatasetError, match="line 6: 'body' is empty"):
        rows_of({"rows.csv": rows}, field="body")
    good = b'body;label\n"a\nb\n";\nc;yes\nd;0\n'
    with pytest.raises(DatasetError, match="line 6: has label 0"):
        rows_of({"rows.csv": good}, field="body")


def test_shards_are_read_in_their_order(rows_of):
    ready, info, rows = rows_of(
        {"a.jsonl": lines({"text": "1"}, {"text": "2"}), "b.jsonl": b"\n" + lines({"text": "3", "more": 1})}
    )
    assert [row.text for row in rows] == ["1", "2", "3"]
    assert (info.rows, ready.name) == (3, "a.jsonl")


def test_a_fault_in_a_shard_names_the_shard(rows_of):
    with pytest.raises(DatasetError, match=r"line 1: column 'body' is missing \(in b.jsonl\)"):
        rows_of({"a.jsonl": lines({"body": "1"}), "b.jsonl": lines({"txt": "2"})}, field="body")
    with pytest.raises(DatasetError, match="is a messages row in a text dataset"):
        rows_of({"a.jsonl": lines({"text": "1"}), "b.jsonl": lines({"messages": TURNS})})
    with pytest.raises(DatasetError, match="more than 256 shards"):
        rows_of({f"{n}.jsonl": lines({"text": "1"}) for n in range(257)})


def test_values_that_json_does_not_have_are_told_as_keys(rows_of, tmp_path):
    table = pa.table({"body": ["t"], "when": [pa.scalar(0, pa.timestamp("s"))], "raw": [b"\xff" * 9]})
    parquet.write_table(table, tmp_path / "made")
    _, info, rows = rows_of({"rows.parquet": (tmp_path / "made").read_bytes()}, field="body")
    assert (rows, info.unused) == ([Row(text="t")], ("when", "raw"))


class Folder(FakeCatalog):
    """Datasets as files of this folder, like shards of the hub."""

    def __init__(self, *files: Path) -> None:
        super().__init__()
        self._files = files

    def dataset(
        self, path: str, split: str, token: str | None = None, *, subset: str | None = None
    ) -> Sequence[DatasetFile]:
        return [DatasetFile(path=file, name=file.name) for file in self._files]


@only_sqlite
def test_a_job_of_shards_is_pinned_cloned_and_sent_with_usual_names(world: World, tmp_path: Path) -> None:
    """Guards: without `mapping` kept in the pinned file its clone was refused; without `as_read` in `for_machines` an
    older machine refused the job."""
    files = [tmp_path / "train-00000-of-00002.jsonl", tmp_path / "train-00001-of-00002.jsonl"]
    for file in files:
        file.write_bytes(lines(*({"q": f"{file.name} {n}", "a": "x"} for n in range(9))))
    world.ctx = replace(world.ctx, catalog=Folder(*files))
    names = {"field_instruction": "q", "field_output": "a"}
    entry = {"path": "org/rows", "name": "en", **names}
    spec = JobSpec.model_validate({"base_model": "org/model", "datasets": [entry], "max_steps": 1})
    job = jobs.submit(world.ctx, world.actors["alice"], spec).job
    (pinned,) = job.spec["datasets"]
    assert (pinned["rows"], pinned["type"], pinned["file_format"], pinned["path"]) == (
        18,
        "alpaca",
        "jsonl",
        "org/rows",
    )
    assert {name: pinned[name] for name in names} == names
    again = clones.clone(world.ctx, world.actors["alice"], job.id, {})
    assert again.spec["datasets"] == [pinned]
    machine = for_machines(JobSpec.model_validate(job.spec))
    assert machine.model_dump(mode="json")["datasets"] == [
        {k: v for k, v in pinned.items() if k not in {*names, "name"}}
    ]
    other = jobs.submit(
        world.ctx,
        world.actors["alice"],
        spec.model_copy(update={"datasets": (spec.datasets[0].model_copy(update={"field_output": "q"}),)}),
    ).job
    differing = Recipe.of(JobSpec.model_validate(other.spec)).differences(Recipe.of(JobSpec.model_validate(job.spec)))
    assert [name for name, _, _ in differing] == ["dataset_sha256"]


@only_sqlite
def test_an_upload_is_read_with_other_names_by_a_later_job(world: World, tmp_path: Path) -> None:
    """The file that the names make is the dataset of the job, so that the names are not read twice."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(*({"text": f"t{n}", "body": f"b{n}"} for n in range(9))))
    sha256 = datasets.add_dataset(world.ctx, "alice", file, file.name).sha256
    entry = DatasetSpec(path=f"sha256:{sha256}", field="body")
    pinned = datasets.resolve_dataset(world.ctx, "alice", entry, "/datasets/0/path")
    assert (pinned.mapping, pinned.path) == ({}, f"sha256:{pinned.sha256}")
    assert pinned.sha256 != sha256
    assert datasets.resolve_dataset(world.ctx, "alice", pinned, "/datasets/0/path") == pinned
    with pytest.raises(InvalidError) as refused:
        datasets.resolve_dataset(world.ctx, "alice", entry.model_copy(update={"field": "bdy"}), "/datasets/0/path")
    assert refused.value.problems[0][0] == "/datasets/0/path"
    assert "there is no column 'bdy'; did you mean 'body'?" in str(refused.value)
