"""Blocks, the clustered test, sign flips, resampling and Holm's correction."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from treadle.gate.stats import (
    block_ids,
    block_test,
    clustered_t,
    detectable,
    holm,
    resample_weights,
    sign_flip,
)

TESTS = pytest.mark.parametrize("kind", ["t", "sign_flip"])


def paired(seed: int, blocks: int = 14, rows: int = 30, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Differences that share an effect within each block."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(blocks), rows)
    return rng.normal(0, 1, blocks)[ids] + rng.normal(0, 1, len(ids)) - gain, ids


def test_a_block_of_a_day_is_a_day_in_utc() -> None:
    times = [datetime(2013, 3, 1, 23, 59, 59, tzinfo=UTC), datetime(2013, 3, 2, tzinfo=UTC)]
    us = np.array([int(time.timestamp() * 1e6) for time in times])
    days = block_ids(us, timedelta(days=1))
    assert days[1] - days[0] == 1
    assert days[1] == (times[1] - datetime(1970, 1, 1, tzinfo=UTC)).days
    assert len(set(block_ids(us, timedelta(hours=12)).tolist())) == 2


def test_blocks_of_one_row_give_the_ordinary_t_test() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, 40)
    found = clustered_t(values, np.arange(40), 0.05)
    expected = scipy_stats.ttest_1samp(values, 0, alternative="less")
    assert found.p_less == pytest.approx(expected.pvalue)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_clustering_widens_the_interval_of_rows_that_move_together() -> None:
    values, blocks = paired(1)
    assert clustered_t(values, blocks).se > 3 * clustered_t(values, np.arange(len(values))).se


@TESTS
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_swapping_the_sides_flips_the_sign(kind: str, seed: int) -> None:
    values, blocks = paired(seed)
    one, other = (block_test(kind, side, blocks, 0.05) for side in (values, -values))
    assert one.mean == pytest.approx(-other.mean)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


@TESTS
@given(seed=st.integers(0, 10_000), bound=st.floats(-1, 1))
@settings(max_examples=25, deadline=None)
def test_the_interval_ends_below_the_bound_exactly_when_p_is_below_alpha(
    kind: str, seed: int, bound: float
) -> None:
    values, blocks = paired(seed)
    found = block_test(kind, values, blocks, 0.05, bound=bound)
    assert (found.high < bound) == (found.p_less <= 0.05)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_order_of_rows_and_the_names_of_blocks_do_not_matter(seed: int) -> None:
    values, blocks = paired(seed)
    order = np.random.default_rng(seed).permutation(len(values))
    one, other = clustered_t(values, blocks), clustered_t(values[order], blocks[order] * 7 - 3)
    assert one.mean == pytest.approx(other.mean)
    assert one.p_less == pytest.approx(other.p_less)


def test_sign_flips_of_few_blocks_are_counted_all() -> None:
    found = sign_flip(np.array([-1.0, -2.0, -3.0, -4.0]), np.arange(4))
    assert found.p_less == 1 / 16
    assert found.high == np.inf  # 1 of 16 is more than alpha


@TESTS
def test_equal_models_are_told_apart_about_as_often_as_alpha_says(kind: str) -> None:
    p = [block_test(kind, *paired(seed, rows=5), 0.05).p_less for seed in range(400)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_what_is_detectable_is_detected_in_four_of_five_trials() -> None:
    values, blocks = paired(0, blocks=28, rows=5)
    gain = np.mean([detectable(clustered_t(*paired(s, 28, 5)).se, 28, 0.05) for s in range(500)])
    found = [clustered_t(*paired(seed, 28, 5, gain)).p_less < 0.05 for seed in range(1000)]
    assert 0.75 <= np.mean(found) <= 0.85
    assert clustered_t(values, blocks).blocks == 28


def test_rows_that_do_not_vary_are_certain() -> None:
    blocks = np.repeat(np.arange(14), 2)
    assert clustered_t(np.full(28, -0.125), blocks).p_less == 0
    assert clustered_t(np.zeros(28), blocks).p_less == 1


def test_one_block_is_no_test() -> None:
    with pytest.raises(ValueError, match="two"):
        clustered_t(np.ones(5), np.zeros(5, dtype=int))


def test_resamples_draw_as_many_blocks_as_there_are_and_repeat() -> None:
    weights = resample_weights(14, 100, seed=3)
    assert (weights.sum(axis=1) == 14).all()
    assert (weights == resample_weights(14, 100, seed=3)).all()
    assert not (weights == resample_weights(14, 100, seed=4)).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    corrected = np.array(holm(p_values))
    order = np.argsort(p_values)
    assert (np.diff(corrected[order]) >= 0).all()
    assert (corrected >= p_values).all()
    assert (corrected <= np.minimum(1, np.array(p_values) * len(p_values)) + 1e-12).all()


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
