"""How the gate says numbers: short, signed where the sign matters, blocks as days where they are days."""

from __future__ import annotations

from datetime import timedelta

from treadle.clock import format_duration
from treadle.words import counted


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def number_apart(value: float, limit: float) -> str:
    """As `number`, with as many digits more as it takes to tell a value from a limit that it isn't."""
    return f"{value:.{_digits_apart(value, limit, 4)}g}"


def signed(value: float) -> str:
    """Three significant digits with the sign."""
    return f"{value:+.3g}"


def signed_apart(value: float, limit: float) -> str:
    """As `signed`, with as many digits more as it takes to tell a value from a limit that it isn't."""
    return f"{value:+.{_digits_apart(value, limit, 3)}g}"


def _digits_apart(value: float, limit: float, least: int) -> int:
    digits = least
    while digits < 12 and value != limit and f"{value:.{digits}g}" == f"{limit:.{digits}g}":
        digits += 1
    return digits


def probability(value: float) -> str:
    """A p value: never a bare zero."""
    return "p below 0.0001" if value < 1e-4 else f"p {value:.2g}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.3g} %"


def blocks_of(count: int, block: timedelta) -> str:
    """Such as `14 days`, or `28 blocks of 12h`."""
    if block == timedelta(days=1):
        return counted(count, "day")
    return f"{counted(count, 'block')} of {format_duration(block)}"
