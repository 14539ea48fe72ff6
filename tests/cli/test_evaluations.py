"""Evaluations by the command line, against a server whose machines are driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli.conftest import Shell
from tests.dashboard.test_evaluations import CHAT, finished, trained
from tests.helpers.page_server import page_server
from tests.http.http_client import People


def test_a_job_is_evaluated_and_its_report_is_shown(tmp_path: Path) -> None:
    with page_server(tmp_path) as server:
        people = People(admin=server.api.admin, ann=server.api.admin, bob=server.api.admin)
        job = trained(server.api, people, server.provider, tmp_path)
        variables: Any = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}
        trainhop = Shell(folder=tmp_path, data_dir=tmp_path / "none", models=tmp_path)

        settings = ("--max-prompts", "12", "--max-new-tokens", "64", "--temperature", "0.7", "--checkpoint", "10")
        made = trainhop("evaluate", job, *settings, **variables)
        ident = made.stdout.strip()
        assert "note: There are only 12 prompts." in made.stderr
        assert f"trainhop watch {ident}" in made.stderr
        settings = server.api.admin.get(f"/jobs/{ident}").json()["spec"]["evaluation"]
        asked = {"max_prompts": 12, "max_new_tokens": 64, "temperature": 0.7, "prompts": None, "measures": 2}
        assert settings == asked

        (tmp_path / "mine.jsonl").write_bytes(CHAT)
        of_file = trainhop("evaluate", job, "--prompts", "mine.jsonl", "--accept-leak", **variables)
        assert "uploading mine.jsonl" in of_file.stderr
        spec = server.api.admin.get(f"/jobs/{of_file.stdout.strip()}").json()["spec"]
        assert spec["evaluation"]["prompts"]["rows"] == 60
        (tmp_path / "tasks.jsonl").write_text('{"prompt": "1 + 1?", "check": {"type": "number", "value": 2}}\n')
        with_tasks = trainhop("evaluate", job, "--tasks", "tasks.jsonl", **variables)
        spec = server.api.admin.get(f"/jobs/{with_tasks.stdout.strip()}").json()["spec"]
        assert (spec["evaluation"]["tasks"]["rows"], spec["evaluation"]["tasks"]["type"]) == (1, "task")
        judged = trainhop("evaluate", job, "--judge", "org/judge", **variables)
        spec = server.api.admin.get(f"/jobs/{judged.stdout.strip()}").json()["spec"]
        assert spec["evaluation"]["judge"] == {"model": "org/judge", "prompt_version": 1} | dict.fromkeys(
            ("gpu_bytes", "host_bytes")
        )
        refused = trainhop("evaluate", job, "--benchmark", "arc_hard", code=2, **variables)
        assert "benchmarks[0].name: there is no benchmark 'arc_hard'; there are arc_easy, gsm8k" in refused.stderr
        assert "no checkpoint" in trainhop("evaluate", job, "--checkpoint", "4", code=3, **variables).stderr

        shown = trainhop("show", job, **variables).stdout
        assert ident in shown
        assert "EVALUATION" in shown
        finished(server.api, ident)
        report = " ".join(trainhop("show", ident, **variables).stdout.split())
        for words in (
            f"evaluates {job}",
            "prompts 40, 3 with equal answers",
            "cut at the limit 0% base, 25% adapter",
            "general text loss +0.310 nats per token (+0.290 to +0.330)",
            "veto The adapter has forgotten general text",
            "warning More than 10% of the answers were cut.",
            "Resembles your data (says nothing of quality, and does not count for a verdict)",
            "held-out loss 2.500 base, 1.250 adapter nats per token",
            "BLEU 10.0 base, 90.5 adapter",
            "not audited",
            "instructions 30 of 40 base, 20 adapter: -25 points (-40 to -8), p 0.013",
            "harmless prompts 1 of 20 refused by base, 7 by adapter",
            "tasks 61 of 100 base, 72 adapter: +11 points (+4 to +19), p 0.003",
            "ARC-Easy 300 items: base 60% (54% to 65%), adapter 52% (46% to 58%): -8 points (-12 to -4), p 0.000",
        ):
            assert words in report, words
        listed = " ".join(trainhop("show", job, **variables).stdout.split())
        assert "40 prompts, 1 veto, 1 warning" in listed
