"""Counts, lengths of time and shares in words."""

from __future__ import annotations

from datetime import timedelta

import pytest
from treadle import spec
from treadle.gate.words import number_apart, signed_apart
from treadle.models.xgboost.params import problems
from treadle.words import apart, counted, lasting, money, percents, portion, rate


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 answers"), (1, "1 answer"), (2, "2 answers"), (4983, "4,983 answers")]
)
def test_one_is_one(count: int, words: str) -> None:
    assert counted(count, "answer") == words


def test_half_a_core_is_none_and_one_is_one() -> None:
    assert [counted(cores, "core") for cores in (0.5, 1.0, 2.0)] == ["0.5 cores", "1 core", "2 cores"]


@pytest.mark.parametrize(
    ("usd", "words"),
    [
        (0, "0.00"), (0.0, "0.00"), (0.8048, "0.80"), (0.01, "0.01"), (0.0099996, "0.01"), (0.004, "0.004"),
        (0.00012345, "0.000123"), (2e-9, "0.000000002"), (1234.5, "1,234.50"), (1e7, "10,000,000.00"),
    ],
)  # fmt: skip
def test_only_nothing_looks_like_nothing(usd: float, words: str) -> None:
    assert money(usd) == words


@pytest.mark.parametrize(
    ("usd", "words"), [(0, "0"), (2.0, "2"), (0.8048, "0.8048"), (0.00001, "0.00001"), (2e6, "2,000,000")]
)
def test_a_price_keeps_its_digits(usd: float, words: str) -> None:
    assert rate(usd) == words


def test_a_small_share_is_not_none() -> None:
    assert [portion(share) for share in (0.0, 0.0001, 0.2, 1.07)] == ["0%", "less than 1%", "20%", "107%"]


def test_a_question_ends_with_its_mark() -> None:
    told = problems(spec.Train(params={"max_dpeth": 3}))
    assert told == ["params.max_dpeth: xgboost has no such parameter; did you mean 'max_depth'?"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"), (59, "59 seconds"), (120, "2 minutes"), (5400, "90 minutes"), (7200, "2 hours"),
        (37 * 3600, "37 hours"), (14 * 86400, "14 days"), (82639218, "2.6 years"), (20 * 365.25 * 86400, "20 years"),
    ],
)  # fmt: skip
def test_length_of_time_has_a_unit_that_fits(seconds: float, words: str) -> None:
    assert lasting(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("share", "limit", "words"),
    [
        (0.3, 0.3, ("30%", "30%")),
        (0.2999, 0.3, ("29.99%", "30.00%")),
        (0.0, 0.3, ("0%", "30%")),
        (0.296, 0.3, ("29.6%", "30.0%")),
    ],
)
def test_two_shares_that_differ_look_different(share: float, limit: float, words: tuple[str, str]) -> None:
    assert percents(share, limit) == words


def test_two_numbers_that_differ_look_different() -> None:
    assert apart(0.0684, 0.068) == ("0.0684", "0.0680")
    assert number_apart(0.599996, 0.6) == "0.599996"
    assert number_apart(0.6, 0.6) == "0.6"
    assert signed_apart(0.0049996, 0.005) == "+0.0049996"
