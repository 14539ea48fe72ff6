"""A part of the benchmark of masks, and that it sees a wrong one."""

from dataclasses import replace

import pytest

from benchmarks.methods.chat_templates import families
from benchmarks.methods.masks import CASES, EQUAL, REFUSED, figures, verdict

FEW = ("chatml", "llama2", "mistral_tools", "llama3_1", "phi3", "gptoss", "qwen3", "glm4moe", "gemma4")


@pytest.mark.parametrize("name", FEW)
def test_masks_are_equal_to_spans_found_by_other_means(name):
    family = families()[name]
    found = {case: verdict(family, case) for case in CASES}
    assert set(found.values()) <= {EQUAL, REFUSED}
    assert {case for case, value in found.items() if value == EQUAL} >= {"multi-turn", "first turn", "last turn"}


def test_a_wrong_mask_is_seen():
    """The same mask is wrong where an answer is said to begin or to end elsewhere."""
    family = families()["chatml"]
    for other in (replace(family, ends=("qzaskb",)), replace(family, after="<|im_start|>"), replace(family, begin="<")):
        assert verdict(other, "system").startswith("wrong: at ")


def test_its_figures_name_what_is_wrong(tmp_path):
    found = {figure.name: figure for figure in figures(tmp_path, ("chatml",))}
    assert (found["wrong masks"].value, found["wrong masks"].ok) == ([], True)
    assert not found["chat templates"].ok
    counted = found["masks equal to spans found by other means"].value + found["rows refused in words"].value
    assert counted == len(CASES)
