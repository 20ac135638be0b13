"""treadle: keeps machine-learning models alive.

>>> import treadle
>>> loop = treadle.Loop.load("loops/flights.yaml")        # doctest: +SKIP
>>> run = treadle.run(loop, as_of="2013-04-01")           # doctest: +SKIP
>>> run.verdict.decision                                  # doctest: +SKIP
'promote'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.errors import TreadleError as TreadleError
    from treadle.loop import Loop as Loop
    from treadle.runner import run as run
    from treadle.runner import watch as watch
    from treadle.session import Run as Run

_WHERE = {
    "Loop": "treadle.loop",
    "Run": "treadle.session",
    "TreadleError": "treadle.errors",
    "run": "treadle.runner",
    "watch": "treadle.runner",
}
__all__ = ["Loop", "Run", "TreadleError", "run", "watch"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'treadle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
