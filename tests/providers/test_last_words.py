"""The one line of a session's log that tells why it failed."""

import pytest

from orchestrator.providers.last_words import MAX_WORDS, TAIL_BYTES, last_words

SEE_LOG = "cannot start: the worker ended with code 1: see the end of the session's log"
TRACEBACK = """
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    f()
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
    g()
    ~^^
peft.errors.TooOldError: torchao 0.10.0 is too old
and a second line of its message
"""


TOO_OLD = "peft.errors.TooOldError: torchao 0.10.0 is too old"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("loss: 1.0\nnote: nothing is wrong\n", ""),
        (TRACEBACK, "peft.errors.TooOldError: torchao 0.10.0 is too old"),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        ("Traceback (most recent call last):\n  cut", ""),
        ("ERROR: one\nERROR: two\n" + TRACEBACK, "ERROR: one"),
        ("ERROR: pip's dependency resolver does not currently take ...\n" + TRACEBACK, TOO_OLD),
        (TRACEBACK + "ERROR: x\ntrainhop: cannot start: no disk\ntrainhop: done\n", "cannot start: no disk"),
        (
            f"{TRACEBACK}trainhop: {SEE_LOG}\n",
            f"{SEE_LOG[: SEE_LOG.index('see')]}peft.errors.TooOldError: torchao 0.10.0 is too old",
        ),
        (f"trainhop: {SEE_LOG}\n", SEE_LOG),
        ("x" * TAIL_BYTES + "\nERROR: at the end\n", "ERROR: at the end"),
        ("ERROR: " + "y" * 1000 + "\n", ("ERROR: " + "y" * 1000)[:MAX_WORDS]),
    ],
)
def test_the_cause_is_found(tmp_path, log, words):
    (tmp_path / "output.log").write_text(log)
    assert last_words(tmp_path / "output.log") == words


def test_a_session_without_a_log_says_nothing(tmp_path):
    assert last_words(tmp_path / "output.log") == ""
