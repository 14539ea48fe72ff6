"""The lab's story in four browsers: an admin invites, a member trains, a viewer looks on, a stranger gets a link."""

from __future__ import annotations

import pytest

from tests.helpers.page_server import PageServer, steps

ROWS = b"".join(b'{"text": "the night train leaves at %d"}\n' % number for number in range(40))
NAME = "night trains"


@pytest.fixture
def lab(show: PageServer, visit):
    """The admin's browser, on the page of members."""
    page = visit(show.link())
    page.goto(f"{show.url}/people")
    return page


def invite(admin, visit, name: str, role: str):
    """The browser of a new member, who opened the link that the admin gave them."""
    admin.get_by_role("textbox", name="Name", exact=True).fill(name)
    admin.get_by_label("Role").select_option(role)
    admin.get_by_role("button", name="Invite").click()
    admin.get_by_role("button", name=f"Login link for {name}").click()
    admin.get_by_role("heading", name=f"Login link for {name}").wait_for()
    return visit(admin.locator("#secret").inner_text())


def test_a_lab_works_together(show: PageServer, lab, visit, tmp_path):
    """Nobody leaves the browser. The machine is driven by hand."""
    ann = invite(lab, visit, "ann", "member")
    ann.goto(f"{show.url}/submit")
    ann.set_input_files("#file", {"name": "trains.jsonl", "mimeType": "text/plain", "buffer": ROWS})
    ann.get_by_label("Name", exact=True).fill(NAME)
    ann.get_by_label("Base model").fill("org/model")
    ann.get_by_label("Steps (instead of epochs)").fill("40")
    ann.locator("#plan").get_by_text("immediately").wait_for()
    ann.get_by_role("button", name="Submit").click()
    ann.get_by_role("heading", name=NAME).wait_for()
    job = ann.url.rpartition("/")[2]

    machine = show.machine()
    steps(machine, 1, 20, total=40)
    assert machine.save(20, tmp_path).json()["committed"]

    vera = invite(lab, visit, "vera", "viewer")
    vera.get_by_role("link", name=NAME).click()
    vera.get_by_role("img", name="Training loss over 20 steps").wait_for()
    assert vera.get_by_role("button", name="Hand over").count() == 0
    assert vera.get_by_role("link", name="New job").count() == 0

    lab.goto(show.url)
    row = lab.locator(f"#{job}")
    assert "ann" in row.inner_text()
    row.get_by_role("link", name=NAME).click()
    lab.on("dialog", lambda dialog: dialog.accept())
    lab.get_by_role("button", name="Hand over").click()
    lab.get_by_text("hand-off requested").first.wait_for()
    ann.get_by_text("hand-off requested").first.wait_for()

    ann.get_by_role("button", name="Make a link").click()
    link = ann.locator("#secret").inner_text()
    stranger = ann.context.browser.new_page()
    stranger.goto(link)
    stranger.get_by_role("heading", name=NAME).wait_for()
    assert "ann" not in stranger.locator("main").inner_text().split()
    ann.get_by_role("link", name="Back to the job").click()
    ann.get_by_role("button", name="Revoke the link").click()
    ann.get_by_text("Revoked").first.wait_for()
    stranger.reload()
    stranger.get_by_role("heading", name="Shared page").wait_for()
    stranger.close()
