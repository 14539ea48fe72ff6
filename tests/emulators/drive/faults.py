"""What goes wrong, and when: by rule for tests, at random (but seeded) for benchmarks."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Rule:
    """One kind of fault for requests whose `METHOD /path?query` the pattern is found in.

    `after` requests pass first, then `times` are hit (None: for ever). `status` answers an error with a Google-shaped
    body (`reason`), or with a page if `html`; `done` carries the request out all the same, which is what makes an error
    ambiguous. `cut` closes the connection after so many bytes of the body, sent or received. `truncate` (bytes missing
    at the end) and `flip` (offset of a byte with one bit turned) damage what is stored or served. `meanwhile` runs
    before the request is carried out.
    """

    pattern: str = ""
    times: int | None = 1
    after: int = 0
    status: int | None = None
    reason: str = "backendError"
    html: bool = False
    done: bool = False
    retry_after: int | None = None
    delay_s: float = 0.0
    cut: int | None = None
    truncate: int = 0
    flip: int | None = None
    meanwhile: Callable[[], object] | None = field(default=None, compare=False)
    hits: int = field(default=0, compare=False)

    def applies(self, request: str) -> bool:
        """Whether this request is hit; counts."""
        if self.times == 0 or not re.search(self.pattern, request):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        self.hits += 1
        return True


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """Probabilities per request; the published observation is 100 inserts, 31 errors, 4 of these in truth done.

    `lag` is how many searches by name a new file may stay invisible for, `twins` how often a file of the same name
    appears beside a new one.
    """

    seed: int = 0
    errors: float = 0.31
    done: float = 0.13
    cuts: float = 0.02
    truncations: float = 0.0
    flips: float = 0.0
    twins: float = 0.0
    lag: int = 0


class Rules:
    """The rules in force; the first that applies is used, then chance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.chaos: Chaos | None = None
        self._random = random.Random()

    def add(self, *rules: Rule) -> Rule:
        """Put rules in force; returns the first."""
        with self._lock:
            self._rules.extend(rules)
        return rules[0]

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._rules.clear()
            self.chaos = None

    def unleash(self, chaos: Chaos) -> None:
        """Let chance rule."""
        with self._lock:
            self.chaos, self._random = chaos, random.Random(chaos.seed)

    def chance(self, probability: float) -> bool:
        """One throw of the seeded dice."""
        with self._lock:
            return self._random.random() < probability

    def pick(self, request: str) -> Rule:
        """What happens to this request; a rule without effect if nothing does."""
        with self._lock:
            for rule in self._rules:
                if rule.applies(request):
                    return rule
            if self.chaos is None or not re.search(r" /(upload/)?drive/", request):
                return Rule()
            return self._at_random(self.chaos, request)

    def _at_random(self, chaos: Chaos, request: str) -> Rule:
        dice = self._random
        if dice.random() < chaos.errors:
            status, reason = dice.choice(
                ((500, "internalError"), (502, "badGateway"), (503, "backendError"), (403, "userRateLimitExceeded"))
            )
            return Rule(status=status, reason=reason, done=dice.random() < chaos.done)
        rule = Rule()
        if dice.random() < chaos.cuts:
            rule.cut = dice.randrange(0, 4096)
        if request.startswith("PUT /upload"):
            rule.truncate = dice.randrange(1, 512) if dice.random() < chaos.truncations else 0
            rule.flip = dice.randrange(0, 4096) if dice.random() < chaos.flips else None
        return rule
