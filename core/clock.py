"""Time in treadle: durations such as `14d`, instants in UTC, and `as_of`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def parse_duration(text: str) -> timedelta:
    """The length that `90d`, `12h`, `30m`, `2w` or `10s` means.

    Raises:
        ValueError: Anything else, or nothing at all.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([wdhms])\s*", text)
    if not match:
        raise ValueError(f"{text!r} is not a duration: write a whole number and w, d, h, m or s, such as 14d")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ValueError(f"{text!r} is longer than any time can be: write something such as 14d") from None


def format_duration(length: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as `length`."""
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def parse_instant(value: str | date | datetime) -> datetime:
    """An instant in UTC from `2013-04-01`, `2013-04-01T06:00`, a date or a datetime; a naive one counts as UTC.

    Raises:
        ValueError: The text is no ISO 8601 date or time.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is not a date or time: write it as 2013-04-01 or 2013-04-01T06:00Z"
            ) from None
    if not isinstance(value, date):
        raise ValueError(f"{value!r} is not a date or time: write it as 2013-04-01 or 2013-04-01T06:00Z")
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def format_instant(instant: datetime) -> str:
    """ISO 8601 in UTC with a Z; seconds always, fractions only where there are any."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def today() -> datetime:
    """Now, cut to the day in UTC: the default `as_of`."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
