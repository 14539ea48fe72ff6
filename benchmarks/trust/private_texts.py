"""Made-up keys and personal data with valid forms and check sums."""

from __future__ import annotations

import base64
import random
import string

_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_UPPER = string.ascii_uppercase + string.digits


def _of(dice: random.Random, signs: str, length: int) -> str:
    return "".join(dice.choice(signs) for _ in range(length))


def key(dice: random.Random, kind: int) -> str:
    """One of 20 kinds of keys."""
    block = base64.b64encode(bytes(dice.randrange(256) for _ in range(288))).decode()
    lines = "\n".join(block[at : at + 64] for at in range(0, len(block), 64))
    token = base64.urlsafe_b64encode(bytes(dice.randrange(256) for _ in range(48))).decode()
    makers = (
        lambda: f"AKIA{_of(dice, _UPPER, 16)}",
        lambda: f"ghp_{_of(dice, _ALNUM, 36)}",
        lambda: f"github_pat_{_of(dice, _ALNUM, 22)}_{_of(dice, _ALNUM, 59)}",
        lambda: f"glpat-{_of(dice, _ALNUM, 20)}",
        lambda: f"hf_{_of(dice, string.ascii_letters, 34)}",
        lambda: f"xoxb-{_of(dice, string.digits, 12)}-{_of(dice, string.digits, 12)}-{_of(dice, _ALNUM, 24)}",
        lambda: (
            f"https://hooks.slack.com/services/T{_of(dice, _UPPER, 9)}/B{_of(dice, _UPPER, 9)}/{_of(dice, _ALNUM, 24)}"
        ),
        lambda: f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----",
        lambda: f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI{_of(dice, _ALNUM, 24)}.{token[:43]}",
        lambda: f"AIza{_of(dice, _ALNUM, 35)}",
        lambda: f"sk-ant-api03-{_of(dice, _ALNUM, 93)}AA",
        lambda: f"sk-proj-{_of(dice, _ALNUM, 40)}T3BlbkFJ{_of(dice, _ALNUM, 40)}",
        lambda: f"sk_live_{_of(dice, _ALNUM, 24)}",
        lambda: f"SG.{_of(dice, _ALNUM, 22)}.{_of(dice, _ALNUM, 43)}",
        lambda: f"npm_{_of(dice, _ALNUM, 36)}",
        lambda: f"AccountKey={_of(dice, _ALNUM, 86)}==",
        lambda: f"{dice.randint(10**8, 10**9)}:AA{_of(dice, _ALNUM, 33)}",
        lambda: f"shpat_{_of(dice, _HEX, 32)}",
        lambda: f"dop_v1_{_of(dice, _HEX, 64)}",
        lambda: f"aws_secret_access_key = {_of(dice, _ALNUM, 40)}",
    )
    return makers[kind % len(makers)]()


def person(dice: random.Random, kind: int) -> str:
    """One of eight kinds of personal data."""
    makers = (
        lambda: f"{_name(dice)}.{_name(dice)}@{_name(dice)}-mail.org",
        lambda: (
            f"+{dice.choice((44, 91))} {dice.randint(200, 989)} {dice.randint(200, 899)} {dice.randint(1000, 9899)}"
        ),
        lambda: f"({dice.randint(201, 989)}) {dice.randint(201, 554)}-{dice.randint(1000, 9999)}",
        lambda: f"{dice.randint(60, 99)}.{dice.randint(20, 250)}.{dice.randint(20, 250)}.{dice.randint(20, 250)}",
        lambda: _card(dice),
        lambda: _iban(dice),
        lambda: _dni(dice),
        lambda: _cpf(dice),
    )
    return makers[kind % len(makers)]()


def _name(dice: random.Random) -> str:
    return _of(dice, "bdfgklmnprst", 1) + _of(dice, "aeiou", 1) + _of(dice, "lmnrst", 1) + _of(dice, "aeiou", 1)


def _card(dice: random.Random) -> str:
    start = "4" + _of(dice, string.digits, 14)
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(start)]
    total = sum(d // 10 + d % 10 for d in doubled)
    number = start + str(-total % 10)
    return " ".join(number[at : at + 4] for at in range(0, 16, 4))


def _iban(dice: random.Random) -> str:
    account = _of(dice, string.digits, 18)
    plain = f"DE{98 - int(account + '131400') % 97:02d}{account}"
    return " ".join(plain[at : at + 4] for at in range(0, len(plain), 4))


def _dni(dice: random.Random) -> str:
    number = dice.randint(10_000_000, 99_999_999)
    return f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def _cpf(dice: random.Random) -> str:
    number = [dice.randrange(10) for _ in range(9)]
    for _ in range(2):
        rest = sum(d * f for d, f in zip(number, range(len(number) + 1, 1, -1), strict=True)) % 11
        number.append(0 if rest < 2 else 11 - rest)
    text = "".join(map(str, number))
    return f"{text[:3]}.{text[3:6]}.{text[6:9]}-{text[9:]}"
