"""Check sums of numbers that identify a person, an account or a card."""

from __future__ import annotations

from datetime import date

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PT": 25,
    "RO": 24, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip
_VERHOEFF_PRODUCT = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_VERHOEFF_PLACE = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip
_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_ODD = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)) | dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)


def digits(text: str) -> str:
    """Only the digits."""
    return "".join(sign for sign in text if "0" <= sign <= "9")


def luhn(number: str) -> bool:
    """The sum of cards (ISO/IEC 7812)."""
    total = 0
    for place, sign in enumerate(reversed(number)):
        value = int(sign) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """An account number with the length of its country and the sum of ISO 13616."""
    plain = text.replace(" ", "")
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def verhoeff(number: str) -> bool:
    """The sum of Indian Aadhaar numbers."""
    check = 0
    for place, sign in enumerate(reversed(number)):
        check = int(_VERHOEFF_PRODUCT[check][int(_VERHOEFF_PLACE[place % 8][int(sign)])])
    return check == 0


def cpf(number: str) -> bool:
    """The two sums of a Brazilian CPF of 11 digits."""
    if len(set(number)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(sign) * (length + 1 - place) for place, sign in enumerate(number[:length]))
        if int(number[length]) != total * 10 % 11 % 10:
            return False
    return True


def dni(text: str) -> bool:
    """The letter of a Spanish DNI or NIE."""
    plain = text.replace("-", "").upper()
    return _DNI[int(str("XYZ".find(plain[0])) + plain[1:-1] if plain[0] in "XYZ" else plain[:-1]) % 23] == plain[-1]


def nir(number: str) -> bool:
    """The sum of a French social security number of 15 digits."""
    return number[0] in "12" and 1 <= int(number[3:5]) <= 12 and 97 - int(number[:13]) % 97 == int(number[13:])


def pesel(number: str) -> bool:
    """The date and the sum of a Polish PESEL of 11 digits."""
    month, century = int(number[2:4]) % 20, {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[int(number[2:4]) // 20]
    total = sum(int(sign) * factor for sign, factor in zip(number, (1, 3, 7, 9) * 2 + (1, 3), strict=False))
    return _is_date(century + int(number[:2]), month, int(number[4:6])) and (10 - total % 10) % 10 == int(number[10])


def resident_id(text: str) -> bool:
    """The date and the sum of a Chinese resident number of 18 signs."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(sign) * weight for sign, weight in zip(text, weights, strict=False))
    born = _is_date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    return born and "10X98765432"[total % 11] == text[17].upper()


def codice_fiscale(text: str) -> bool:
    """The last letter of an Italian tax code of 16 signs."""
    total = sum(
        _ODD[sign] if place % 2 == 0 else int(sign, 36) - 10 * sign.isalpha() for place, sign in enumerate(text[:15])
    )
    return chr(ord("A") + total % 26) == text[15]


def ssn(text: str) -> bool:
    """The areas that are given out of a US social security number. It has no sum."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
