"""Values in a pool's `options`, read so that a wrong one is told in plain words."""

from __future__ import annotations

import math

from treadle.errors import UserError
from treadle.hardware.pools import Pool


def seconds_of(pool: Pool, option: str, default: float) -> float:
    """A pool's option that is a number of seconds.

    Raises:
        UserError: It is no number, or below 0.
    """
    value = pool.options.get(option, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(
            f"the pool {pool.name}: options.{option} is {value!r}; write a number of seconds, 0 or more, such as"
            f" {default:g}."
        )
    return float(value)
