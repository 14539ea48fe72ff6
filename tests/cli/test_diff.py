"""`trainhop diff` and `trainhop note` as people type them."""

from __future__ import annotations

import json

import pytest

from trainhop.errors import Error


def test_jobs_are_shown_side_by_side(server, typed):
    admin = server.api.admin
    ids = [admin.submit(name=f"run-{rank}", lora_r=rank)["id"] for rank in (8, 16)]
    shown = typed("diff", "run-8", "run-16").stdout.splitlines()
    assert shown[0].split()[:4] == ["#", "NAME", "STATE", "STEP"]
    assert [line.split()[:4] for line in shown[1:3]] == [
        ["1", "run-8", "queued", "0/10"],
        ["2", "run-16", "queued", "0/10"],
    ]
    assert shown[4].split() == ["KEY", "#1", "#2"]
    assert [line.split() for line in shown[5:]] == [["lora_r", "8", "16"]]
    found = json.loads(typed("diff", *ids, "--json").stdout)
    assert [job["id"] for job in found["jobs"]] == ids
    assert found["metrics"] == []
    admin.submit(name="again", lora_r=8)
    assert "The job files are equal, except for their names." in typed("diff", "run-8", "again").stdout
    for asked, words in ((["run-8"], "Choose 2 to 8 jobs"), (["run-8", ids[0]], "is there twice")):
        with pytest.raises(Error, match=words):
            typed("diff", *asked)


def test_a_note_is_written_shown_and_removed(server, typed):
    job = server.api.admin.submit(name="noted")["id"]
    assert typed("note", "noted").stdout == "no note\n"
    assert typed("note", "noted", "a lower rate helps").stdout == "a lower rate helps\n"
    assert json.loads(typed("note", job, "--json").stdout) == {"note": "a lower rate helps"}
    assert typed("note", "noted", "").stdout == "no note\n"
    with pytest.raises(Error, match="500"):
        typed("note", "noted", "n" * 501)
