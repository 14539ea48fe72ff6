"""Limits of a chat. Needs nothing, because the command line's help shows them."""

from __future__ import annotations

MAX_TURNS = 50
MAX_TEXT = 20_000
"""Characters of a question, of an answer that is sent again, and of a system text."""
MAX_ANSWER_TOKENS = 2_048
ANSWER_TOKENS = 256
MAX_PROMPT_TOKENS = 16_384
"""Of a conversation that is read at once, whatever the model's context."""
MAX_ANSWER_S = 300.0
"""For both answers to one question."""
MINUTES, LEAST_MINUTES, MAX_MINUTES = 20, 5, 120
"""Of a session on a machine, its start included: the usual number, and the bounds."""
IDLE_S = 300.0
"""A session without a question for so long ends, and its machine is free."""
MAX_EVENTS = 256
"""Events of one message from a machine."""
MAX_LINE_BYTES = 8 << 20
"""Of a line between a chat process and its caller. A question with all its turns may have 3 million characters."""
