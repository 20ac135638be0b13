"""The decision whether a challenger may replace the champion, from frozen arrays: no model, store or clock.

identical predictions ─► no_change          every criterion passed ─► promote
one criterion failed  ─► keep               none failed, one held  ─► hold, for a person
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from treadle.gate import guards
from treadle.gate.case import Case, Judgement, Predictions, require_enough
from treadle.gate.metrics import check_metric, default_loss, names_for, row_losses
from treadle.gate.slices import harm_criteria
from treadle.gate.stats import BlockTest, block_test, detectable
from treadle.gate.words import blocks_of, number, number_apart, percent, probability, signed, signed_apart
from treadle.records import Comparison, Criterion, Decision
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.spec import Gate

Array = np.ndarray[Any, Any]
Mode = Literal["first", "non_inferiority", "superiority"]


def judge(
    case: Case, gate: Gate, *, latency_ms: float | None = None, size_mb: float | None = None
) -> Judgement:
    """The decision, with its evidence in numbers and in words.

    Args:
        case: The rows, their labels and blocks, and every model's predictions for them.
        gate: `margin` is in units of the loss; `alpha` is the one-sided rate of false promotions.
        latency_ms: The challenger's median time for one row, where the gate has a budget for it.
        size_mb: The size of the challenger's files.

    Raises:
        HoldoutTooSmall: Fewer than `gate.min_blocks` blocks, or too few positives. A longer holdout can help.
        UserError: The task has no such loss or metric.

    Example:
        >>> judge(case_where_both_are_the_same_model, Gate()).decision    # doctest: +SKIP
        'no_change'
    """
    loss = gate.loss or default_loss(case.task)
    for name in (*gate.guard, *gate.floor):
        check_metric(name, case.task)
    mode = mode_of(case, gate)
    require_enough(case, gate)
    problem = guards.unusable(case.task, case.challenger, len(case.labels))
    if problem:
        words = f"The challenger's predictions can't be used: {problem}."
        return Judgement("keep", words, mode, None, (_failed("predictions", words),))
    metrics = _metrics(case, loss)
    if case.champion is not None and _identical(case.challenger, case.champion):
        mean = metrics["challenger"][loss]
        rows = f"all {counted(len(case.labels), 'row')} of {case.span}"
        why = f"On {rows} the challenger predicts exactly what the champion does: nothing would change."
        comparison = Comparison(loss=loss, champion=mean, challenger=mean, difference=0.0)
        return Judgement("no_change", why, mode, comparison, (), metrics)
    comparison, criteria = _compared(case, gate, loss, mode)
    criteria += [guards.floor_criterion(name, least, case) for name, least in gate.floor.items()]
    criteria += guards.budget_criteria(gate, latency_ms, size_mb)
    decision = decide(criteria)
    why = _why(decision, case, gate, comparison, criteria)
    return Judgement(decision, why, mode, comparison, tuple(criteria), metrics)


def mode_of(case: Case, gate: Gate) -> Mode:
    """How the loss is tested: a recipe unlike the champion's has to win, whatever the loop says."""
    if case.champion is None and not case.fault:
        return "first"
    return gate.mode if case.same_recipe else "superiority"


def decide(criteria: list[Criterion]) -> Decision:
    """Keep when any criterion failed, else hold when any is held, else promote."""
    found = {criterion.status for criterion in criteria}
    return "keep" if "failed" in found else "hold" if "held" in found else "promote"


def _compared(case: Case, gate: Gate, loss: str, mode: Mode) -> tuple[Comparison, list[Criterion]]:
    """The main test, and what only makes sense beside another model."""
    challenger = row_losses(case.task, loss, case.labels, case.challenger.values, case.challenger.classes)
    if case.champion is None:
        return _without_champion(case, gate, loss, challenger)
    champion = row_losses(case.task, loss, case.labels, case.champion.values, case.champion.classes)
    differences = challenger - champion
    bound = gate.margin if mode == "non_inferiority" else 0.0
    test = block_test(gate.test, differences, case.blocks, gate.alpha, bound=bound)
    comparison = _comparison(loss, champion.mean(), challenger.mean(), test, bound, gate)
    criteria = [_main_criterion(mode, comparison, gate)]
    criteria += _anchor_criteria(case, gate, loss, challenger)
    criteria += [
        guards.guard_criterion(name, worst, case, case.champion, gate) for name, worst in gate.guard.items()
    ]
    criteria += harm_criteria(differences, case.blocks, case.slices, gate, family="slice")
    criteria += harm_criteria(differences, case.blocks, case.fairness, gate, family="fairness")
    suspicious = guards.suspicion(case, case.champion, gate)
    return comparison, criteria + ([suspicious] if suspicious else [])


def _without_champion(
    case: Case, gate: Gate, loss: str, challenger: Array
) -> tuple[Comparison, list[Criterion]]:
    """A first champion, or one whose opponent can't be judged, must beat what the labels alone predict."""
    if case.baseline is None:
        raise ValueError("a case without a champion needs the baseline's predictions")
    trivial = row_losses(case.task, loss, case.labels, case.baseline.values, case.baseline.classes)
    test = block_test(gate.test, challenger - trivial, case.blocks, gate.alpha)
    comparison = _comparison(loss, None, challenger.mean(), test, 0.0, gate)
    passed = test.high < 0
    beats = "beats" if passed else "does not surely beat"
    words = (
        f"{loss} {number_apart(challenger.mean(), trivial.mean())} {beats} the trivial baseline's "
        f"{number_apart(trivial.mean(), challenger.mean())}: "
        f"{_difference(comparison, gate)}."
    )
    criteria = [
        Criterion(
            name="baseline",
            status="passed" if passed else "failed",
            observed=test.high,
            allowed=0.0,
            words=words,
        )
    ]
    perfect = None if case.fault else guards.too_good(case)
    if perfect is not None:
        criteria.append(perfect)
    if case.fault:
        words = f"The champion can't be judged on the same rows: {case.fault}."
        criteria.append(Criterion(name="champion", status="held", words=words))
        comparison = Comparison(loss=loss, champion=None, challenger=comparison.challenger)
    return comparison, criteria


def _anchor_criteria(case: Case, gate: Gate, loss: str, challenger: Array) -> list[Criterion]:
    """Small permitted losses must not add up, so the last champion that earned its place is asked too."""
    if case.anchor_fault:
        words = (
            f"The last champion that earned its place can't be judged on the same rows: {case.anchor_fault}. "
            "So nobody knows whether small permitted losses have added up."
        )
        return [Criterion(name="anchor", status="held", words=words)]
    if case.anchor is None:
        return []
    anchor = row_losses(case.task, loss, case.labels, case.anchor.values, case.anchor.classes)
    test = block_test(gate.test, challenger - anchor, case.blocks, gate.alpha, bound=gate.margin)
    passed = test.high < gate.margin or _identical(case.challenger, case.anchor)
    words = (
        f"Against the last champion that earned its place ({loss} {number(anchor.mean())}) the change is "
        f"{signed(test.mean)}, at most {signed_apart(test.high, gate.margin)} at {percent(1 - gate.alpha)} confidence; "
        f"below {signed(gate.margin)} is asked, so that small permitted losses can't add up."
    )
    return [
        Criterion(
            name="anchor",
            status="passed" if passed else "failed",
            observed=test.high,
            allowed=gate.margin,
            words=words,
        )
    ]


def _comparison(
    loss: str, champion: float | None, challenger: float, test: BlockTest, bound: float, gate: Gate
) -> Comparison:
    return Comparison(
        loss=loss,
        champion=None if champion is None else float(champion),
        challenger=float(challenger),
        difference=test.mean,
        low=_finite(test.low),
        high=_finite(test.high),
        p=test.p_less,
        bound=bound,
        detectable=detectable(test.se, test.blocks, gate.alpha),
    )


def _finite(value: float) -> float | None:
    """A sign-flip test of very few blocks has no bounds; a record holds no infinity."""
    return value if np.isfinite(value) else None


def _main_criterion(mode: Mode, comparison: Comparison, gate: Gate) -> Criterion:
    high, bound = comparison.high, comparison.bound or 0.0
    passed = high is not None and high < bound
    if mode == "superiority":
        asked = f"{'' if passed else 'but '}all of it below 0 is asked"
    else:
        asked = f"{'' if passed else 'but '}an upper end below {signed(bound)} is asked of the same recipe"
    champion = comparison.champion or 0.0
    old, new = number_apart(champion, comparison.challenger), number_apart(comparison.challenger, champion)
    losses = f"{comparison.loss} {new} against the champion's {old}"
    return Criterion(
        name=mode,
        status="passed" if passed else "failed",
        observed=high,
        allowed=bound,
        words=f"{losses}: {_difference(comparison, gate)}; {asked}.",
    )


def _difference(comparison: Comparison, gate: Gate) -> str:
    interval = "no bounds"
    if comparison.low is not None and comparison.high is not None:
        high = signed_apart(comparison.high, comparison.bound or 0.0)
        ends = f"{signed(comparison.low)} to {high}"
        interval = f"{percent(1 - 2 * gate.alpha)} interval {ends}"
    mean, p = comparison.difference or 0.0, comparison.p or 0.0
    return f"difference {signed(mean)}, {interval}, {probability(p)}"


def _identical(one: Predictions, other: Predictions) -> bool:
    return one.classes == other.classes and np.array_equal(one.values, other.values)


def _failed(name: str, words: str) -> Criterion:
    return Criterion(name=name, status="failed", words=words)


def _metrics(case: Case, loss: str) -> dict[str, dict[str, float]]:
    """Every metric that has a meaning here, by model."""
    models = {
        "challenger": case.challenger,
        "champion": case.champion,
        "anchor": case.anchor,
        "baseline": case.baseline if case.champion is None else None,
    }
    names = dict.fromkeys((loss, *names_for(case.task)))
    found = {
        model: {name: guards.value(name, case, of) for name in names}
        for model, of in models.items()
        if of is not None
    }
    return {
        model: {name: value for name, value in values.items() if np.isfinite(value)}
        for model, values in found.items()
    }


def _why(
    decision: Decision, case: Case, gate: Gate, comparison: Comparison, criteria: list[Criterion]
) -> str:
    """The decision in words: the criteria that decided it, and what this holdout could have shown at all."""
    blocks = blocks_of(len(np.unique(case.blocks)), gate.block)
    rows = f"Judged on {counted(len(case.labels), 'row')} on {blocks}, {case.span}."
    deciding = {"keep": "failed", "hold": "held"}.get(decision)
    said = [c.words for c in criteria if c.status == deciding] if deciding else [criteria[0].words]
    heads = _HEADS if case.champion is not None or case.fault else _FIRST_HEADS
    parts = [heads[decision], *said, rows]
    if comparison.detectable is not None:
        parts.append(
            f"A true gain of {number(comparison.detectable)} shows on such a holdout in 80 % of trials; "
            "smaller ones more seldom."
        )
    if case.looks:
        have = "has" if case.looks == 1 else "have"
        parts.append(f"{counted(case.looks, 'earlier verdict')} {have} used some of these rows.")
    return " ".join(parts)


_HEADS = {
    "promote": "The challenger may replace the champion.",
    "keep": "The champion stays.",
    "hold": "A person has to decide.",
}
_FIRST_HEADS = {
    "promote": "The challenger may become the first champion.",
    "keep": "There is still no champion.",
    "hold": "A person has to decide.",
}
