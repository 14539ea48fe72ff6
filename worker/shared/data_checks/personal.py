"""Personal data in a text: addresses of people and machines, and numbers of phones, cards, accounts and persons."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from worker.shared.data_checks import check_sums
from worker.shared.data_checks.check_sums import digits
from worker.shared.data_checks.credentials import Span

_DIGITS = re.compile(r"\d[\d .()/:-]{5,}[\dXx]")
_MAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})(?![A-Za-z0-9@])")
_RESERVED = re.compile(r"(?i)(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\d.,+-])\d(?:[ -]?\d){12,18}(?![\d])(?![.,]\d)")
_TEST_CARDS = {
    "4111111111111111", "4242424242424242", "4012888888881881", "5555555555554444", "5105105105105100",
    "378282246310005", "371449635398431", "6011111111111117", "30569309025904", "3530111333300000",
}  # fmt: skip
_PHONES = (
    re.compile(r"(?<![\w.+])(?<!\d[ -])(?:\+|00)[1-9][\d ./()-]{5,24}\d(?!\w)"),
    re.compile(r"(?<![\w.+-])(?<!\d[ -])\(?[2-9]\d{2}\)?[ .-] ?[2-9]\d{2}[ .-]\d{4}(?![\w-])"),
    re.compile(r"(?<![\w.+-])(?<!\d[ -])\(?0[1-9]\d{1,4}\)?[ /-][\d /-]{4,14}\d(?![\w-])"),
)
_IP4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::?[0-9A-Fa-f]{1,4}){1,5}(?![\w:])")
_KNOWN_HOSTS = {"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"}
_Sum = Callable[[str], bool]
_NUMBERS: tuple[tuple[str, re.Pattern[str], _Sum], ...] = (
    ("Aadhaar number", re.compile(r"(?<![\d-])(?<!\d[ -])[2-9]\d{3}[ -]\d{4}[ -]\d{4}(?![\d]|[ -]\d)"),
     lambda t: check_sums.verhoeff(digits(t))),
    ("CPF", re.compile(r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)"), lambda t: check_sums.cpf(digits(t))),
    ("DNI", re.compile(r"(?<![\w-])(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z](?![\w-])"), check_sums.dni),
    ("social security number", re.compile(r"(?<![\w-])[12] ?\d{2} ?(?:0\d|1[0-2]) ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\d)"),
     lambda t: check_sums.nir(digits(t))),
    ("social security number", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), check_sums.ssn),
    ("PESEL", re.compile(r"(?<![\w.,-])\d{11}(?![\w]|[.,]\d)"), check_sums.pesel),
    ("resident number", re.compile(r"(?<![\w.,-])[1-9]\d{16}[\dXx](?![\w])"), check_sums.resident_id),
)  # fmt: skip
_TAX_CODE = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b")


def personal(text: str) -> Iterator[Span]:
    """Where personal data is. A part of the text may be in two spans."""
    if "@" in text:
        for match in _MAIL.finditer(text):
            if not _RESERVED.search(match[1]):
                yield Span(match.start(), match.end(), "e-mail address")
    if not _DIGITS.search(text):
        return
    taken: list[tuple[int, int]] = []
    for span in _numbers(text):
        if not any(span.begin < end and begin < span.end for begin, end in taken):
            taken.append((span.begin, span.end))
            yield span


def _numbers(text: str) -> Iterator[Span]:
    """The most certain kinds come first."""
    yield from _matching(text, "account number", _IBAN, check_sums.iban)
    yield from _matching(text, "tax code", _TAX_CODE, check_sums.codice_fiscale)
    for kind, expression, is_valid in _NUMBERS:
        yield from _matching(text, kind, expression, is_valid)
    yield from _matching(text, "card number", _CARD, _is_card)
    yield from _matching(text, "IP address", _IP4, _is_public)
    if text.count(":") > 3:
        yield from _matching(text, "IP address", _IP6, _is_public)
    for expression in _PHONES:
        yield from _matching(text, "phone number", expression, _is_phone)


def _matching(text: str, kind: str, expression: re.Pattern[str], is_valid: _Sum) -> Iterator[Span]:
    for match in expression.finditer(text):
        if is_valid(match[0]):
            yield Span(match.start(), match.end(), kind)


def _is_card(text: str) -> bool:
    number = digits(text)
    known = number[0] in "3456" or number[:2] in ("22", "23", "24", "25", "26", "27")
    return known and len(set(number)) > 2 and number not in _TEST_CARDS and check_sums.luhn(number)


def _is_public(text: str) -> bool:
    try:
        return text not in _KNOWN_HOSTS and ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    number = digits(text)
    # 555-0100 to 555-0199 belong to nobody.
    return 8 <= len(number) <= 15 and len(set(number)) > 2 and number[-7:-2] != "55501"
