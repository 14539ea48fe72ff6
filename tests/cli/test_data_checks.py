"""`trainhop datasets check`, without a server."""

from __future__ import annotations

import gzip
import json

import pytest
import typer

from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.cli.data_checks import check_dataset
from tests.cli.conftest import Shell

KEY = "hf_" + "aBcDeFgH" * 4 + "Zz"


def _rows(*answers: str) -> str:
    return "".join(
        json.dumps({"prompt": f"Question {n}?", "completion": text}) + "\n" for n, text in enumerate(answers)
    )


def test_the_command_prints_findings_without_a_server(elsewhere: Shell) -> None:
    """Guard: with the server asked first, this ended with 5."""
    (elsewhere.folder / "rows.jsonl").write_text(_rows("A fine answer.", f"The key is {KEY}."))
    done = elsewhere("datasets", "check", "rows.jsonl", "--clean", "copy.jsonl", code=1)
    assert done.stdout.startswith("Checked 2 rows: 1 stop, 0 warnings")
    assert (
        "STOP secrets: 1 of 2 rows (50 %) have a key that looks real (Hugging Face token 1)\n    line 2\n"
        in done.stdout
    )
    assert "[Hugging Face token]" in done.stdout
    assert KEY not in done.stdout + done.stderr
    assert done.stderr == "copy.jsonl: 1 row, 1 left out\n"
    assert (elsewhere.folder / "copy.jsonl").read_text() == _rows("A fine answer.")
    report = json.loads(elsewhere("datasets", "check", "copy.jsonl", "--json").stdout)
    assert (report["findings"], report["checked"]) == ([], 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"row_format": "chat"}, "--type chat: expected one of auto, messages"),
        ({"benchmark": ["mmlu"]}, "--benchmark mmlu: expected NAME=FILE"),
        ({"clean_validation": "x"}, "--clean-validation needs --validation"),
        ({"clean_file": "rows.jsonl"}, "the copy needs a name of its own"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, words) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(_rows("A fine answer."))
    given = {name: tmp_path / value if name.startswith("clean") else value for name, value in options.items()}
    with pytest.raises(CommandError, match=words) as refused:
        check_dataset(path, **given)
    assert refused.value.reason == "usage"


def test_a_bad_file_is_one_sentence_with_its_name(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(CommandError, match=r"rows\.jsonl: the file is empty; give it at least one row$"):
        check_dataset(path)


def test_leaked_validation_rows_are_left_out_of_their_copy(tmp_path, capsys) -> None:
    train, validation, copy = (tmp_path / f"{name}.jsonl" for name in ("train", "validation", "copy"))
    train.write_text(_rows("The first answer.", "The second answer."))
    validation.write_text(_rows("The first answer.") + json.dumps({"prompt": "Other?", "completion": "It is."}) + "\n")
    with pytest.raises(typer.Exit):
        check_dataset(train, validation=validation, clean_validation=copy, as_json=True)
    assert copy.read_text() == validation.read_text().splitlines(keepends=True)[1]
    assert [found["check"] for found in json.loads(capsys.readouterr().out)["findings"]] == ["leak", "split"]


def test_a_packed_file_with_other_names_is_checked(tmp_path, capsys) -> None:
    """Guard: with the file itself checked, this was refused as not UTF-8."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(_rows("A fine answer.").replace("completion", "reply").encode()))
    check_dataset(path, row_format="auto", columns="{field_instruction: prompt, field_output: reply}", as_json=True)
    assert json.loads(capsys.readouterr().out)["checked"] == 1
    with pytest.raises(CommandError, match="--columns: Names of columns: unknown key 'fild'; did you mean 'field'"):
        check_dataset(path, columns="fild: x")
