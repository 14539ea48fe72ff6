"""Names and texts keep the field's terms: words that only this project understood do not come back."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.entrypoints.cli.main import app as command_line
from orchestrator.entrypoints.http.app import make_app

ROOT = Path(__file__).parent.parent
FOLDERS = ("orchestrator", "trainhop", "worker", "benchmarks")
REPLACED = {
    "Answer": "MailboxReply",
    "Aside": "SingleFlight",
    "Asked": "a noun with Create or Update",
    "Book": "ChannelRepository",
    "Caller": "CurrentUser",
    "Carrier": "Notifier",
    "Checked": "SupportsCheck",
    "Clerk": "WriteBatcher",
    "Documents": "SupportsDocuments",
    "EARLY": "OUT_OF_ORDER",
    "Ear": "LogReader",
    "Fate": "ApplyResult",
    "Followed": "SupportsLogs",
    "Guesses": "RateLimit",
    "Heard": "Applied",
    "Here": "ServerDep",
    "KaggleSaid": "KaggleError",
    "LATER": "RETRY",
    "Leftovers": "SessionOutput",
    "Letter": "MailboxRequest",
    "LetterStore": "MailboxStore",
    "Letters": "MailboxPoller",
    "Match": "Placement",
    "Named": "SupportsIdentity",
    "NoticeBook": "ChannelRepository",
    "Obstacle": "Blocker",
    "Office": "NotificationContext",
    "Owned": "SupportsOwner",
    "Pace": "StepTime",
    "PageViews": "DashboardQueries",
    "Postman": "MailboxPoller",
    "Pulse": "EventNotifier",
    "Room": "Capacity",
    "Rules": "Limits",
    "Tally": "Metrics",
    "TokenInfo": "Token",
    "Views": "Queries",
    "WebCarrier": "Notifier",
    "Whose": "OwnerFilter",
    "add_lease": "tx.leases.add",
    "as_waiting": "to_pending",
    "at_hand": "local",
    "bodies": "requests",
    "book": "channels",
    "cannot_call": "is_offline",
    "carrier": "notifier",
    "clerk": "write_batcher",
    "course": "estimate_sessions",
    "deaf": "offline",
    "deps": "dependencies",
    "fall_back": "roll_back_head",
    "far": "offline",
    "first_pace": "first_step_time",
    "fit": "memory_estimate",
    "gate": "middleware",
    "give_back": "release",
    "goodbye": "release",
    "guesses": "rate_limit",
    "hand_back": "release_lease",
    "hold_job": "tx.jobs.get_for_update",
    "hold_member": "tx.members.get_for_share",
    "insist_on_determinism": "require_deterministic_kernels",
    "intake": "worker_messages",
    "kit": "offline_bundle",
    "lease_out": "create_lease",
    "letter": "message",
    "letter_store": "mailbox_store",
    "letters": "mailbox",
    "lock_job": "tx.jobs.get_for_update",
    "lock_member": "tx.members.get_for_update",
    "lock_members": "tx.members.get_for_update",
    "look_around": "check_alerts",
    "networks": "private_networks",
    "notice_ports": "ports.notifications",
    "office": "notification_context",
    "one_way": "offline",
    "pace": "step_time",
    "page_views": "dashboard_queries",
    "persistence": "ports.repository",
    "postman": "mailbox_poller",
    "pulse": "event_notifier",
    "save_job": "tx.jobs.save",
    "save_lease": "tx.leases.save",
    "shut": "closed_reason",
    "statements": "compiled_sql",
    "survey": "list_capacity",
    "tally": "metrics",
    "tidying": "retention",
    "typical_pace": "typical_step_time",
    "undisturbed": "evaluation_mode",
}
"""Names of earlier versions with the names of today. Ordinary English words that are still used are left out."""
OLD_LIMITS = re.compile(r"_?(MOST|LONGEST|LARGEST)_[A-Z_]+")


def test_no_replaced_name_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string} is {REPLACED.get(token.string, 'MAX_…')} now"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME and (token.string in REPLACED or OLD_LIMITS.fullmatch(token.string))
    ]
    assert not found


UNCLEAR = (
    r"vanish\w*",
    r"(no|any|every|some)body",
    r"who(ever|se)",
    r"for (ever|good)",
    r"(goes|go|went|going) on",
    r"(?<!there )(is|are) no (?!longer)\w+",
    r"(no|any) more(?= *[.;,])",
    r"(be|had) had",
    r"at hand",
    r"anew",
    r"in words",
    r"lies|lay",
    r"brought",
    r"(be|are|is|were|was) (told|asked)",
    r"heard of",
    r"tell me",
    r"told of",
    r"(he|it|server|provider|token|what it|machine) says",
    r"what (was )?asked",
    r"(give|hand|take)s? back",
    r"given back|handed back|taken back",
    r"handed over",
    r"let(s|ting)? (a person|in|somebody)",
    r"put(s|ting)? right",
    r"last word",
    r"goodbye",
    r"stands for",
    r"ha(s|ve) room",
    r"(try|tries|tried|trying) \w* ?\w* out",
    r"out of reach",
    r"on the way",
    r"safe point",
    r"sealed",
    r"so many",
    r"useless",
    r"time (is|was) (up|over)",
    r"you are needed",
    r"here for",
    r"make a token",
    r"here and now",
    r"learns to",
    r"one a line",
    r"is an? '\w+' row",
)
"""Phrases of older texts that readers had to guess, as regular expressions over whole words."""
_FOUND = re.compile(rf"(?<![\w'-])(?:{'|'.join(UNCLEAR)})(?!\w)", re.IGNORECASE)
GENERATED_FROM_MODULES = "map.md"
"""The first line of every module: text for developers."""


def _commands(command: Any, path: str = "trainhop") -> Iterator[tuple[str, str]]:
    """The help of every command and of its parameters."""
    yield path, "\n".join(filter(None, [command.help, command.epilog, *(p.help for p in _helped(command))]))
    for name, part in getattr(command, "commands", {}).items():
        yield from _commands(part, f"{path} {name}")


def _helped(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if getattr(parameter, "help", None)]


def _pages() -> Iterator[tuple[str, str]]:
    folder = ROOT / "orchestrator" / "entrypoints"
    for path in [*sorted((folder / "templates").glob("*.html")), *sorted((folder / "static").glob("*.js"))]:
        yield path.name, re.sub(r"\{#.*?#\}", "", path.read_text())
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path.name != GENERATED_FROM_MODULES:
            yield str(path.relative_to(ROOT)), path.read_text()


def _found(texts: Iterator[tuple[str, str]]) -> list[str]:
    return [
        f"{name}: {match[0]!r} in {line.strip()[:160]}"
        for name, text in texts
        for line in text.splitlines()
        for match in _FOUND.finditer(line)
    ]


def test_pages_and_docs_are_in_plain_english() -> None:
    assert not _found(_pages())


def test_the_command_lines_help_is_in_plain_english() -> None:
    assert not _found(_commands(typer.main.get_command(command_line)))


def test_the_openapi_document_is_in_plain_english(tmp_path: Path) -> None:
    server = build(Settings(data_dir=tmp_path))
    try:
        document = json.dumps(make_app(server).openapi(), indent=1)
    finally:
        server.close()
    assert not _found(iter([("openapi.json", document)]))


def _messages() -> Iterator[tuple[str, str]]:
    """Texts of at least three words in string literals, without docstrings: errors, notes and notifications."""
    for path in [path for folder in ("orchestrator", "worker") for path in sorted((ROOT / folder).rglob("*.py"))]:
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
            if isinstance(text, str) and text.count(" ") > 1:
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", text


def test_messages_are_in_plain_english() -> None:
    assert not _found(_messages())


def test_an_unclear_phrase_is_found() -> None:
    texts = ["machines that vanish", "The job goes on elsewhere.", "Let somebody in", "It is no OAuth client."]
    assert [len(_found(iter([("a", text)]))) > 0 for text in texts] == [True] * len(texts)
    assert not _found(iter([("a", "The token is no longer valid. Two more sessions."), ("b", "The job is running.")]))
