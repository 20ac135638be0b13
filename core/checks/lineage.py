"""What a query's columns are made of: each step from a column of the result back to the sources.

query ─ sqlglot resolves names and stars ─► scopes (a SELECT each) ─► `reach`: every expression on a column's way
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from treadle.checks.probe import Columns, NotFollowed

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.optimizer.scope import Scope

SAID, AT = "treadle said", "treadle at"
_TIMES = ("DATE", "TIMESTAMP", "DATETIME")
_CYCLES = (
    *("Month", "Day", "DayOfMonth", "DayOfWeek", "DayOfWeekIso", "DayOfYear", "Week", "WeekOfYear"),
    *("Hour", "Minute", "Second", "Quarter", "Dayname", "Monthname"),
)
_LENGTHS = ("DateDiff", "TimestampDiff", "DatetimeDiff", "TimeDiff")
_FROM_TEXT = ("StrToTime", "StrToDate", "UnixToTime", "DateFromParts", "TimestampFromParts")
_KEEPS_TIME = ("Max", "Min", "AnyValue", "First", "Last", "Median", "Mode", "ArrayAgg")
_ONE_OF = ("ArgMax", "ArgMin", "Lag", "Lead", "FirstValue", "LastValue", "NthValue")
_RANKS = ("RowNumber", "Rank", "DenseRank")
_NO_TIME = {"age", "isodow", "weekday", "millisecond", "microsecond", "date_sub", "datesub", "date_diff"}
_LONG_PARTS = {"year", "isoyear", "yearweek", "decade", "century", "epoch", "julian"}

Step = tuple["Scope", "exp.Expression"]


def is_a(node: object, *kinds: str) -> TypeGuard[Any]:
    """Whether a node is of one of sqlglot's classes, by name."""
    return any(each.__name__ in kinds for each in type(node).__mro__)


def all_of(node: exp.Expression, *kinds: str) -> list[exp.Expression]:
    """The nodes of some classes in an expression, itself included."""
    return [each for each in node.walk() if is_a(each, *kinds)]


class Reading:
    """A query whose names are resolved. Names of columns and sources are in lower case.

    Args:
        text: The query, in DuckDB's dialect.
        sources: Each source's columns with their DuckDB types.
        aggregates: The names of DuckDB's aggregates; sqlglot knows most, not all.

    Raises:
        NotFollowed: sqlglot can't resolve it.
    """

    def __init__(self, text: str, sources: Mapping[str, Columns], aggregates: Collection[str] = ()) -> None:
        from sqlglot import parse_one
        from sqlglot.errors import SqlglotError
        from sqlglot.optimizer.qualify import qualify
        from sqlglot.optimizer.scope import traverse_scope

        self.sources = {
            name.lower(): {column.lower(): type_ for column, type_ in columns.items()}
            for name, columns in sources.items()
        }
        self.aggregates = {name.lower() for name in aggregates}
        self.declared: frozenset[tuple[str, str]] = frozenset()
        try:
            tree = parse_one(text, dialect="duckdb")
            _remember(tree)
            names = {name: dict.fromkeys(columns, "TEXT") for name, columns in self.sources.items()}
            how: dict[str, Any] = {"validate_qualify_columns": False, "quote_identifiers": False}
            with _quiet():
                tree = qualify(tree, schema=names, dialect="duckdb", identify=False, **how)
                self.scopes = traverse_scope(tree)
        except (SqlglotError, RecursionError, ValueError, KeyError, AttributeError) as error:
            raise NotFollowed((str(error).splitlines() or [type(error).__name__])[0]) from None
        if not self.scopes:
            raise NotFollowed(f"it is a {tree.key.upper()}")
        self.root = self.scopes[-1]

    @property
    def outputs(self) -> list[str]:
        """The names of the result's columns, in order."""
        return [name.lower() for name in self.root.expression.named_selects]

    def column(self, scope: Scope, name: str) -> list[Step]:
        """The expressions that make a column of a scope, one for each branch of a UNION."""
        made = scope.expression
        if is_a(made, "SetOperation"):
            left, right = scope.set_operation_scopes
            names, others = ([n.lower() for n in side.expression.named_selects] for side in (left, right))
            if made.args.get("by_name"):
                return [
                    step
                    for side, has in ((left, names), (right, others))
                    if name in has
                    for step in self.column(side, name)
                ]
            if name not in names or len(names) != len(others):
                raise NotFollowed(f"the column {name!r} was not found")
            return self.column(left, name) + self.column(right, others[names.index(name)])
        if is_a(made, "Select"):
            found = [each for each in made.selects if each.alias_or_name.lower() == name]
            if not found:
                raise NotFollowed(f"the column {name!r} was not found")
            return [(scope, found[0].unalias())]
        if is_a(made, "Lateral") and scope.subquery_scopes:
            return self.column(scope.subquery_scopes[0], name)
        return [(scope, child) for child in made.iter_expressions() if not is_a(child, "TableAlias")]

    def source_of(self, scope: Scope, column: exp.Column) -> tuple[Scope | None, exp.Table | Scope | None]:
        """The scope, this or one around it, that a column's relation stands in, and the relation."""
        around: Scope | None = scope
        while around is not None:
            if column.table in around.sources:
                return around, around.sources[column.table]
            around = around.parent
        return None, None

    def reach(self, scope: Scope, node: exp.Expression) -> Iterator[Step]:
        """Every expression whose value enters another, through all SELECTs; not what only sorts or filters."""
        seen: set[tuple[int, str]] = set()
        waiting: list[Step] = [(scope, node)]
        while waiting:
            here, each = waiting.pop()
            if is_a(each, "Column"):
                yield here, each
                source = self.source_of(here, each)[1]
                mark = (id(source), each.name.lower())
                if is_a(source, "Scope") and mark not in seen:
                    seen.add(mark)
                    waiting += self.column(source, each.name.lower())
            elif is_a(each, "Query") and not is_a(each, "Subquery"):
                inner = next((s for s in here.subquery_scopes if s.expression is each), None)
                if inner is None:
                    raise NotFollowed(f"a query within a query was not found: {each.sql('duckdb')[:60]}")
                yield inner, each
                for name in each.named_selects:
                    waiting += self.column(inner, name.lower())
            else:
                yield here, each
                within = [each.this] if is_a(each, "Window") else each.iter_expressions()
                waiting += [(here, child) for child in within]

    def leaves(self, scope: Scope, node: exp.Expression) -> set[tuple[str, str]]:
        """The columns of sources that a value is made of."""
        found = set()
        for here, each in self.reach(scope, node):
            source = self.source_of(here, each)[1] if is_a(each, "Column") else None
            if is_a(source, "Table"):
                found.add((source.name.lower(), each.name.lower()))
        return found

    def declare_times(self, names: Collection[str]) -> None:
        """Takes what these columns of the result are made of for times, where the sources hold none by type."""
        for name in names:
            found = {leaf for step in self.column(self.root, name) for leaf in self.leaves(*step)}
            if not any(_typed(self.sources.get(source, {}).get(column, "")) for source, column in found):
                self.declared |= found

    def is_aggregate(self, node: exp.Expression) -> bool:
        """Whether a function makes one value of many rows."""
        if is_a(node, "Anonymous"):
            return str(node.this).lower() in self.aggregates
        return is_a(node, "AggFunc")

    def has_time(self, source: exp.Table | Scope | None, seen: frozenset[int] = frozenset()) -> bool:
        """Whether a relation's rows have a time, so that some of them come later than others."""
        if is_a(source, "Table"):
            name = source.name.lower()
            typed = any(_typed(type_) for type_ in self.sources.get(name, {}).values())
            return typed or any(name == declared for declared, _ in self.declared)
        if source is None or id(source) in seen:
            return False
        inner = [*source.set_operation_scopes, *source.subquery_scopes] if not source.selected_sources else []
        inner += [relation for _, relation in source.selected_sources.values()]
        return any(self.has_time(each, seen | {id(source)}) for each in inner)

    def is_time(
        self, scope: Scope, node: exp.Expression, seen: frozenset[tuple[int, str]] = frozenset()
    ) -> bool:
        """Whether an expression grows with time: a time, a day, a year; not an hour of the day or a length."""
        if is_a(node, "Column"):
            source, name = self.source_of(scope, node)[1], node.name.lower()
            if is_a(source, "Table"):
                return self._is_time_leaf(source.name.lower(), name)
            if source is None or (id(source), name) in seen:
                return False
            seen |= {(id(source), name)}
            return any(self.is_time(inner, each, seen) for inner, each in self.column(source, name))
        if is_a(node, "Window"):
            function, order = bare(node), order_of(node, scope)
            if is_a(function, *_RANKS):
                return (
                    bool(order) and not order[0].args.get("desc") and self.is_time(scope, order[0].this, seen)
                )
            return self.is_time(scope, function, seen)
        if is_a(node, "Cast", "TryCast") and node.to.sql("duckdb").upper() == "TIME":
            return False
        if is_a(node, *_FROM_TEXT) or (is_a(node, "Cast") and _typed(node.to.sql("duckdb"))):
            return bool(all_of(node, "Column"))
        if _no_time(node) or (self.is_aggregate(node) and not is_a(node, *_KEEPS_TIME, *_ONE_OF)):
            return False
        if is_a(node, "Case"):
            children = [branch.args["true"] for branch in node.args["ifs"]] + [node.args.get("default")]
        elif is_a(node, "If"):
            children = [node.args["true"], node.args.get("false")]
        elif is_a(node, *_ONE_OF):
            children = [node.this]
        elif is_a(node, "Sub"):
            both = [self.is_time(scope, side, seen) for side in (node.this, node.expression)]
            return both[0] != both[1]
        else:
            children = list(node.iter_expressions())
        return any(self.is_time(scope, child, seen) for child in children if child is not None)

    def _is_time_leaf(self, source: str, column: str) -> bool:
        named = column == "year" and any(_typed(type_) for type_ in self.sources.get(source, {}).values())
        typed = _typed(self.sources.get(source, {}).get(column, ""))
        return named or typed or (source, column) in self.declared


@contextmanager
def _quiet() -> Iterator[None]:
    """Without sqlglot's own warnings: what it can't follow is a finding."""
    logger = logging.getLogger("sqlglot")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _remember(tree: exp.Expression) -> None:
    """Notes at each node what stands in the file and in which line, as resolving names rewrites it."""
    for node in all_of(tree, "Window", "Func", "Query"):
        lines = [int(each.meta["line"]) for each in node.walk() if each.meta.get("line")]
        node.meta[SAID], node.meta[AT] = node.sql("duckdb", comments=False), min(lines, default=1)


def bare(window: exp.Window) -> exp.Expression:
    """A window's function, without FILTER and IGNORE NULLS around it."""
    function: exp.Expression = window.this
    while is_a(function, "Filter", "IgnoreNulls", "RespectNulls"):
        function = function.this
    return function


def specification(window: exp.Window, scope: Scope) -> dict[str, Any]:
    """A window's `partition_by`, `order` and `spec`, those of the WINDOW that it names included."""
    found = {key: window.args.get(key) for key in ("partition_by", "order", "spec")}
    named = window.args.get("alias")
    select = scope.expression
    for definition in select.args.get("windows") or () if named is not None else ():
        if definition.name.lower() == named.name.lower() and definition is not window:
            inherited = specification(definition, scope)
            found = {key: found[key] or inherited[key] for key in found}
    return found


def order_of(window: exp.Window, scope: Scope) -> list[exp.Expression]:
    """What a window's rows are ordered by."""
    order = specification(window, scope)["order"]
    return list(order.expressions) if order is not None else []


def _typed(type_: str) -> bool:
    return type_.upper().startswith(_TIMES)


def _no_time(node: exp.Expression) -> bool:
    """Whether a function's value does not grow with the time that it is given."""
    if is_a(node, "Extract"):
        return node.name.lower() not in _LONG_PARTS
    if is_a(node, "Anonymous"):
        name, first = str(node.this).lower(), node.expressions[0] if node.expressions else None
        if name in ("date_part", "datepart"):
            return is_a(first, "Literal") and first.name.lower() not in _LONG_PARTS
        return name in _NO_TIME
    if is_a(node, "TimeToStr"):
        written = node.args.get("format")
        return is_a(written, "Literal") and not any(
            sign in written.name for sign in ("%Y", "%y", "%G", "%s", "%c", "%x", "%F", "%D")
        )
    return is_a(node, *_CYCLES, *_LENGTHS, "Predicate")
