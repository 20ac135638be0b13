"""Where a table's SQL makes a value of rows that came later: treadle cuts at `as_of` only what comes out.

column of the result ─ its way back (lineage) ─► windows, aggregates, queries within ─► bounded by time, or not

Only what surely looks ahead is named. What merely chooses rows (WHERE, QUALIFY, ON) is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from treadle.checks.lineage import AT, SAID, Reading, Step, all_of, bare, is_a, order_of, specification

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.optimizer.scope import Scope

LONGEST = 120
_COMPARISONS = ("EQ", "NullSafeEQ", "LT", "LTE", "GT", "GTE", "Between")
_OF_ALL = ("PercentRank", "CumeDist", "Ntile")
_RANKS = ("RowNumber", "Rank", "DenseRank")
_SETTLES = ("Max", "AnyValue", "First", "Last", "ArgMax", "Lead", "LastValue")
Bound = Literal["none", "below", "above"]


@dataclass(frozen=True, slots=True)
class Look:
    """An expression that sees later rows: its text, its line in the query, why, and the columns it enters."""

    expression: str
    line: int
    why: str
    columns: tuple[str, ...]


def looks_ahead(reading: Reading, values: Sequence[str], known_at: Collection[str]) -> list[Look]:
    """The expressions by which columns of a query hold what later rows brought, by line.

    Args:
        reading: The query.
        values: The columns of the result that a model may see, as `reading.outputs` names them.
        known_at: Those which say when a row's values became known.

    Raises:
        NotFollowed: The query is written in a way that can't be followed.
    """
    reading.declare_times(known_at)
    judge = _Judge(reading, known_at)
    found: dict[tuple[int, str, str], list[str]] = {}
    for column in values:
        for step in reading.column(reading.root, column):
            for scope, node in reading.reach(*step):
                why = judge.why(scope, node)
                if why:
                    told = _told(node)
                    columns = found.setdefault((told[1], told[0], why), [])
                    columns += [column] if column not in columns else []
    return [Look(text, line, why, tuple(columns)) for (line, text, why), columns in sorted(found.items())]


def _told(node: exp.Expression) -> tuple[str, int]:
    """An expression as the file has it, shortened, and its line."""
    text = " ".join(str(node.meta.get(SAID) or node.sql("duckdb")).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...", int(node.meta.get(AT, 1))


class _Judge:
    """Says of windows, aggregates and queries within a query why they look ahead; nothing where they don't."""

    def __init__(self, reading: Reading, known_at: Collection[str]) -> None:
        self.reading = reading
        self.settled = set(self._settled_by(known_at))

    def why(self, scope: Scope, node: exp.Expression) -> str:
        """Why a node sees later rows, in words; empty where it does not, or where that is not sure."""
        if id(scope) in self.settled:
            return ""
        if is_a(node, "Window"):
            return self._window(scope, node)
        if self.reading.is_aggregate(node) and not is_a(_above(node), "Window"):
            return self._aggregate(scope, node)
        if is_a(node, "Select"):
            return self._picked(scope, node)
        return ""

    def _settled_by(self, known_at: Collection[str]) -> Iterator[int]:
        """Scopes whose last row's time decides when a row is known, or joins: nothing of them comes too early."""
        reading = self.reading
        for name in known_at:
            for step in reading.column(reading.root, name):
                yield from self._latest(reading.reach(*step))
        for scope in reading.scopes:
            for condition in _conditions(scope):
                for side in all_of(condition, "Column") if not is_a(condition, "EQ") else ():
                    source = reading.source_of(scope, side)[1]
                    if is_a(source, "Scope"):
                        for inner, made in reading.column(source, side.name.lower()):
                            yield from self._latest((inner, each) for each in made.walk())

    def _latest(self, steps: Iterator[Step]) -> Iterator[int]:
        for scope, node in steps:
            if is_a(node, *_SETTLES) and self.reading.is_time(scope, node):
                yield id(scope)

    def _window(self, scope: Scope, window: exp.Window) -> str:
        function, spec = bare(window), specification(window, scope)
        relations = self._relations(scope, function)
        if not relations or any(self.reading.is_time(scope, key) for key in spec["partition_by"] or ()):
            return ""
        order = order_of(window, scope)
        if order and self.reading.is_time(scope, order[0].this):
            return _ahead(function, spec["spec"], down=bool(order[0].args.get("desc")))
        # As in `FROM a JOIN b ON b.time < a.time`, where a partition holds what came before one row of a.
        if all(self._bound(scope, name, _filter(function), rows=True) == "above" for name in relations):
            return ""
        if order:
            return f"it is ordered by {_short(order[0].this)}, which is no time"
        whole = "it has no ORDER BY, so it is made of all rows of the partition, whenever they came"
        return "" if is_a(function, "RowNumber") else whole

    def _aggregate(self, scope: Scope, node: exp.Expression) -> str:
        select = scope.expression
        if not is_a(select, "Select"):
            return ""
        keys = self._keys(select)
        timed = [key for key in keys if self.reading.is_time(scope, key)]
        for name in self._relations(scope, node):
            if any(name in self._timed(scope, key) for key in timed):
                continue
            bound = self._bound(scope, name, _filter(node))
            if bound == "below":
                return f"the rows of {name} are bounded by time from below only, so later ones count as well"
            if bound == "none":
                by = f"its GROUP BY ({', '.join(_short(key) for key in keys)}) has no time" if keys else ""
                return (
                    f"{by or 'it has no GROUP BY'}, so it is made of all rows of {name}, whenever they came"
                )
        return ""

    def _picked(self, scope: Scope, select: exp.Select) -> str:
        """EXISTS, IN, ARRAY and the first row of a query within a query."""
        asked = is_a(_above(select), "Exists", "In", "Array")
        if not asked and not select.args.get("limit"):
            return ""
        for name in self._relations(scope, None):
            if self._bound(scope, name) != "above":
                return f"it looks through all rows of {name}, whenever they came"
        return ""

    def _keys(self, select: exp.Select) -> list[exp.Expression]:
        group = select.args.get("group")
        if group is None:
            return []
        if group.args.get("all"):
            made = [each.unalias() for each in select.selects]
            return [each for each in made if not any(self.reading.is_aggregate(n) for n in each.walk())]
        return list(group.expressions)

    def _relations(self, scope: Scope, node: exp.Expression | None) -> list[str]:
        """The relations with a time that a function is given rows of; all of the scope's for `count(*)`."""
        timed = [name for name in scope.selected_sources if self.reading.has_time(scope.sources.get(name))]
        named = {column.table for column in all_of(node, "Column")} if node is not None else set()
        # What is joined to rows with a time is repeated as often as there are such rows.
        return [name for name in timed if name in named] or timed

    def _timed(self, scope: Scope, node: exp.Expression) -> set[str]:
        """The relations whose times stand in an expression; those of a query around it as well."""
        columns = all_of(node, "Column")
        return {column.table for column in columns if self.reading.is_time(scope, column)}

    def _bound(
        self, scope: Scope, name: str, more: Sequence[exp.Expression] = (), *, rows: bool = False
    ) -> Bound:
        """How conditions bound a relation's time; `above` also where they do so in a way not understood.

        Args:
            scope: The SELECT, whose ON and WHERE count.
            name: The relation's name in it.
            more: The conditions of a FILTER.
            rows: For a window, which makes a value for each of the rows that ON and WHERE let pass: there
                neither a fixed moment nor the same moment in two relations keeps later rows out.
        """
        best: Bound = "none"
        conditions = [(part, rows) for part in _conditions(scope)] + [(part, False) for part in more]
        for condition, strictly in conditions:
            for part in all_of(condition, *_COMPARISONS):
                bound = self._compared(scope, name, part, strictly=strictly)
                if bound == "above" or (bound == "below" and part is not condition):
                    return "above"
                best = bound if bound != "none" else best
        return best

    def _compared(self, scope: Scope, name: str, part: exp.Expression, *, strictly: bool) -> Bound:
        """How one comparison bounds a relation's time."""
        if is_a(part, "Between"):
            pairs = [(part.args["low"], part.this), (part.this, part.args["high"])]
        elif is_a(part, "GT", "GTE"):
            pairs = [(part.expression, part.this)]
        else:
            pairs = [(part.this, part.expression)]
        best: Bound = "none"
        for low, high in pairs:
            early, late = self._timed(scope, low), self._timed(scope, high)
            if name not in early | late:
                continue
            mine, other, times = (low, high, early) if name in early else (high, low, late)
            if len(times) > 1 or name in early & late:
                return "above"  # such as a difference of two times
            same = is_a(part, "EQ", "NullSafeEQ")
            if not self.reading.is_time(scope, mine) or (strictly and (same or not all_of(other, "Column"))):
                continue  # such as an hour of the day
            if mine is low or same:
                return "above"
            best = "below"
        return best


def _ahead(function: exp.Expression, spec: exp.Expression | None, *, down: bool) -> str:
    """Why a window that is ordered by time looks ahead; `down` where it is ordered from new to old."""
    if is_a(function, *_OF_ALL):
        return "it counts all rows of the partition, the later ones too"
    if is_a(function, *_RANKS):
        return "it is ordered from new to old, so it counts the later rows" if down else ""
    if is_a(function, "Lead", "Lag"):
        offset = function.args.get("offset")
        back = is_a(offset, "Neg") != is_a(function, "Lag")
        return "it takes a later row's value" if back == down else ""
    start = str(spec.args.get("start_side") or "").upper() if spec else "PRECEDING"
    end = str(spec.args.get("end_side") or "").upper() if spec else ""
    if down and start == "PRECEDING":
        return "it is ordered from new to old, so the rows before are later ones"
    if not down and end == "FOLLOWING":
        return "its frame reaches rows that follow"
    return ""


def _conditions(scope: Scope) -> list[exp.Expression]:
    """The conditions under which a SELECT takes rows, those joined by AND one by one."""
    select = scope.expression
    if not is_a(select, "Select"):
        return []
    found = [join.args["on"] for join in select.args.get("joins") or () if join.args.get("on") is not None]
    found += [select.args["where"].this] if select.args.get("where") else []
    return [part for each in found for part in _parts(each)]


def _parts(condition: exp.Expression) -> list[exp.Expression]:
    bare_one = condition.unnest()
    return list(bare_one.flatten()) if is_a(bare_one, "And") else [bare_one]


def _filter(function: exp.Expression) -> list[exp.Expression]:
    """The conditions of the FILTER that stands around a function."""
    parent = function.parent
    while is_a(parent, "IgnoreNulls", "RespectNulls"):
        parent = parent.parent
    return _parts(parent.expression.this) if is_a(parent, "Filter") else []


def _above(node: exp.Expression) -> exp.Expression | None:
    """What a function or query stands in, without the brackets, FILTER and IGNORE NULLS around it."""
    parent: exp.Expression | None = node.parent
    while is_a(parent, "Filter", "IgnoreNulls", "RespectNulls", "Paren", "Subquery"):
        parent = parent.parent
    return parent


def _short(node: exp.Expression) -> str:
    return str(node.name if is_a(node, "Column") else node.sql("duckdb"))
