"""Predicting on the event loop: requests that wait at the same moment share one call of the model.

A call has a fixed cost far above that of a row, so sharing it is most of what a busy server saves. Nothing
ever waits for company: the rows that arrived during one turn of the event loop are predicted in the next.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from treadle.serving.router import Variant

INLINE_ROWS = 64

Matrix = NDArray[np.float64]


class Joiner:
    """Predicts small requests together on the event loop, and large or slow ones in `pool`."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._waiting: list[tuple[Variant, Matrix, asyncio.Future[Matrix]]] = []

    async def predict(self, variant: Variant, matrix: Matrix) -> Matrix:
        """Predictions for a request's rows, bit-equal to predicting them alone."""
        loop = asyncio.get_running_loop()
        if not variant.inline or len(matrix) > INLINE_ROWS:
            return await loop.run_in_executor(self._pool, variant.predict, matrix)
        if not variant.joins:
            return variant.predict(matrix)
        future: asyncio.Future[Matrix] = loop.create_future()
        self._waiting.append((variant, matrix, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            variant = waiting[0][0]
            group = [item for item in waiting if item[0] is variant]
            waiting = [item for item in waiting if item[0] is not variant]
            _answer(variant, [matrix for _, matrix, _ in group], [future for _, _, future in group])


def _answer(variant: Variant, matrices: list[Matrix], futures: list[asyncio.Future[Matrix]]) -> None:
    """Predicts in one call; should that fail, each alone, so that no request fails for another's rows."""
    if len(matrices) > 1:
        try:
            together = variant.predict(np.concatenate(matrices))
        except Exception:
            for matrix, future in zip(matrices, futures, strict=True):
                _answer(variant, [matrix], [future])
            return
        ends = np.cumsum([len(matrix) for matrix in matrices])
        for future, part in zip(futures, np.split(together, ends[:-1]), strict=True):
            if not future.done():
                future.set_result(part)
        return
    if futures[0].done():
        return
    try:
        futures[0].set_result(variant.predict(matrices[0]))
    except Exception as error:
        futures[0].set_exception(error)
