"""A part of the benchmark of masks, and that it sees a wrong one."""

from itertools import product

import pytest

from benchmarks.methods.chat_templates import families
from benchmarks.methods.masks import CASES, EQUAL, REFUSED, figures, verdict
from worker.training import encoding

FEW = ("chatml", "llama2", "mistral_tools", "llama3_1", "phi3", "gptoss", "qwen3", "glm4moe", "gemma4")


@pytest.mark.parametrize("name", FEW)
def test_masks_are_equal_to_spans_found_by_other_means(name):
    family = families()[name]
    found = {case: verdict(family, case) for case in CASES}
    assert set(found.values()) <= {EQUAL, REFUSED}
    assert {case for case, value in found.items() if value == EQUAL} >= {"multi-turn", "first turn", "last turn"}


def test_a_wrong_mask_is_seen(monkeypatch):
    # The fault is one of the code that the benchmark measures.
    monkeypatch.setattr(encoding, "answer_spans", lambda row, turns, text, write, *, checked: [(0, len(text))])
    family = families()["chatml"]
    assert verdict(family, "system").startswith("wrong: at ")


def test_its_figures_name_what_is_wrong(tmp_path, monkeypatch):
    # Of all templates and cases only a few, because all of them take seconds.
    monkeypatch.setattr("benchmarks.methods.masks.families", lambda: {"chatml": families()["chatml"]})
    found = {figure.name: figure for figure in figures(tmp_path)}
    assert (found["wrong masks"].value, found["wrong masks"].ok) == ([], True)
    assert not found["chat templates"].ok
    counted = found["masks equal to spans found by other means"].value + found["rows refused in words"].value
    assert counted == len(list(product(range(1), CASES)))
