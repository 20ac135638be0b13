"""Quality once labels are known, for each task, beside what the champion was expected to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from monitoring_data import DAY_US
from treadle.monitoring.quality import Answered, Expected, in_words, judge_quality
from treadle.records import Quality
from treadle.spec import Quality as Limits

DAY = timedelta(days=1)


def answered(
    days: int = 7, a_day: int = 100, bias: float = 0.0, seed: int = 0, by_day: float = 0.0
) -> Answered:
    """Days of binary rows; their true odds differ from the predicted by `bias`, and by day by `by_day`."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), a_day)
    logit = rng.normal(size=len(day))
    truth = logit + bias + by_day * rng.normal(size=days)[day]
    labels = (rng.random(len(day)) < 1 / (1 + np.exp(-truth))).astype(float)
    everywhere = np.ones(len(day), dtype=bool)
    return Answered(labels, everywhere, 1 / (1 + np.exp(-logit)), everywhere, day * DAY_US)


def judge(rows: Answered, expected: float | None = 0.58, blocks: int = 14, **more: Any) -> Quality:
    return judge_quality(
        rows,
        task="binary",
        loss="log_loss",
        classes=("0", "1"),
        block=DAY,
        expected=None if expected is None else Expected("log_loss", expected, blocks),
        limits=Limits(**more),
    )


def replaced(rows: Answered, **changes: Any) -> Answered:
    fields = {name: getattr(rows, name) for name in Answered.__slots__}
    return Answered(**{**fields, **changes})


def test_a_model_that_does_as_expected_holds_and_a_biased_one_decays() -> None:
    fine = judge(answered())
    assert not fine.decayed
    assert fine.value == pytest.approx(0.58, abs=0.04)
    bad = judge(answered(bias=2.0))
    assert bad.decayed
    assert bad.p is not None
    assert bad.p < 0.01
    assert "against 0.58 expected" in bad.words


def test_false_alarms_stay_near_alpha_when_days_move_together() -> None:
    flags = []
    for seed in range(200):
        # The expectation is itself measured, on 14 other days of the same kind.
        before = judge(answered(14, seed=1000 + seed, by_day=0.6), None).value
        flags.append(judge(answered(seed=seed, by_day=0.6), before, margin=0.0).decayed)
    assert np.mean(flags) <= 0.09


def test_rows_of_an_earlier_champion_count_in_the_value_and_not_in_the_test() -> None:
    rows = answered(bias=2.0)
    mine = np.arange(len(rows.known)) % 2 == 0
    mixed = judge(replaced(rows, by_champion=mine), min_coverage=0.4)
    assert mixed.p is not None
    assert mixed.value == judge(rows).value
    other = judge(replaced(rows, by_champion=mine), min_coverage=0.6)
    assert other.p is None
    assert "earlier champion" in other.words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"known": False}, "no labels are known yet"),
        ({"predictions": np.nan}, "no labels are known yet"),
        ({"times_us": 0}, "within one block of time"),
    ],
)
def test_what_cannot_be_judged_says_why(change: dict[str, Any], words: str) -> None:
    rows = answered()
    filled = {name: np.full_like(getattr(rows, name), value) for name, value in change.items()}
    found = judge(replaced(rows, **filled))
    assert not found.decayed
    assert words in found.words


def test_too_few_labels_are_not_judged() -> None:
    rows = answered(bias=2.0)
    known = np.arange(len(rows.known)) % 4 == 0
    found = judge(replaced(rows, known=known))
    assert (found.coverage, found.decayed) == (0.25, False)
    assert "labels known of 25% of the rows, 50% are wanted" in found.words


def test_another_loss_than_the_verdicts_is_not_compared() -> None:
    rows = answered(bias=2.0)
    found = judge_quality(
        rows,
        task="binary",
        loss="brier",
        classes=("0", "1"),
        block=DAY,
        expected=Expected("log_loss", 0.1, 14),
        limits=Limits(),
    )
    assert not found.decayed
    assert "judged by log_loss" in found.words


def test_several_classes_and_numbers_are_judged_too() -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(5), 40)
    every = np.ones(200, dtype=bool)
    classes = ("a", "b", "c")
    labels = rng.choice(np.array(classes, dtype=object), 200)
    probabilities = np.full((200, 3), 1 / 3)
    named = judge_quality(
        Answered(labels, every, probabilities, every, day * DAY_US),
        task="multiclass",
        loss="log_loss",
        classes=classes,
        block=DAY,
        expected=Expected("log_loss", np.log(3), 14),
        limits=Limits(),
    )
    assert named.value == pytest.approx(np.log(3), abs=1e-5)
    assert not named.decayed
    y = rng.normal(size=200)
    number = judge_quality(
        Answered(y, every, y + 2, every, day * DAY_US),
        task="regression",
        loss="squared_error",
        classes=(),
        block=DAY,
        expected=Expected("squared_error", 1.0, 14),
        limits=Limits(),
    )
    assert number.metrics == {"rmse": 2.0}
    assert number.decayed


def test_input_drift_and_decay_have_words_of_their_own() -> None:
    fine = Quality(loss="l", value=1, expected=1, labelled=1, rows=1, coverage=1, p=0.5)
    bad = fine.model_copy(update={"p": 0.01, "decayed": True})
    said = {in_words(drifted, quality) for drifted in (True, False) for quality in (None, fine, bad)}
    assert len(said) == 6
    assert in_words(True, fine) == "inputs moved, quality holds"
