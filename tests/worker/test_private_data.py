"""Keys and personal data: what is found, what is not, and that nothing found is shown."""

import json
import random

import pytest

from benchmarks.trust.private_texts import key, person
from worker.shared.data_checks.credentials import PATTERNS, credentials
from worker.shared.data_checks.masking import masked
from worker.shared.data_checks.personal import personal
from worker.shared.data_checks.runner import Data, check

FRAME = "First I wrote {} into the file, and then it worked."


@pytest.mark.parametrize("kind", range(20))
def test_each_kind_of_key_is_found_and_masked(kind):
    text = FRAME.format(secret := key(random.Random(kind), kind))
    assert any(span.is_live for span in credentials(text))
    shown = masked(text)
    assert all(part not in shown for part in secret.split() if len(part) > 12)
    assert shown.startswith("First I wrote [") or "hooks" in secret or "aws" in secret


@pytest.mark.parametrize("kind", range(8))
def test_each_kind_of_personal_data_is_found_and_masked(kind):
    for seed in range(20):
        text = FRAME.format(found := person(random.Random(seed), kind))
        assert len(list(personal(text))) == 1, text
        assert found not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "sk_test_4eC39HqLyjWDarjtT1zdp7dcaaaa",
        "postgres://me:hunter22@db.local/x",
        'password = "correct-horse"',
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_placeholders_and_passwords_do_not_look_alive(text):
    assert [span.is_live for span in credentials(FRAME.format(text))] == [False]


@pytest.mark.parametrize(
    "text",
    [
        "a token of thanks",
        "the password has 12 characters",
        "task-4711 of disk-0123456789abcdef",
        "https://example.org/path?key=value",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "version 2.10.14 from 2024-05-17",
        "order 4539 1488 0343 6468",
        "card 4242 4242 4242 4242",
        "anna@example.com",
        "call 555-0123",
        "192.168.10.4 and 8.8.8.8",
        "DE89 3704 0044 0532 0130 01",
        "12345678A",
        "529.982.247-26",
        "10:30:00 until 12:45:10",
        "1,000,000.00 or 3.14159265358979",
        "1990-2024, 10.1038/s41586-020-2649-2",
    ],
)
def test_what_only_looks_like_it_is_not_found(text):
    assert not list(credentials(FRAME.format(text)))
    assert not list(personal(FRAME.format(text)))


def test_there_are_about_25_kinds_and_each_has_a_fixed_word():
    assert 25 <= len(PATTERNS) <= 35
    assert all(pattern.needles for pattern in PATTERNS)


def test_a_cut_through_a_key_does_not_show_it(tmp_path):
    """Guard: masked after the cut, the rest of a long key has no beginning, and was shown. The sample of an answer
    that stops in the middle shows its end."""
    secret = key(random.Random(3), 2)
    said = f"As an AI language model, I say {secret} and not one of the others that are there"
    row = {"prompt": "q", "completion": said}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    report = check(Data(path=path)).report
    shown = json.dumps(report.to_json())
    assert {"refusals", "secrets", "truncated_answers"} <= {found.check for found in report.findings}
    assert all(secret[at : at + 12] not in shown for at in range(len(secret) - 12))
