"""What the gate judges: the frozen inputs, their size, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from treadle.clock import format_duration
from treadle.errors import HoldoutTooSmall
from treadle.gate.words import blocks_of
from treadle.records import Comparison, Criterion, Decision
from treadle.words import counted, moment

if TYPE_CHECKING:
    from typing import Literal

    from treadle.gate.slices import Grouping
    from treadle.spec import Gate

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Predictions:
    """One model's predictions for the holdout's rows.

    Attributes:
        values: (n,) probabilities of the positive class or numbers; (n, n_classes) for multiclass.
        classes: For multiclass, what the columns mean: models of different age may know different classes.
    """

    values: Array
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """The holdout's stretch of time [start, end); `remark` says why it begins later than the loop asks."""

    start: datetime
    end: datetime
    remark: str = ""

    def __str__(self) -> str:
        return f"{moment(self.start)} to {moment(self.end)}"


@dataclass(frozen=True, slots=True)
class Case:
    """A challenger, what it is judged against, and the rows; all arrays in the same order of rows.

    Attributes:
        task: binary, multiclass or regression.
        labels: (n,), none missing: 0 and 1, class names, or numbers.
        blocks: (n,) int: the block of time of each row.
        span: Where the rows lie in time.
        champion: None for a first champion, and where `fault` says why it can't be judged.
        anchor: The last champion that earned its place; None where that is the champion.
        baseline: What knowing only the training labels predicts; needed where there is no `champion`.
        same_recipe: Whether the challenger differs from the champion only by newer data.
        fault: Why the champion can't be judged on these rows; empty when it can, or there is none.
        anchor_fault: The same for the anchor.
        slices: Column to how it parts the rows.
        fairness: The same for the columns that name groups to be treated alike.
        looks: Earlier verdicts that used some of these rows.
    """

    task: str
    labels: Array
    blocks: Array
    span: Span
    challenger: Predictions
    champion: Predictions | None = None
    anchor: Predictions | None = None
    baseline: Predictions | None = None
    same_recipe: bool = True
    fault: str = ""
    anchor_fault: str = ""
    slices: Mapping[str, Grouping] = field(default_factory=dict)
    fairness: Mapping[str, Grouping] = field(default_factory=dict)
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate decided, and why. The fields are those of a Verdict."""

    decision: Decision
    why: str
    mode: Literal["first", "non_inferiority", "superiority"]
    comparison: Comparison | None
    criteria: tuple[Criterion, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def require_enough(case: Case, gate: Gate) -> None:
    """Nothing, where the holdout can carry a judgement.

    Raises:
        HoldoutTooSmall: Too few blocks, too few rows of the positive class, or one class only. A retry can't
            help; a longer holdout can, and the text says which length would do.
    """
    length = case.span.end - case.span.start
    problems, shares = [], []
    blocks = len(np.unique(case.blocks))
    if blocks < gate.min_blocks:
        asked = f"and gate.min_blocks asks for {gate.min_blocks}"
        problems.append(f"on {blocks_of(blocks, gate.block)} only, {asked}")
        needed = gate.min_blocks * gate.block
        shares.append(max(needed / length, gate.min_blocks / blocks if blocks else 0) if length else 0)
    if case.task == "binary":
        positives = int((case.labels == 1).sum())
        if positives < gate.min_positives:
            asked = f"and gate.min_positives asks for {gate.min_positives}"
            problems.append(f"{counted(positives, 'row')} of the positive class, {asked}")
            shares.append(gate.min_positives / positives if positives else 0)
        elif positives == len(case.labels):
            problems.append("no row of the negative class")
    if not problems:
        return
    raise HoldoutTooSmall(
        f"the holdout {case.span} can't carry a judgement: it has {counted(len(case.labels), 'labelled row')}: "
        f"{'; '.join(problems)}. {case.span.remark}{_remedy(length, shares)}"
    )


def _remedy(length: timedelta, shares: list[float]) -> str:
    if shares and all(shares) and length:
        days = timedelta(days=1)
        unit = days if length >= days else timedelta(hours=1)
        enough = math.ceil(round(length * max(shares) / unit, 6)) * unit
        return f"A holdout of about {format_duration(enough)} (data.holdout) would do at this rate."
    return "Give it a longer data.holdout, or an as_of that has more labelled rows before it."
