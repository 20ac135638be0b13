"""Requests that wait at the same moment are predicted in one call, and come out as if alone."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from serving_models import Logistic, ThreeClasses, trained, variant_of
from treadle.serving.joining import INLINE_ROWS, Joiner
from treadle.serving.router import Variant

RANDOM = np.random.default_rng(3)


def together(*requests: tuple[Variant, Any]) -> list[Any]:
    async def run() -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            joiner = Joiner(pool)
            tasks = [joiner.predict(variant, matrix) for variant, matrix in requests]
            return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def matrices(*sizes: int) -> list[Any]:
    return [np.abs(RANDOM.normal(size=(size, 4))).round(1) for size in sizes]


@pytest.mark.parametrize(
    "predictor",
    [trained(1), Logistic(), ThreeClasses(classes=("a", "b", "c"))],
    ids=["xgboost", "curve", "classes"],
)
def test_joined_rows_are_bit_equal_to_rows_alone(predictor: Any) -> None:
    variant = variant_of(predictor)
    assert variant.joins
    rows = matrices(1, 3, 1, 7, 1)
    joined = together(*[(variant, matrix) for matrix in rows])
    for matrix, found in zip(rows, joined, strict=True):
        assert np.array_equal(found, predictor.predict(matrix))


def test_what_waits_is_one_call_and_variants_stay_apart() -> None:
    one, two = Logistic(), Logistic(offset=2)
    variants = [variant_of(one, 1), variant_of(two, 2)]
    one.calls.clear()
    two.calls.clear()
    rows = matrices(1, 1, 1, 1, 1)
    found = together(*[(variants[number % 2], matrix) for number, matrix in enumerate(rows)])
    assert (one.calls, two.calls) == ([3], [2])
    for number, matrix in enumerate(rows):
        assert np.array_equal(found[number], (one, two)[number % 2].predict(matrix))


def test_one_requests_failure_is_not_the_others() -> None:
    variant = variant_of(Logistic(missing=None))
    good, bad = matrices(1)[0], np.full((1, 4), np.nan)
    first, second, third = together((variant, good), (variant, bad), (variant, good))
    assert np.array_equal(first, third)
    assert isinstance(second, ValueError)


class Neighbourly(Logistic):
    """Answers that depend on what is predicted beside them."""

    def predict(self, x: Any) -> Any:
        return super().predict(x) + 1e-12 * len(x)


class Slow(Logistic):
    """Takes long, and says where."""

    def predict(self, x: Any) -> Any:
        time.sleep(0.02)
        return super().predict(x)


def test_a_model_whose_rows_are_not_alike_alone_and_together_is_never_joined() -> None:
    predictor = Neighbourly()
    variant = variant_of(predictor)
    assert not variant.joins
    predictor.calls.clear()
    together(*[(variant, matrix) for matrix in matrices(1, 1, 1)])
    assert predictor.calls == [1, 1, 1]


def test_slow_models_and_large_requests_leave_the_event_loop_free() -> None:
    assert not variant_of(Slow()).inline

    async def ticks_while(variant: Variant, matrix: Any) -> int:
        ticks = 0
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.ensure_future(Joiner(pool).predict(variant, matrix))
            while not task.done():
                await asyncio.sleep(0.002)
                ticks += 1
        return ticks

    assert asyncio.run(ticks_while(variant_of(Slow()), matrices(1)[0])) >= 3
    quick = Logistic()
    variant = variant_of(quick)
    quick.calls.clear()
    together(*[(variant, matrix) for matrix in matrices(INLINE_ROWS + 1, 1, 1)])
    assert sorted(quick.calls) == [2, INLINE_ROWS + 1]
