"""How the gate says numbers: short, signed where the sign matters, blocks as days where they are days."""

from __future__ import annotations

from datetime import datetime, timedelta

from treadle.clock import format_duration


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def signed(value: float) -> str:
    """Three significant digits with the sign."""
    return f"{value:+.3g}"


def signed_apart(value: float, limit: float) -> str:
    """As `signed`, with as many digits more as it takes to tell a value from a limit that it isn't."""
    digits = 3
    while digits < 12 and value != limit and f"{value:.{digits}g}" == f"{limit:.{digits}g}":
        digits += 1
    return f"{value:+.{digits}g}"


def probability(value: float) -> str:
    """A p value: never a bare zero."""
    return "p below 0.0001" if value < 1e-4 else f"p {value:.2g}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.3g} %"


def blocks_of(count: int, block: timedelta) -> str:
    """Such as `14 days`, or `28 blocks of 12h`."""
    if block == timedelta(days=1):
        return f"{count} day" if count == 1 else f"{count} days"
    return f"{count} {'block' if count == 1 else 'blocks'} of {format_duration(block)}"


def moment(instant: datetime) -> str:
    """A date, with the time where it is not midnight in UTC."""
    return instant.strftime("%Y-%m-%d" if instant.time() == datetime.min.time() else "%Y-%m-%d %H:%M")
