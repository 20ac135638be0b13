"""Whether the challenger harms a part of the rows while it helps the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from treadle.gate.stats import BlockTest, block_test, holm
from treadle.gate.words import blocks_of, probability, signed, signed_apart
from treadle.records import Criterion
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.spec import Gate

Array = np.ndarray[Any, Any]

LIMIT_P = 0.05
"""The uncorrected p that harm beyond `slice_limit` needs: Holm alone finds planted harm too seldom."""


_NOUNS = {"slice": "The slice", "fairness": "The group"}


@dataclass(frozen=True, slots=True)
class Grouping:
    """How one column parts the rows.

    Attributes:
        codes: (n,) int: each row's position in `names`.
        names: The groups; rows without a value are a group of their own.
    """

    codes: Array
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupTest:
    """One group that has support: the test is of harm, so `p` is small where the challenger is worse."""

    name: str
    rows: int
    test: BlockTest
    p: float


def harm_criteria(
    differences: Array, blocks: Array, groupings: Mapping[str, Grouping], gate: Gate, *, family: str
) -> list[Criterion]:
    """One criterion for each group with support, and one for all that have none.

    A group fails when its harm is significant after Holm's correction over the family at `gate.alpha`, or
    when its loss is worse by more than `gate.slice_limit` with an uncorrected p below 0.05.

    Args:
        differences: (n,) challenger's loss minus champion's.
        blocks: (n,) int.
        groupings: By column.
        gate: Its `slice_min_rows` and `slice_min_blocks` say what support is.
        family: `slice` or `fairness`: the tests that are corrected together, and how the words call a group.
    """
    tests, without = _tests(differences, blocks, groupings, gate)
    corrected = holm([found.p for found in tests])
    criteria = [
        _criterion(found, p, len(tests), gate, family) for found, p in zip(tests, corrected, strict=True)
    ]
    if without:
        needed = f"{counted(gate.slice_min_rows, 'row')} on {blocks_of(gate.slice_min_blocks, gate.block)}"
        have, are = ("has", "is") if len(without) == 1 else ("have", "are")
        groups = f"{counted(len(without), 'group')} {have} fewer than {needed} and {are} not judged"
        words = f"{groups}: {_some(without)}."
        criteria.append(
            Criterion(name=f"{family}:too_small", status="info", observed=len(without), words=words)
        )
    return criteria


def _tests(
    differences: Array, blocks: Array, groupings: Mapping[str, Grouping], gate: Gate
) -> tuple[list[GroupTest], list[str]]:
    tests, without = [], []
    for column, grouping in groupings.items():
        for name, rows in _groups(column, grouping):
            few_blocks = len(np.unique(blocks[rows])) < gate.slice_min_blocks
            if len(rows) < gate.slice_min_rows or few_blocks:
                without.append(name)
                continue
            test = block_test(gate.test, differences[rows], blocks[rows], gate.alpha)
            harm = block_test(gate.test, -differences[rows], blocks[rows], gate.alpha).p_less
            tests.append(GroupTest(name, len(rows), test, harm))
    return tests, without


def _groups(column: str, grouping: Grouping) -> Iterator[tuple[str, Array]]:
    order = np.argsort(grouping.codes, kind="stable")
    ends = np.cumsum(np.bincount(grouping.codes, minlength=len(grouping.names)))
    for name, rows in zip(grouping.names, np.split(order, ends[:-1]), strict=True):
        if len(rows):
            yield f"{column}={name}", rows


def _criterion(found: GroupTest, corrected: float, count: int, gate: Gate, family: str) -> Criterion:
    significant = corrected <= gate.alpha and found.test.mean > 0
    beyond = found.test.mean > gate.slice_limit and found.p < LIMIT_P
    change = f"its loss changes by {signed_apart(found.test.mean, gate.slice_limit)}"
    support = f"{counted(found.rows, 'row')}, {blocks_of(found.test.blocks, gate.block)}"
    if significant:
        after = f"{probability(corrected)} after correction for {counted(count, 'group')}"
        verdict = f"harmed: {change}, {after} ({support})."
    elif beyond:
        limit = f"more than the limit of {signed(gate.slice_limit)}"
        verdict = f"harmed: {change}, {limit}, {probability(found.p)} ({support})."
    else:
        verdict = f"not shown to be harmed: {change} ({support})."
    return Criterion(
        name=f"{family}:{found.name}",
        status="failed" if significant or beyond else "passed",
        observed=found.test.mean,
        allowed=gate.slice_limit,
        words=f"{_NOUNS[family]} {found.name} is {verdict}",
    )


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
