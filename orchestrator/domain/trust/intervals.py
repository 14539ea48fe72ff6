"""Confidence intervals of 95 % for a share and for a mean difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Z95 = 1.959963984540054
CORRECTED_FROM = 0.05
"""Share of the population from which on the interval takes into account that the population is finite."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval. A share is from 0 to 1."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(value=math.nan, low=0.0, high=1.0)
"""The interval of a share of which nothing was seen."""


def effective_n(n: float, population: float) -> float:
    """Size of the sample from an infinite population that would tell as much. Infinite if all were seen."""
    if n > population:
        raise ValueError(f"A sample of {n} is larger than its population of {population}.")
    if n <= CORRECTED_FROM * population:
        return n
    return math.inf if n == population else n * (population - 1) / (population - n)


def wilson(hits: float, n: float, z: float = Z95) -> Interval:
    """Wilson's interval for a share. `hits` and `n` may be fractions, as an effective sample size is."""
    if not 0 <= hits <= n:
        raise ValueError(f"There cannot be {hits} hits among {n}.")
    if n == 0:
        return UNKNOWN
    share = hits / n
    square = z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Interval(value=share, low=low, high=high)


def wilson_of(share: float, n: float, z: float = Z95) -> Interval:
    """Wilson's interval around a share from a sample with the effective size `n`, which may be infinite."""
    return Interval(value=share, low=share, high=share) if math.isinf(n) else wilson(share * n, n, z)


def paired_t(differences: Sequence[float]) -> Interval:
    """The interval for the mean of paired differences. Raises `ValueError` for fewer than two, or one not finite."""
    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        raise ValueError("An interval needs at least two differences, all of them finite numbers.")
    mean = statistics.fmean(differences)
    half = t_quantile(0.975, n - 1) * statistics.stdev(differences, mean) / math.sqrt(n)
    return Interval(value=mean, low=mean - half, high=mean + half)


@lru_cache(maxsize=1024)
def t_quantile(share: float, freedom: int) -> float:
    """The quantile of Student's t distribution with these degrees of freedom, for `0 < share < 1`."""
    if not 0 < share < 1 or freedom < 1:
        raise ValueError("A quantile needs a share between 0 and 1 and at least one degree of freedom.")
    if share == 0.5:
        return 0.0
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, 2.0
    while _t_below(high, freedom) < share:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """Probability that Student's t is at most `t`, for `t >= 0`."""
    return 1 - _beta_share(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function."""
    if x in (0.0, 1.0):
        return x
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1 - factor * _beta_fraction(b, a, 1 - x) / b
    return factor * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by the method of Lentz."""
    c, d = 1.0, _inverse(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = _inverse(1 + numerator * d)
            c = 1 + numerator / c
            c = c if abs(c) > _TINY else _TINY
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            return result
    raise ArithmeticError("The continued fraction does not converge.")


_TINY = 1e-300


def _inverse(value: float) -> float:
    return 1 / (value if abs(value) > _TINY else _TINY)
