"""Keys, tokens and passwords in a text. Each pattern begins with a fixed word, and its length is limited."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text that must not be shown. `is_live`: it looks like a real key."""

    begin: int
    end: int
    kind: str
    is_live: bool = False


@dataclass(frozen=True, slots=True)
class _Pattern:
    """`needles`: the text has one of them, or no match. `is_live`: a match is a key, unless it is a placeholder."""

    kind: str
    needles: tuple[str, ...]
    expression: re.Pattern[str]
    is_live: bool = True


def _pattern(kind: str, needles: str, expression: str, is_live: bool = True) -> _Pattern:
    return _Pattern(kind, tuple(needles.split()), re.compile(expression), is_live)


_TOKEN = "[A-Za-z0-9_-]"  # noqa: S105  a class of characters
PATTERNS = (
    _pattern("AWS access key", "AKIA ASIA", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    _pattern(
        "AWS secret key",
        "secret_access_key SecretAccessKey SECRET_ACCESS_KEY",
        r"(?i:secret_?access_?key)[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    ),
    _pattern("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
    _pattern("GitHub token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"),
    _pattern("GitLab token", "glpat-", rf"\bglpat-{_TOKEN}{{20,64}}"),
    _pattern("Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{34,40}\b"),
    _pattern("Slack token", "xox", r"\bxox[abeoprs]-[0-9A-Za-z-]{20,120}"),
    _pattern(
        "Slack webhook",
        "hooks.slack.com",
        r"\bhooks\.slack\.com/services/T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{24}",
    ),
    _pattern("Discord webhook", "/api/webhooks/", rf"/api/webhooks/[0-9]{{17,20}}/{_TOKEN}{{60,80}}"),
    _pattern(
        "private key",
        "PRIVATE KEY",
        r"-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY(?: BLOCK)?-----(?:(?:\s|\\n){1,4}[A-Za-z0-9+/=]{16,100}){1,200}",
    ),
    _pattern("private key", "PRIVATE KEY", r"-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY(?: BLOCK)?-----", is_live=False),
    _pattern("JWT", "eyJ", rf"\beyJ{_TOKEN}{{10,2000}}\.eyJ{_TOKEN}{{10,4000}}\.{_TOKEN}{{20,1000}}"),
    _pattern("Google API key", "AIza", rf"\bAIza{_TOKEN}{{35}}"),
    _pattern("Google client secret", "GOCSPX-", rf"\bGOCSPX-{_TOKEN}{{28}}"),
    _pattern("Anthropic key", "sk-ant-", rf"\bsk-ant-[a-z0-9]{{2,10}}-{_TOKEN}{{80,120}}"),
    _pattern("OpenAI key", "T3BlbkFJ", rf"\bsk-(?={_TOKEN}{{0,112}}T3BlbkFJ){_TOKEN}{{20,120}}"),
    _pattern("OpenAI key", "sk-", r"\bsk-[A-Za-z0-9]{48}\b"),
    _pattern("Stripe key", "k_live_", r"\b[sr]k_live_[0-9A-Za-z]{24,99}"),
    _pattern("Twilio key", "SK", r"\bSK[0-9a-f]{32}\b"),
    _pattern("SendGrid key", "SG.", rf"\bSG\.{_TOKEN}{{22}}\.{_TOKEN}{{43}}"),
    _pattern("npm token", "npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
    _pattern("PyPI token", "pypi-AgE", rf"\bpypi-AgE{_TOKEN}{{50,250}}"),
    _pattern("Azure storage key", "AccountKey=", r"\bAccountKey=[A-Za-z0-9+/]{86}=="),
    _pattern("Telegram token", ":AA", rf"\b[0-9]{{8,10}}:AA{_TOKEN}{{33}}(?![A-Za-z0-9_-])"),
    _pattern("Shopify token", "shpat_ shpca_ shppa_ shpss_", r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}\b"),
    _pattern("DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", r"\bdo[por]_v1_[a-f0-9]{64}\b"),
    _pattern("Databricks token", "dapi", r"\bdapi[a-f0-9]{32}\b"),
    _pattern("Weights & Biases key", "WANDB_API_KEY", r"\bWANDB_API_KEY[\"']?\s{0,3}[=:]\s{0,3}[\"']?[0-9a-f]{40}"),
    _pattern("Stripe test key", "k_test_", r"\b[sr]k_test_[0-9A-Za-z]{24,99}", is_live=False),
    _pattern(
        "password in an address",
        "://",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:[^\s/:@]{3,64}@[A-Za-z0-9]",
        is_live=False,
    ),
    _pattern(
        "password",
        "password Password PASSWORD passwd pwd secret Secret SECRET api_key apikey API_KEY apiKey token Token TOKEN",
        r"(?i:password|passwd|pwd|secret|api_?key|token)[\"']?\s{0,3}(?:=|:)\s{0,3}[\"'][^\s\"']{8,64}[\"']",
        is_live=False,
    ),
)
_BY_NEEDLE = [(needle, pattern) for pattern in PATTERNS for needle in pattern.needles]
_PLACEHOLDER = re.compile(
    r"(?i)example|sample|placeholder|your|dummy|fake|redacted|changeme|xxxx|\*\*\*\*|\.\.\.|0000000|1234567"
)
LEAST_BITS = 2.8
"""Per character. Random hexadecimal digits have more, words and repeated signs less."""


def credentials(text: str) -> Iterator[Span]:
    """Where keys, tokens and passwords are. A part of one that looks real is not named again."""
    found = list(_matches(text))
    live = [span for span in found if span.is_live]
    for span in found:
        if span.is_live or not any(each.begin <= span.begin < each.end for each in live):
            yield span


def _matches(text: str) -> Iterator[Span]:
    for pattern in _possible(text):
        for match in pattern.expression.finditer(text):
            yield Span(match.start(), match.end(), pattern.kind, pattern.is_live and _may_work(match[0]))


def _possible(text: str) -> list[_Pattern]:
    found: dict[int, _Pattern] = {}
    for needle, pattern in _BY_NEEDLE:
        if needle in text:
            found[id(pattern)] = pattern
    return list(found.values())


def _may_work(key: str) -> bool:
    return not _PLACEHOLDER.search(key) and _bits(key[-64:]) >= LEAST_BITS


def _bits(text: str) -> float:
    """Bits per character by their frequency."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
