"""Audits of a dataset: its sample, its raters, and what is kept when the data goes away."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from orchestrator.domain.audits import Audit, StrataKind
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.services import audit_rating, audits
from orchestrator.services.audit_export import export
from orchestrator.services.audit_reading import Drawn
from orchestrator.services.datasets import add_dataset, delete_dataset
from tests.helpers.world import World

CORRECT, WRONG, UNSURE = Label.CORRECT, Label.WRONG, Label.UNSURE


def conversations(count: int) -> bytes:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}?"},
                {"role": "assistant", "content": f"Answer {n}. " + "More. " * (n % 7)},
            ],
            "source": ("forum", "wiki")[n % 2],
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def bring(world: World, rows: bytes = b"", who: str = "alice", name: str = "rows.jsonl") -> str:
    file = world.folder / name
    file.write_bytes(rows or conversations(60))
    return add_dataset(world.ctx, who, file, name).sha256


def start(world: World, sha256: str, who: str = "alice", **how) -> Audit:
    return audits.start(world.ctx, world.actors[who], sha256, **{"seed": 7, **how})


def screen(world: World, sha256: str, who: str = "alice") -> audit_rating.Screen:
    found = audit_rating.next_screen(world.ctx, world.actors[who], sha256)
    assert found is not None
    return found


def label(world: World, sha256: str, label: Label, who: str = "alice", place: int | None = None, **more) -> int:
    actor = world.actors[who]
    seen = screen(world, sha256, who) if place is None else audit_rating.screen(world.ctx, actor, sha256, place)
    audit_rating.give(world.ctx, actor, sha256, seen.place, **{"unit": seen.unit, "label": label, **more})
    return seen.place


def status(world: World, sha256: str, who: str = "alice") -> audits.Status:
    return audits.status(world.ctx, world.actors[who], sha256)


def label_all(world: World, sha256: str, which: list[Label], who: str = "alice") -> None:
    for one in which:
        label(world, sha256, one, who)


def test_an_audit_tells_the_share_with_its_interval(world: World) -> None:
    sha256 = bring(world)
    assert audits.words_of(world.ctx, [sha256]) == {sha256: "not audited"}
    start(world, sha256)
    assert status(world, sha256).words == "not audited"
    label_all(world, sha256, [WRONG, CORRECT, CORRECT, CORRECT] * 5)
    found = status(world, sha256)
    assert (found.labelled, found.mine, found.drawn, found.audit.units) == (20, 20, 60, 60)
    assert found.words.startswith("audit: 25 % wrong (")
    assert found.words.endswith(" %), 20 rows")
    assert audits.words_of(world.ctx, [sha256, "0" * 64]) == {sha256: found.words, "0" * 64: "not audited"}


def test_rows_come_in_the_order_of_the_seed(world: World) -> None:
    """Guard: a person who could choose rows, or a seed by its result, would choose the share too."""
    sha256 = bring(world)
    start(world, sha256, strata=StrataKind.SOURCE)
    first = [screen(world, sha256).row for _ in range(2)]
    assert first[0] == first[1]
    assert set(status(world, sha256).audit.strata) <= {
        f"{source}, {third}" for source in ("forum", "wiki") for third in ("short", "middle", "long")
    }
    start(world, sha256, max_wrong=0.2)
    assert screen(world, sha256).row != first[0]
    with pytest.raises(ConflictError, match="an audit with the seed 7, which cannot be changed"):
        start(world, sha256, seed=8)
    label(world, sha256, CORRECT)
    for limit, strata in ((0.5, StrataKind.LENGTH), (0.2, StrataKind.SOURCE)):
        with pytest.raises(ConflictError, match=r"an audit with 1 label\. Its settings are fixed"):
            start(world, sha256, max_wrong=limit, strata=strata)
    assert start(world, sha256, seed=None, max_wrong=0.2).seed == 7


def test_a_row_is_shown_with_what_came_before_its_answer(world: World) -> None:
    turns = [{"role": r, "content": f"{r} {n}"} for n in range(3) for r in ("user", "assistant")]
    sha256 = bring(world, json.dumps({"messages": turns}).encode())
    start(world, sha256)
    seen = sorted((screen_of.unit, [t.text for t in screen_of.turns]) for screen_of in _screens(world, sha256))
    assert [unit for unit, _ in seen] == ["0.1", "0.3", "0.5"]
    assert seen[1][1] == ["user 0", "assistant 0", "user 1", "assistant 1"]


def _screens(world: World, sha256: str) -> list[audit_rating.Screen]:
    drawn = status(world, sha256).drawn
    return [audit_rating.screen(world.ctx, world.actors["alice"], sha256, place) for place in range(drawn)]


@pytest.mark.parametrize(
    ("rows", "units"),
    [
        (b'{"text": "only one"}\n', 1),
        (b'{"text": "same"}\n' * 30, 30),
        (b'{"prompt": "p", "completion": "c"}\n' * 5, 5),
        (b'{"instruction": "i", "output": "o"}\n' * 5, 5),
        (b'{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}\n', 1),
        (json.dumps({"text": "\x00\x01\x1b[31m \u202e \U0001f600"}).encode(), 1),
    ],
)
def test_rows_of_any_format_can_be_audited(world: World, rows: bytes, units: int) -> None:
    sha256 = bring(world, rows)
    start(world, sha256, max_wrong=0.1)
    assert status(world, sha256).audit.units == units
    label_all(world, sha256, [CORRECT] * units)
    found = status(world, sha256)
    assert audit_rating.next_screen(world.ctx, world.actors["alice"], sha256) is None
    assert found.words == f"audit: 0 % wrong (0–0 %), {units} row{'s' * (units > 1)}, limit 10 %: pass"


def test_a_csv_and_a_long_answer_are_read_within_limits(world: World) -> None:
    """Guard: without the maximum, one long answer would make a page of megabytes."""
    sha256 = bring(world, b"prompt,completion\n" + b'"p, q","%s"\n' % (b"long " * 9_000), name="rows.csv")
    start(world, sha256)
    before, answer = screen(world, sha256).turns
    assert (before.text, before.cut) == ("p, q", 0)
    assert (len(answer.text), answer.cut) == (16_000, 29_000)


def test_a_large_file_is_read_in_a_process_of_its_own(world: World) -> None:
    sha256 = bring(world, conversations(3_000))
    assert start(world, sha256).units == 3_000
    assert screen(world, sha256).turns[1].text.startswith("Answer ")


def test_a_member_who_votes_twice_changes_the_vote(world: World) -> None:
    """Guard: without the member in the key of a label, a double click would be a second rater."""
    sha256 = bring(world)
    start(world, sha256)
    place = label(world, sha256, CORRECT, note="  seen ", source="https://example.org/a")
    label(world, sha256, WRONG, place=place)
    label(world, sha256, WRONG, place=place)
    found = status(world, sha256)
    assert (found.labelled, found.agreement.units, found.estimate.wrong.value) == (1, 0, 1.0)
    seen = audit_rating.screen(world.ctx, world.actors["alice"], sha256, place)
    assert seen.label is not None
    assert seen.label.label is WRONG
    assert screen(world, sha256).previous == place


def test_a_second_member_labels_a_fifth_of_the_rows_again(world: World) -> None:
    """Guard: labels of others are not shown to a rater."""
    sha256 = bring(world)
    bring(world, who="bob")
    start(world, sha256)
    label_all(world, sha256, [CORRECT] * 60)
    world.clock.tick(3_600)
    twice = []
    while (seen := audit_rating.next_screen(world.ctx, world.actors["bob"], sha256)) is not None:
        assert seen.label is None
        assert seen.twice
        twice.append(seen.place)
        label(world, sha256, WRONG if len(twice) == 1 else CORRECT, "bob", seen.place)
    found = status(world, sha256)
    assert 4 <= len(twice) <= 22
    assert (found.agreement.units, found.agreement.equal) == (len(twice), len(twice) - 1)
    assert (found.estimate.unsure, found.estimate.decided) == (1, 59)
    assert found.agreement.alpha is not None


def test_two_members_at_once_get_different_rows(world: World) -> None:
    """Guard: without turns both labelled the same rows, and half of the work was lost."""
    sha256 = bring(world)
    bring(world, who="bob")
    start(world, sha256)
    label(world, sha256, CORRECT)
    label(world, sha256, CORRECT, "bob", 1)
    for _ in range(10):
        pair = [screen(world, sha256, who) for who in ("alice", "bob")]
        assert pair[0].place != pair[1].place
        for who, seen in zip(("alice", "bob"), pair, strict=True):
            label(world, sha256, CORRECT, who, seen.place)
    found = status(world, sha256)
    assert found.labelled + found.agreement.units == 22
    assert found.agreement.units <= sum(seen.twice for seen in _screens(world, sha256)[:20])


def test_two_labels_at_the_same_moment_both_count(world: World) -> None:
    """Guard: without the lock on the audit, one of the counts was overwritten."""
    sha256 = bring(world)
    bring(world, who="bob")
    start(world, sha256)
    threads = [
        threading.Thread(target=label, args=(world, sha256, CORRECT, who, place))
        for place in range(8)
        for who in (("alice", "bob")[place % 2],)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status(world, sha256).estimate.decided == 8


def test_a_limit_is_decided_and_the_rows_to_come_are_told(world: World) -> None:
    sha256 = bring(world, conversations(2_000))
    start(world, sha256, max_wrong=0.1)
    label_all(world, sha256, [CORRECT] * 20)
    standing = status(world, sha256).standing
    assert standing is not None
    assert standing.decision is Decision.OPEN
    assert standing.more
    label_all(world, sha256, [WRONG] * 12)
    found = status(world, sha256)
    assert found.standing is not None
    assert found.standing.decision is Decision.FAIL
    assert found.words.endswith(", limit 10 %: fail")


def test_a_strangers_audit_is_as_if_it_were_not_there(world: World) -> None:
    """Guard: a sha256 is printed in model cards and gives no right to read rows or labels."""
    sha256 = bring(world)
    start(world, sha256)
    bob = world.actors["bob"]
    for call in (
        lambda: start(world, sha256, "bob"),
        lambda: status(world, sha256, "bob"),
        lambda: audit_rating.next_screen(world.ctx, bob, sha256),
        lambda: audit_rating.screen(world.ctx, bob, sha256, 0),
        lambda: audit_rating.give(world.ctx, bob, sha256, 0, unit="0.1", label=CORRECT),
        lambda: audits.draw_more(world.ctx, bob, sha256),
        lambda: export(world.ctx, bob, sha256),
    ):
        with pytest.raises(NotFoundError, match="There is no dataset"):
            call()


def test_labels_stay_and_texts_go_when_the_data_is_deleted(world: World) -> None:
    """Guards: without `empty_units` the rows stayed in the database; without `require_data` a vote was taken on rows
    that are gone."""
    sha256 = bring(world)
    start(world, sha256)
    seen = screen(world, sha256)
    label_all(world, sha256, [WRONG, CORRECT])
    delete_dataset(world.ctx, world.actors["alice"], sha256)
    with world.ctx.uow() as tx:
        assert all(tx.audits.unit(sha256, place).content == "" for place in range(60))  # pyright: ignore[reportOptionalMemberAccess]
    found = status(world, sha256)
    assert (found.has_data, found.labelled, found.can_draw) == (False, 2, False)
    assert len(export(world.ctx, world.actors["alice"], sha256)) == 2
    for call in (
        lambda: audit_rating.next_screen(world.ctx, world.actors["alice"], sha256),
        lambda: audit_rating.give(world.ctx, world.actors["alice"], sha256, 5, unit=seen.unit, label=CORRECT),
    ):
        with pytest.raises(ConflictError, match=r"was deleted\. Its labels are kept\. Upload the same file again"):
            call()
    bring(world)
    again = audit_rating.screen(world.ctx, world.actors["alice"], sha256, seen.place)
    assert again.turns == seen.turns
    assert status(world, sha256).labelled == 2


def test_a_vote_on_an_audit_that_was_started_again_is_refused(world: World) -> None:
    """Guard: the vote of an old page would count for another row."""
    sha256 = bring(world)
    start(world, sha256)
    old = screen(world, sha256)
    start(world, sha256, strata=StrataKind.SOURCE)
    assert screen(world, sha256).unit != old.unit
    with pytest.raises(ConflictError, match="started again since this row was opened"):
        audit_rating.give(world.ctx, world.actors["alice"], sha256, 0, unit=old.unit, label=CORRECT)
    with pytest.raises(NotFoundError, match="no row 99"):
        audit_rating.screen(world.ctx, world.actors["alice"], sha256, 98)


def test_units_of_another_order_are_never_mixed_in(world: World) -> None:
    """Guards: without the comparison in `add`, two members who start at once would share units of two orders; without
    `_is_same`, rows that were drawn while the audit was started again would be added to it."""
    sha256 = bring(world)
    audit = start(world, sha256)
    other = replace(audit, seed=8)
    with world.ctx.uow() as tx:
        assert tx.audits.add(audit)
        assert not tx.audits.add(other)
        with pytest.raises(ConflictError, match="has just changed"):
            audits.keep(tx, other, Drawn(strata={}, units=()))


def test_more_rows_extend_the_sample(world: World) -> None:
    """Guard: a larger sample that began with other rows would throw labels away."""
    sha256 = bring(world, conversations(900))
    start(world, sha256)
    before = [seen.unit for seen in _screens(world, sha256)]
    assert (len(before), status(world, sha256).can_draw) == (audits.BATCH, True)
    assert audits.draw_more(world.ctx, world.actors["alice"], sha256) == 800
    assert audits.draw_more(world.ctx, world.actors["alice"], sha256) == 900
    with world.ctx.uow() as tx:
        units = tx.audits.units(sha256)
    assert [f"{unit.row}.{unit.turn}" for unit in units][:400] == before
    assert sorted(unit.row for unit in units) == list(range(900))
    with pytest.raises(ConflictError, match="drawn already"):
        audits.draw_more(world.ctx, world.actors["alice"], sha256)


def test_an_export_has_each_label_once(world: World) -> None:
    """Guard: PostgreSQL cannot store the NUL character of a note."""
    sha256 = bring(world)
    bring(world, who="bob")
    start(world, sha256)
    label(world, sha256, WRONG, note="=1+1\0", source="https://example.org")
    label(world, sha256, CORRECT, "bob", 0)
    first, second = export(world.ctx, world.actors["bob"], sha256)
    assert (first.rater, first.label, first.result, first.note) == ("alice", "wrong", "unsure", "=1+1")
    assert (second.rater, second.label, second.place) == ("bob", "correct", 1)
