"""The data checks: each fault is found at its limit, and only there."""

import csv
import json
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.trust.english import English
from worker.shared.data_check_list import CHECKS
from worker.shared.data_checks.clean_copy import write_clean
from worker.shared.data_checks.findings import Report
from worker.shared.data_checks.languages import ALL_OF
from worker.shared.data_checks.phrases import own_phrases
from worker.shared.data_checks.runner import Data, Options, check
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.dataset_files import DatasetError, read_rows

ANSWER = "Bring the signed form and a recent photo to the second floor before noon."


def turn(user: str, answer: str = ANSWER) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def english():
    return English(7)


@pytest.fixture
def write(tmp_path):
    def writing(rows: list[dict], name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return writing


@pytest.fixture
def found(write):
    """The findings of rows, by check and level."""

    def finding(rows: list[dict], **options):
        report = check(Data(path=write(rows)), Options(**options)).report
        return {(f.check, f.level): f for f in report.findings}

    return finding


def plain(english: English, count: int) -> list[dict]:
    return [english.row(sentences=(3, 4)) for _ in range(count)]


def test_ordinary_rows_have_no_finding(found, english):
    assert not found(plain(english, 60))


@pytest.mark.parametrize(("copies", "level"), [(2, "list"), (3, "warn"), (40, "warn"), (41, "stop")])
def test_exact_duplicates_have_the_limits_of_the_table(found, english, copies, level):
    """2 of 200 rows are not over 1 %, and 40 are not over 20 %. Case, width and spaces make no other row."""
    rows = plain(english, 200 - copies)
    one = rows[0]["messages"]
    shouted = [{"role": m["role"], "content": f"  {m['content'].upper()} "} for m in one]
    (finding,) = (
        f for f in found([*rows, *[{"messages": shouted}] * copies]).values() if f.check == "exact_duplicates"
    )
    assert (finding.level, finding.count, finding.lines[0], finding.other_lines[0]) == (level, copies, 201 - copies, 1)


def test_near_copies_are_named_with_their_original(found, english):
    rows = plain(english, 40)
    rows += [json.loads(json.dumps(row).replace(" the ", " that ")) for row in rows[:4]]
    finding = found(rows)["near_copies", "warn"]
    assert (finding.lines, finding.other_lines) == ((41, 42, 43, 44), (1, 2, 3, 4))
    assert found(rows[:-2])["near_copies", "list"].count == 2


def test_a_half_of_a_row_is_a_near_copy(found, english):
    """Guard: with Jaccard alone, a row that was cut in two is another row."""
    rows = plain(english, 40)
    rows[3] = turn(english.question(), english.answer(14))
    words = rows[3]["messages"][1]["content"].split()
    half = " ".join(words[: len(words) // 4])
    rows.append({"messages": [rows[3]["messages"][0], {"role": "assistant", "content": half}]})
    near = next(f for f in found(rows).values() if f.check == "near_copies")
    assert (near.lines, near.other_lines) == ((41,), (4,))


def test_near_copies_are_found_in_scripts_without_spaces(found):
    """Guard: with words alone, a Chinese row is one word, and no two rows are alike."""
    text = "请在星期五之前把填好的表格和两张照片交到三楼的办公室，工作人员会告诉你下一步需要做什么。"
    other = "昨天晚上我们在河边散步的时候看到了很多小船，孩子们都非常高兴，还拍了许多照片留作纪念。"
    rows = [
        turn("怎么办理登记手续？", text),
        turn("怎么办理登记手续呢？", text.replace("两", "三")),
        turn("昨天怎么样？", other),
    ]
    assert found(rows)["near_copies", "warn"].lines == (2,)


def test_a_shared_system_turn_makes_no_copies(found, english):
    """Guard: with the system turn among the words, all rows of a dataset with a long one are near-copies."""
    system = {"role": "system", "content": english.answer(30)}
    rows = [{"messages": [system, *row["messages"]]} for row in plain(english, 30)]
    assert not found(rows)


def test_leaks_are_told_apart(write, english):
    rows = plain(english, 80)
    edited = json.loads(json.dumps(rows[1]).replace(" each ", " some "))
    asked = {"messages": [*rows[2]["messages"][:1], {"role": "assistant", "content": english.answer(4)}]}
    history = [*plain(english, 1)[0]["messages"][:2], *rows[3]["messages"][-2:-1]]
    follow_up = {"messages": [*history, {"role": "assistant", "content": english.answer(4)}]}
    held_out = [rows[0], edited, asked, follow_up, *plain(English(8), 46)]
    train, validation = write(rows), write(held_out, "validation.jsonl")
    outcome = check(Data(path=train), Options(validation=Data(path=validation)))
    leaks = [f for f in outcome.report.findings if f.check == "leak"]
    assert {line: f.other_lines[f.lines.index(line)] for f in leaks for line in f.lines}.items() >= {
        1: 1,
        2: 2,
        3: 3,
    }.items()
    assert all(f.level == "stop" for f in leaks)
    assert outcome.left_out_validation == {0, 1, 2, 3}
    assert outcome.left_out == set()
    assert {f.check for f in outcome.report.findings} == {"leak", "split"}


def test_few_near_leaks_are_a_warning(write, english):
    rows = plain(english, 60)
    edited = [{"messages": [dict(m, content=f"Well, {m['content']}") for m in rows[0]["messages"]]}]
    held_out = edited + plain(English(8), 59)
    options = Options(validation=Data(path=write(held_out, "validation.jsonl")))
    (leak,) = (f for f in check(Data(path=write(rows)), options).report.findings if f.check == "leak")
    assert (leak.level, leak.lines) == ("warn", (1,))


def test_a_shift_of_the_validation_rows_is_found(write, english):
    same = Options(validation=Data(path=write(plain(English(8), 60), "same.jsonl")))
    longer = [English(n).row(sentences=(9, 12)) for n in range(100, 160)]
    other = Options(validation=Data(path=write(longer, "other.jsonl")))
    train = Data(path=write(plain(english, 100)))
    assert not check(train, same).report.findings
    (shift,) = check(train, other).report.findings
    assert (shift.check, shift.level) == ("shift", "warn")
    assert "length of answers" in shift.words


@pytest.mark.parametrize(
    ("first", "second", "contradicts"),
    [
        (
            "The fee is 40 euros for all students of the city.",
            "The fee is 60 euros for all students of the city.",
            True,
        ),
        ("Yes, you may take the small dog on the train.", "No, you may take the small dog on the train.", True),
        ("Ask the clerk at the desk near the door.", "Heavy rain floods every valley road in winter.", True),
        ("Ask the clerk at the desk near the door.", "Ask the old clerk at the desk near the door.", False),
        ("The fee is 40 euros for all students here.", "The fee is 40 euros for all the students here.", False),
    ],
)
def test_answers_to_one_prompt_are_compared(found, english, first, second, contradicts):
    rows = [turn("What is the rule?", first), turn("what is  the rule?", second), *plain(english, 20)]
    finding = found(rows).get(("contradictions", "warn"))
    assert (finding is not None) == contradicts
    assert not contradicts or (finding.lines, finding.other_lines) == ((2,), (1,))


def test_a_conversation_that_repeats_a_turn_is_found(found, english):
    turns = [*turn("Where is it?")["messages"], *turn("And when?", english.answer(4))["messages"]]
    nearly = {"role": "assistant", "content": f"{ANSWER} Thanks."}
    thanks = {"role": "user", "content": "thank you"}
    rows = [
        {"messages": [*turns, *turn("Say it again please.")["messages"]]},
        {"messages": [*turns[:3], nearly]},
        {"messages": [*turns[:2], thanks, turns[3], thanks, {"role": "assistant", "content": "You are welcome."}]},
    ]
    assert found([*rows, *plain(english, 20)])["repeated_turns", "warn"].lines == (1, 2)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("It printed <|im_end|> there.", "stop"),
        ("[INST] Where is it? [/INST]", "stop"),
        ("It printed <|mine|> there.", "stop"),
        ("Here it is.\nUser: and now?", "warn"),
        ("### Response:\nHere it is.", "warn"),
        ("He said: user: is a role, and <s>struck</s> is HTML, see [1].", None),
    ],
)
def test_template_tokens_in_a_turn(found, english, text, level):
    rows = [turn("Where is it?", text), *plain(english, 20)]
    levels = [f.level for f in found(rows, tokens=TokenFacts(special=("<|mine|>",))).values()]
    assert [each for each in levels if each != "list"] == ([level] if level else [])


def test_template_tokens_in_a_plain_text_are_only_listed(found):
    rows = [{"text": f"<|im_start|>user\nQuestion {n} about the {w}?<|im_end|>"} for n, w in enumerate(("sea", "sky"))]
    assert list(found(rows)) == [("template_tokens", "list")]


@pytest.mark.parametrize(
    ("answer", "is_cut"),
    [
        ("You bring the signed form and a recent photo to the", True),
        ("Use this:\n```python\nprint(1)", True),
        ("Use this:\n```python\nprint(1)\n```", False),
        ("- one thing\n- another thing with quite a few words in it here", False),
        ("Forty-two", False),
        (ANSWER, False),
        ("हमें फॉर्म और एक फोटो दूसरी मंज़िल पर दोपहर से पहले लाना होगा।", False),
    ],
)
def test_answers_that_stop_in_the_middle(found, english, answer, is_cut):
    rows = [*(turn(english.question(), answer if n == 0 else english.answer(3)) for n in range(19))]
    assert (("truncated_answers", "warn") in found(rows)) == is_cut


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I’m sorry, but I can’t help with this request at all.", True),
        ("As an AI language model, I have no opinion about rivers.", True),
        ("Es tut mir leid, aber ich kann nicht darüber sprechen.", True),
        ("Désolé, mais je ne peux pas répondre à cette question.", True),
        ("Lo siento, pero no puedo ayudar con eso ahora mismo.", True),
        ("क्षमा करें, मैं इस अनुरोध में सहायता नहीं कर सकता।", True),
        ("She said she was sorry that the train was so late again.", False),
    ],
)
def test_refusals_and_boilerplate_by_language(found, english, answer, refuses):
    rows = [turn("Tell me about rivers.", answer), *plain(english, 40)]
    assert (("refusals", "warn") in found(rows)) == refuses


def test_the_own_phrases_have_each_language_and_no_pattern():
    assert len(own_phrases()) > 60


@pytest.mark.parametrize("line", ["(a+)+$", "sorry.*cannot", "[a-z]", "\\bno", "x", "y" * 201])
def test_a_phrase_file_with_a_pattern_is_refused_with_its_line(found, tmp_path, line):
    """Guard: as an expression the first one takes longer than a life."""
    phrases = tmp_path / "mine.txt"
    phrases.write_text(f"# mine\na fine phrase\n{line}\n")
    with pytest.raises(DatasetError, match=r"^mine\.txt, line 3: .*phrase"):
        found([turn("Hello?")], phrases=phrases)


def test_phrases_of_a_person_are_added(found, english, tmp_path):
    phrases = tmp_path / "mine.txt"
    phrases.write_text("per our company policy\n")
    rows = [turn("May I?", "You may not, per our Company  Policy."), *plain(english, 20)]
    assert found(rows, phrases=phrases)["refusals", "warn"].lines == (1,)


def test_rows_of_unusual_length_are_listed(found, english):
    rows = [*plain(english, 60), turn("Why?", english.answer(300)), turn("?", "No.")]
    assert found(rows)["length_outliers", "list"].lines == (61, 62)


def test_the_language_of_many_rows_is_sampled(write, english):
    """Guard: without the sample, the language takes longer than all other checks."""
    rows = [turn(f"{n} {english.question()}", "Yes.") for n in range(ALL_OF + 10)]
    german = "Wo ist das alte Rathaus, bitte, und wann macht es am Samstag auf, Nummer"
    rows += [turn(f"{german} {n}?", "Da.") for n in range(10)]
    report = check(Data(path=write(rows))).report
    (language,) = (found for found in report.findings if found.check == "language")
    assert (language.count, language.total) == (2, ALL_OF + 4)


def test_a_minority_language_is_a_warning(found, english):
    german = "Bitte bringen Sie das ausgefüllte Formular bis Freitag in das Büro im dritten Stock, sagt die Leiterin."
    rows = [*plain(english, 37), *(turn(f"Was muss ich mitbringen, Nummer {n}?", f"{german} {n}") for n in range(3))]
    finding = found(rows)["language", "warn"]
    assert (finding.count, finding.total) == (3, 40)
    assert "de 3" in finding.words


def test_answers_that_begin_alike_are_a_warning(found, english):
    rows = [turn(english.question(), f"Sure thing, friend! {english.answer(3)}") for _ in range(9)]
    finding = found([*rows, *plain(english, 21)])["diversity", "warn"]
    assert "sure thing, friend!" in finding.words


def test_items_of_a_benchmark_are_found(found, english, tmp_path):
    items = [English(n).question() for n in range(100, 130)]
    items = [item for item in items if len(item.split()) > 14]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    half = " ".join(items[1].split()[: len(items[1].split()) // 2 - 2])
    rows = [
        turn(f"Please answer: {items[0]}"),
        turn(f"{half} and something quite different, then?"),
        *plain(english, 20),
    ]
    finding = found(rows, benchmarks={"mine": tmp_path / "items.jsonl"})["benchmark_leak", "stop"]
    assert finding.lines == (1,)
    assert "mine" in finding.words


def test_ends_and_cuts_follow_the_counts_of_the_tokenizer(found, english):
    facts = TokenFacts(rows=100, open_rows=2, open_lines=(3, 4), trained=1000, cut=30, cut_lines=(5,))
    seen = found(plain(english, 20), tokens=facts)
    assert (seen["end_of_turn", "stop"].count, seen["cut_rows", "warn"].share) == (2, 0.03)
    assert ("end_of_turn", "list") in found(
        plain(english, 20), tokens=TokenFacts(rows=100, open_rows=1, open_lines=(3,))
    )


def test_what_was_not_checked_is_named_with_a_reason(write, english):
    report = check(Data(path=write(plain(english, 3)))).report
    reasons = {each.check: each.reason for each in report.not_checked}
    assert reasons["end_of_turn"] == reasons["cut_rows"] == "no tokenizer"
    assert set(reasons) == {"end_of_turn", "cut_rows", "leak", "split", "shift", "benchmark_leak"}


def test_a_report_survives_its_plain_data(write, english):
    report = check(Data(path=write([*plain(english, 3), turn("a", "My key is hf_" + "aBcDeFgH" * 4 + "Zz.")]))).report
    assert Report.of(json.loads(json.dumps(report.to_json()))) == report


def test_every_check_says_what_to_do():
    assert all(each.advice.endswith(".") and (each.stop, each.warn) != (None, None) for each in CHECKS.values()
               if each.name != "length_outliers")  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (bytes(range(256)) * 20, "UTF-8"),
        (b"PAR1" + bytes(200), "not a readable Parquet file"),
        (b'{"messages": []}\n', "line 1: has no assistant turn"),
        (b'{"question": "a"}\n', "unknown row format"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, content, words):
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        check(Data(path=path))


def test_one_row_and_equal_rows(found):
    assert not found([turn("Where is it?")])
    seen = found([turn("Where is it?")] * 50)
    assert seen["exact_duplicates", "stop"].count == 49
    assert ("near_copies", "warn") not in seen


@pytest.mark.parametrize("container", ["csv", "parquet", "array", "text"])
def test_other_formats_are_checked_the_same_way(tmp_path, english, container):
    texts = [english.answer(4) for _ in range(6)]
    rows = [{"instruction": f"Question {n}: {english.question()}", "output": text} for n, text in enumerate(texts)]
    rows.append(rows[0])
    path = tmp_path / "rows"
    if container == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "output"])
            writer.writeheader()
            writer.writerows(rows)
    elif container == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif container == "array":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps({"text": row["output"]}) + "\n" for row in rows))
    outcome = check(Data(path=path))
    assert outcome.named["exact_duplicates"] == {6}
    with (tmp_path / "copy.jsonl").open("wb") as out:
        assert write_clean(path, None, outcome.left_out, out) == 6
    assert list(read_rows(tmp_path / "copy.jsonl")) == list(read_rows(path))[:6]


def test_a_very_large_file_is_sampled_evenly(write, english):
    """Guard: without the sample, ten million rows take hours. Places and lines are still those of the file."""
    rows = plain(english, 45)
    rows[40] = rows[0]
    outcome = check(Data(path=write(rows)), max_rows=10)
    report = outcome.report
    assert (report.checked, report.rows) == (9, 45)
    (finding,) = report.findings
    assert (finding.lines, finding.other_lines, outcome.left_out) == ((41,), (1,), {40})


def test_a_clean_copy_has_nothing_to_find(write, english, tmp_path):
    rows = plain(english, 30)
    rows += [rows[0], turn("a", f"Use hf_{'aBcDeFgH' * 4}Zz for it."), turn("b", "It printed <|im_end|> there.")]
    rows += [turn("Mail me?", f"Write to kim.lee@uni-nord.org. {english.answer(3)}")]
    path, copy = write(rows), tmp_path / "copy.jsonl"
    with copy.open("wb") as out:
        assert write_clean(path, None, check(Data(path=path)).left_out, out) == 30
    assert not check(Data(path=copy)).report.findings
    with pytest.raises(DatasetError, match="nothing is left"), copy.open("wb") as out:
        write_clean(path, None, frozenset(range(34)), out)


def test_no_text_takes_longer_than_its_length(write):
    """Guard: patterns that can match one text in many ways would take minutes for these."""
    signs = [
        "1 ",
        "+1 2",
        "a@",
        "a.",
        "eyJ",
        "<|",
        "[",
        "A1 ",
        "0 0",
        "sk-a",
        "://a:",
        "1:1",
        "-----BEGIN A",
        "`",
        "\n- ",
    ]
    rows = [turn("?", sign * (60_000 // len(sign))) for sign in signs]
    began = time.process_time()
    check(Data(path=write(rows)))
    assert time.process_time() - began < 20
