"""Every way that a judgement can end, for every task."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pytest
from gate_cases import CLASSES, case
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.errors import HoldoutTooSmall, UserError
from treadle.gate.case import Case, Judgement, Predictions
from treadle.gate.judge import judge
from treadle.gate.slices import Grouping
from treadle.spec import Gate

TASKS = pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
EASY = Gate(suspicious=1, margin=0.01)


def criterion(judged: Judgement, name: str):
    return next(found for found in judged.criteria if found.name == name)


def swapped(one: Case) -> Case:
    assert one.champion is not None
    return dataclasses.replace(one, challenger=one.champion, champion=one.challenger)


@TASKS
def test_a_better_model_of_another_recipe_is_promoted(task: str) -> None:
    judged = judge(case(task, champion_noise=3, challenger_noise=0.5, same_recipe=False), EASY)
    assert (judged.decision, judged.mode) == ("promote", "superiority")
    assert judged.comparison is not None
    assert judged.comparison.high is not None
    assert judged.comparison.high < 0
    assert "may replace" in judged.why
    assert "80 % of trials" in judged.why
    assert set(judged.metrics) == {"challenger", "champion"}


@TASKS
def test_a_worse_model_is_kept_out_also_by_non_inferiority(task: str) -> None:
    judged = judge(case(task, champion_noise=0.5, challenger_noise=3), EASY)
    assert (judged.decision, judged.mode) == ("keep", "non_inferiority")
    assert criterion(judged, "non_inferiority").status == "failed"
    assert "The champion stays." in judged.why


@TASKS
def test_an_equal_model_passes_on_newer_data_but_not_as_another_recipe(task: str) -> None:
    equal = case(task, champion_noise=0.1, challenger_noise=0.1, days=60)
    assert judge(equal, EASY).decision == "promote"
    assert judge(dataclasses.replace(equal, same_recipe=False), EASY).decision == "keep"


def test_a_loop_may_ask_superiority_of_the_same_recipe_too() -> None:
    judged = judge(case(champion_noise=0.1, challenger_noise=0.1, days=60), Gate(mode="superiority"))
    assert (judged.decision, judged.mode) == ("keep", "superiority")


@TASKS
def test_identical_predictions_change_nothing(task: str) -> None:
    one = case(task)
    judged = judge(dataclasses.replace(one, champion=one.challenger), EASY)
    assert judged.decision == "no_change"
    assert judged.comparison is not None
    assert judged.comparison.difference == 0


@TASKS
def test_a_first_champion_must_beat_what_the_labels_alone_tell(task: str) -> None:
    good = judge(case(task, champion_noise=None), Gate())
    assert (good.decision, good.mode) == ("promote", "first")
    assert good.metrics["baseline"]
    first = case(task, champion_noise=None)
    assert first.baseline is not None
    shuffled = np.random.default_rng(5).permutation(first.challenger.values)
    bad = judge(
        dataclasses.replace(first, challenger=Predictions(shuffled, first.challenger.classes)), Gate()
    )
    assert bad.decision == "keep"
    assert criterion(bad, "baseline").status == "failed"
    assert "There is still no champion." in bad.why


def test_a_first_champion_below_its_floor_is_refused() -> None:
    judged = judge(case(champion_noise=None), Gate(floor={"roc_auc": 0.999}))
    assert judged.decision == "keep"
    assert criterion(judged, "floor:roc_auc").observed == pytest.approx(
        judged.metrics["challenger"]["roc_auc"]
    )


def test_a_floor_for_an_error_is_the_most_that_is_allowed() -> None:
    one = case("regression", champion_noise=None)
    rmse = judge(one, Gate()).metrics["challenger"]["rmse"]
    assert judge(one, Gate(floor={"rmse": rmse * 1.01})).decision == "promote"
    assert judge(one, Gate(floor={"rmse": rmse * 0.99})).decision == "keep"


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_swapping_the_models_swaps_the_comparison(seed: int) -> None:
    one = case(seed=seed, days=14, a_day=30)
    gate = Gate(min_positives=1, suspicious=1)
    ours, theirs = judge(one, gate).comparison, judge(swapped(one), gate).comparison
    assert ours is not None
    assert theirs is not None
    assert ours.difference == pytest.approx(-(theirs.difference or 0))
    assert ours.low == pytest.approx(-(theirs.high or 0))
    assert ours.high == pytest.approx(-(theirs.low or 0))


def test_a_guard_stops_a_challenger_whose_ranking_suffers() -> None:
    one = case(champion_noise=0.5, challenger_noise=3)
    gate = Gate(margin=100, guard={"roc_auc": -0.01}, suspicious=1)
    judged = judge(one, gate)
    assert judged.decision == "keep"
    found = criterion(judged, "guard:roc_auc")
    assert found.status == "failed"
    assert found.observed is not None
    assert found.observed < -0.01
    change = judged.metrics["challenger"]["roc_auc"] - judged.metrics["champion"]["roc_auc"]
    assert found.observed < change
    assert judge(one, gate.model_copy(update={"guard": {"roc_auc": -0.9}})).decision == "promote"


def test_a_guards_bound_is_the_more_careful_the_smaller_alpha_is() -> None:
    one = case(champion_noise=1, challenger_noise=0.9)
    bounds = [
        criterion(judge(one, Gate(guard={"roc_auc": -0.01}, alpha=alpha)), "guard:roc_auc").observed or 0.0
        for alpha in (0.01, 0.05, 0.4)
    ]
    assert bounds == sorted(set(bounds))


@pytest.mark.parametrize(
    ("task", "name", "worst"),
    [
        ("binary", "average_precision", -0.01),
        ("regression", "rmse", 0.01),
        ("multiclass", "accuracy", -0.001),
    ],
)
def test_every_metric_can_be_a_guard(task: str, name: str, worst: float) -> None:
    gate = Gate(margin=100, guard={name: worst}, suspicious=99, min_positives=1)
    worse, better = (case(task, champion_noise=a, challenger_noise=b) for a, b in ((0.1, 4), (4, 0.1)))
    assert judge(worse, gate).decision == "keep"
    assert judge(better, gate).decision == "promote"


def test_small_permitted_losses_do_not_add_up() -> None:
    one = case(champion_noise=1.0, challenger_noise=1.0, days=60)
    strong = case(champion_noise=0.0, challenger_noise=1.0, days=60).champion
    gate = Gate(margin=0.02, suspicious=1)
    assert judge(one, gate).decision == "promote"
    judged = judge(dataclasses.replace(one, anchor=strong), gate)
    assert judged.decision == "keep"
    assert [c.name for c in judged.criteria if c.status == "failed"] == ["anchor"]
    assert "add up" in judged.why


def test_a_challenger_as_good_as_the_anchor_to_the_bit_passes_any_margin() -> None:
    one = case(champion_noise=4, challenger_noise=0.5)
    judged = judge(dataclasses.replace(one, anchor=one.challenger), Gate(margin=0, suspicious=1))
    assert criterion(judged, "anchor").status == "passed"


def test_an_anchor_that_can_not_be_judged_needs_a_person() -> None:
    one = case(champion_noise=4, challenger_noise=0.5, anchor_fault="its model is gone")
    judged = judge(one, EASY)
    assert judged.decision == "hold"
    assert "its model is gone" in judged.why


def test_a_suspiciously_good_challenger_is_held() -> None:
    judged = judge(case(champion_noise=4, challenger_noise=0.1), Gate(suspicious=0.02))
    assert judged.decision == "hold"
    assert "leak" in judged.why


def test_what_failed_is_not_held_for_being_suspicious() -> None:
    gate = Gate(suspicious=0.02, floor={"roc_auc": 0.9999})
    assert judge(case(champion_noise=4, challenger_noise=0.1), gate).decision == "keep"


def test_a_champion_that_can_not_be_judged_needs_a_person_unless_the_challenger_is_poor() -> None:
    one = case(champion_noise=None, fault="the label's definition changed")
    judged = judge(one, Gate())
    assert judged.decision == "hold"
    assert "the label's definition changed" in judged.why
    assert judged.comparison is not None
    assert judged.comparison.difference is None
    assert judge(one, Gate(floor={"roc_auc": 0.9999})).decision == "keep"


def test_budgets_are_kept_and_the_latency_measured_is_nowhere_in_the_words() -> None:
    one = case(champion_noise=None)
    gate = Gate(latency_ms=2, size_mb=1)
    assert judge(one, gate, latency_ms=1.2345, size_mb=0.5).decision == "promote"
    slow = judge(one, gate, latency_ms=2.3456, size_mb=0.5)
    assert slow.decision == "keep"
    assert "2.3456" not in str(slow)
    assert judge(one, gate, latency_ms=1, size_mb=1.5).decision == "keep"


@pytest.mark.parametrize("break_it", [np.nan, np.inf, 1.5, -0.5])
def test_predictions_that_are_no_probabilities_are_refused(break_it: float) -> None:
    one = case()
    one.challenger.values[3] = break_it
    judged = judge(one, EASY)
    assert judged.decision == "keep"
    assert "1 of 1,680 is" in judged.why


def test_models_that_know_different_classes_can_be_compared() -> None:
    one = case("multiclass", champion_noise=0.5, challenger_noise=0.5)
    assert one.champion is not None
    seen = one.champion.values[:, :2] / one.champion.values[:, :2].sum(axis=1, keepdims=True)
    judged = judge(dataclasses.replace(one, champion=Predictions(seen, CLASSES[:2])), EASY)
    assert judged.decision == "promote"


def test_too_few_blocks_say_what_would_do() -> None:
    with pytest.raises(HoldoutTooSmall) as caught:
        judge(case(days=7, a_day=300), Gate())
    assert "on 7 days only" in str(caught.value)
    assert "min_blocks asks for 14" in str(caught.value)
    assert "about 14d" in str(caught.value)


def test_too_few_positives_say_what_would_do() -> None:
    with pytest.raises(HoldoutTooSmall, match="rows of the positive class") as caught:
        judge(case(days=14, a_day=20), Gate())
    positives = int(case(days=14, a_day=20).labels.sum())
    assert f"about {int(np.ceil(14 * 300 / positives))}d" in str(caught.value)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_is_no_holdout(label: float) -> None:
    one = case(champion_noise=None)
    one.labels[:] = label
    with pytest.raises(HoldoutTooSmall, match="class"):
        judge(one, Gate())


def test_no_rows_are_no_holdout() -> None:
    empty = Predictions(np.empty(0))
    one = dataclasses.replace(
        case(), labels=np.empty(0), blocks=np.empty(0, int), challenger=empty, champion=empty
    )
    with pytest.raises(HoldoutTooSmall, match="0 labelled rows"):
        judge(one, Gate())


def test_blocks_other_than_days_are_named_by_their_length() -> None:
    judged = judge(case(), Gate(block=timedelta(hours=12)))
    assert "28 blocks of 12h" in judged.why


def test_a_metric_of_another_task_is_the_users_error() -> None:
    with pytest.raises(UserError, match="rmse"):
        judge(case(), Gate(floor={"rmse": 1}))


def test_the_sign_flip_test_decides_alike() -> None:
    gate = Gate(test="sign_flip", suspicious=1)
    assert judge(case(champion_noise=3, challenger_noise=0.5, same_recipe=False), gate).decision == "promote"
    assert judge(case(champion_noise=0.5, challenger_noise=3, same_recipe=False), gate).decision == "keep"


def test_earlier_looks_are_said() -> None:
    assert "3 earlier verdicts" in judge(case(looks=3), EASY).why


def harmed_case(share: float = 0.2) -> Case:
    """A challenger that is better on the whole and much worse for one group."""
    one = case(champion_noise=2, challenger_noise=0.2)
    assert one.champion is not None
    codes = (np.random.default_rng(9).random(len(one.labels)) < share).astype(int)
    bad = case(champion_noise=2, challenger_noise=4).challenger.values
    mixed = np.where(codes == 1, bad, one.challenger.values)
    return dataclasses.replace(
        one, challenger=Predictions(mixed), slices={"region": Grouping(codes, ("north", "south"))}
    )


def test_harm_to_a_slice_stops_a_challenger_that_wins_on_the_whole() -> None:
    one = harmed_case()
    assert judge(dataclasses.replace(one, slices={}), EASY).decision == "promote"
    judged = judge(one, EASY)
    assert judged.decision == "keep"
    assert criterion(judged, "slice:region=south").status == "failed"
    assert criterion(judged, "slice:region=north").status == "passed"


def test_harm_to_a_group_named_under_fairness_is_called_so() -> None:
    one = harmed_case()
    judged = judge(dataclasses.replace(one, slices={}, fairness=one.slices), EASY)
    assert judged.decision == "keep"
    assert criterion(judged, "fairness:region=south").status == "failed"


def test_a_slice_without_support_is_named_but_not_judged() -> None:
    judged = judge(harmed_case(share=0.05), EASY)
    assert judged.decision == "promote"
    assert "region=south" in criterion(judged, "slice:too_small").words


def test_every_criterion_has_words() -> None:
    one = dataclasses.replace(harmed_case(), anchor=case().champion)
    gate = Gate(guard={"roc_auc": -0.01}, floor={"roc_auc": 0.5}, latency_ms=1, size_mb=1, suspicious=0.001)
    judged = judge(one, gate, latency_ms=1, size_mb=1)
    assert len(judged.criteria) >= 8
    assert all(found.words.endswith(".") for found in judged.criteria)
