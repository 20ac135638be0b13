"""How treadle says counts, sums of money, lengths of time and shares, so that one is never `1 errors`."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

_UNITS = (
    (timedelta(days=365.25), "year", 730),
    (timedelta(days=1), "day", 2),
    (timedelta(hours=1), "hour", 1 / 12),
    (timedelta(minutes=1), "minute", 2 / 1440),
)


def counted(count: float, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "error"), counted(4983, "answer"), counted(2, "entry", "entries"), counted(1.0, "core")
    ('1 error', '4,983 answers', '2 entries', '1 core')
    """
    told = f"{count:,}" if isinstance(count, int) else f"{count:,g}"
    return f"{told} {noun if count == 1 else plural or noun + 's'}"


def money(usd: float) -> str:
    """A sum in US dollars: to the cent, and below a cent with three digits that count, so that only 0 looks like 0.

    >>> money(1234.5), money(0.8048), money(0.00012345), money(0)
    ('1,234.50', '0.80', '0.000123', '0.00')
    """
    if not usd or abs(usd) >= 0.01:
        return f"{usd:,.2f}"
    told = f"{usd:.{2 - math.floor(math.log10(abs(usd)))}f}"
    return told.rstrip("0")


def rate(usd: float) -> str:
    """A price, with every digit that it was given with up to the ninth after the point.

    >>> rate(0.8048), rate(63.296), rate(2), rate(0.00001), rate(1_000_000)
    ('0.8048', '63.296', '2', '0.00001', '1,000,000')
    """
    return f"{usd:,.9f}".rstrip("0").rstrip(".")


def sentence(words: str) -> str:
    """Words with a full stop, unless they end a sentence already.

    >>> sentence("it is empty"), sentence("did you mean 'cpu'?")
    ('it is empty.', "did you mean 'cpu'?")
    """
    return words if words.endswith((".", "?", "!")) else f"{words}."


def lasting(length: timedelta) -> str:
    """A length of time as a person says it, in one unit; rounded, so not for reading back.

    >>> lasting(timedelta(seconds=82639218)), lasting(timedelta(days=14)), lasting(timedelta(minutes=90))
    ('2.6 years', '14 days', '90 minutes')
    """
    days = length / timedelta(days=1)
    for unit, noun, least_days in _UNITS:
        if days >= least_days:
            amount = length / unit
            text = f"{amount:.1f}" if amount < 10 else f"{amount:.0f}"
            text = text.removesuffix(".0")
            return f"{text} {noun if text == '1' else noun + 's'}"
    return counted(round(length.total_seconds()), "second")


def portion(share: float) -> str:
    """A share in whole percent; what is more than nothing is never 0%.

    >>> portion(0.2), portion(0.001), portion(0)
    ('20%', 'less than 1%', '0%')
    """
    return "less than 1%" if 0 < share < 0.005 else f"{share:.0%}"


def percents(share: float, limit: float) -> tuple[str, str]:
    """Two shares in percent, with as many digits as it takes to tell them apart if they differ.

    >>> percents(0.3, 0.3), percents(0.296, 0.3), percents(1 / 3, 0.3)
    (('30%', '30%'), ('29.6%', '30.0%'), ('33%', '30%'))
    """
    return apart(share, limit, "%", 0)


def apart(value: float, limit: float, form: str = "f", least: int = 3) -> tuple[str, str]:
    """Two numbers, with as many digits beyond `least` as it takes to tell them apart if they differ.

    >>> apart(0.0684, 0.068), apart(0.07, 0.068)
    (('0.0684', '0.0680'), ('0.070', '0.068'))
    """
    told = ("", "")
    for digits in range(least, least + 7):
        told = f"{value:.{digits}{form}}", f"{limit:.{digits}{form}}"
        if value == limit or told[0] != told[1]:
            break
    return told


def short(digest: str | None) -> str:
    """The name of a model or record in what a person reads: the first 12 characters."""
    return digest[:12] if digest else "none"


def moment(instant: datetime) -> str:
    """A date, with the time where it is not midnight in UTC."""
    return instant.strftime("%Y-%m-%d" if instant.time() == datetime.min.time() else "%Y-%m-%d %H:%M")
