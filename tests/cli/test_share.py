"""`trainhop share` as people type it."""

from __future__ import annotations

import json

import httpx
import pytest

from orchestrator.entrypoints.cli.client import CommandError


def test_a_page_is_shared_listed_revoked_and_written(server, typed, tmp_path):
    job = server.api.admin.submit(name="night train")["id"]
    url = typed("share", "night train", "--days", "7").stdout.split()[0]
    assert "night train" in httpx.get(url).text
    (link,) = json.loads(typed("share", job, "--ls", "--json").stdout)
    assert (link["member"], link["samples"], link["ended"]) == ("admin", False, "")
    assert link["id"] in typed("share", job, "--ls").stdout
    typed("share", job, "--revoke", link["id"])
    gone = httpx.get(url)
    assert (gone.status_code, "This link was revoked." in gone.text) == (410, True)
    out = tmp_path / "card.html"
    typed("share", job, "--out", str(out))
    assert "night train" in out.read_text()
    with pytest.raises(CommandError, match="Use one of"):
        typed("share", job, "--ls", "--out", str(out))
