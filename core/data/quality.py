"""Quality rules: Great Expectations, asked by partition, each answer kept while its data stay.

A rule must hold in every partition: a bad month can't hide behind good years. A rule that names columns is
asked again only where these columns changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from treadle.data.built import ROW_ID
from treadle.data.findings import rows_in_words
from treadle.data.tables import CutPartition
from treadle.errors import Fault, MissingPackage, SpecError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.records import CheckResult
from treadle.store import Store, read_memo, write_memo
from treadle.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN = ("type", "table", "severity")
_NOT_OFFERED = {
    *(
        "id",
        "meta",
        "notes",
        "description",
        "rendered_content",
        "result_format",
        "catch_exceptions",
        "batch_id",
    ),
    *("windows", "severity", "condition_parser"),
}
_ONE_COLUMN = ("column", "column_A", "column_B")
_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `data.checks`; `position` is its place in the list."""

    position: int
    type: str
    table: str
    blocking: bool
    kwargs: dict[str, Any]

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that decide the answer; None means all."""
        if "row_condition" in self.kwargs:
            return None
        named = [self.kwargs[key] for key in _ONE_COLUMN if isinstance(self.kwargs.get(key), str)]
        listed = self.kwargs.get("column_list", ())
        return (*named, *listed) or None

    @property
    def shown_column(self) -> str | None:
        """The columns in words, for the record."""
        return ", ".join(self.columns) if self.columns and "row_condition" not in self.kwargs else None


def rules_of(loop: Loop) -> list[Rule]:
    """The rules of `data.checks`, as far as they can be read without Great Expectations.

    Raises:
        SpecError: A rule without type, for an unknown table, or of an unknown severity; names every one.
    """
    rules, faults = [], []
    for position, check in enumerate(loop.data.checks):
        field = f"data.checks.{position}"
        table = check.get("table", loop.data.labelled)
        severity = check.get("severity", "error")
        if not isinstance(check.get("type"), str):
            faults.append(
                loop.fault(field, "a check needs a `type`.", "Such as expect_column_values_to_not_be_null.")
            )
        elif table not in loop.data.tables:
            faults.append(
                loop.fault(field, f"there is no table {table!r}.", _near(str(table), list(loop.data.tables)))
            )
        elif severity not in {"error", "warn"}:
            faults.append(
                loop.fault(field, f"severity is {severity!r}.", "It is `error`, which blocks, or `warn`.")
            )
        else:
            kwargs = {key: value for key, value in check.items() if key not in _OWN}
            rules.append(Rule(position, check["type"], table, severity == "error", kwargs))
    if faults:
        raise SpecError(faults)
    return rules


def _near(wrong: str, known: Sequence[str]) -> str:
    near = get_close_matches(wrong, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(sorted(known))}."


def check_rules(loop: Loop) -> dict[int, Any]:
    """The expectations that the rules mean, by position, built and so valid; imports Great Expectations.

    Raises:
        SpecError: A type that does not exist, or arguments that it does not take; names every one.
        MissingPackage: Great Expectations is not installed.
    """
    rules = rules_of(loop)
    if not rules:
        return {}
    _context()
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    built, faults = {}, []
    for rule in rules:
        field = f"data.checks.{rule.position}"
        try:
            kind = get_expectation_impl(rule.type)
        except ExpectationNotFoundError:
            known = [name for name in list_registered_expectation_implementations() if name != "expectation"]
            near = get_close_matches(rule.type, known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else "See the gallery of Great Expectations."
            faults.append(loop.fault(field, f"there is no check of type {rule.type!r}.", fix))
            continue
        offered = sorted(set(kind.__fields__) - _NOT_OFFERED)
        unknown = [key for key in rule.kwargs if key not in offered]
        if unknown:
            faults += [
                loop.fault(field, f"{rule.type} takes no {key!r}.", _near(key, offered)) for key in unknown
            ]
            continue
        try:
            built[rule.position] = kind(**rule.kwargs)
        except Exception as error:  # whatever pydantic or the expectation's own validators raise
            faults.append(_argument_fault(loop, field, rule, error))
    if faults:
        raise SpecError(faults)
    return built


def _argument_fault(loop: Loop, field: str, rule: Rule, error: Exception) -> Fault:
    errors = getattr(error, "errors", None)
    words = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
        for item in (errors() if callable(errors) else [])
    )
    return loop.fault(field, f"{rule.type} can't take these arguments: {words or error}.", "Correct them.")


@cache
def _context() -> Any:
    """Great Expectations without its files, its analytics and its progress bars."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    try:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    except ImportError as error:
        raise MissingPackage("great_expectations", "check data by rules", "stages") from error
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


@cache
def _whole_frames() -> Any:
    asset = _context().data_sources.add_pandas("treadle").add_dataframe_asset("partition")
    return asset.add_batch_definition_whole_dataframe("all rows")


def run_rules(
    loop: Loop,
    tables: Mapping[str, Sequence[CutPartition]],
    store: Store,
    say: Callable[[str], None] = lambda line: None,
) -> list[CheckResult]:
    """What each rule says about its table, in the order of `data.checks`.

    Raises:
        SpecError: A rule is none. MissingPackage: Great Expectations is not installed.
    """
    rules = rules_of(loop)
    if not rules:
        return []
    version = _version()
    keys = {
        (rule.position, part.name): _key(rule, part, version) for rule in rules for part in tables[rule.table]
    }
    answers = {place: read_memo(store, "check", key) for place, key in keys.items()}
    missing = [place for place, answer in answers.items() if answer is None]
    if missing:
        say(
            f"prepare: Great Expectations has {counted(len(missing), 'answer')} to give;"
            f" known before: {len(answers) - len(missing)}"
        )
        expectations = check_rules(loop)
        for table, parts in tables.items():
            for part in parts:
                asked = [r for r in rules if r.table == table and answers[(r.position, part.name)] is None]
                if asked:
                    for rule, answer in zip(asked, _ask(asked, expectations, part), strict=True):
                        answers[(rule.position, part.name)] = answer
                        write_memo(store, "check", keys[(rule.position, part.name)], answer)
    return [
        _named(
            loop,
            _result(
                rule, {part.name: answers[(rule.position, part.name)] or {} for part in tables[rule.table]}
            ),
            tables[rule.table],
        )
        for rule in rules
    ]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("great_expectations")
    except PackageNotFoundError:
        raise MissingPackage("great_expectations", "check data by rules", "stages") from None


def _key(rule: Rule, part: CutPartition, version: str) -> str:
    names = part.columns if rule.columns is None else [ROW_ID, *rule.columns]
    data = {name: part.columns.get(name) for name in names}
    return digest_of(
        {"type": rule.type, "kwargs": rule.kwargs, "data": data, "rows": part.rows.num_rows, "by": version}
    )


def _ask(rules: Sequence[Rule], expectations: Mapping[int, Any], part: CutPartition) -> list[dict[str, Any]]:
    """The answers to some rules on one partition, in their order."""
    import great_expectations as gx

    wanted = [rule.columns for rule in rules]
    names = part.rows.column_names
    if None not in wanted:
        named = {name for columns in wanted for name in columns or ()}
        names = [name for name in names if name == ROW_ID or name in named]
    frame = part.rows.select(names).to_pandas()
    batch = _whole_frames().get_batch(batch_parameters={"dataframe": frame})

    def validate(asked: Sequence[Rule], how: dict[str, Any]) -> dict[int, dict[str, Any]]:
        suite = gx.ExpectationSuite(name="treadle")
        for rule in asked:
            expectation = expectations[rule.position].copy()
            expectation.meta = {"position": rule.position}
            suite.add_expectation(expectation)
        results = batch.validate(suite, result_format=how).to_json_dict()["results"]
        return {item["expectation_config"]["meta"]["position"]: item for item in results}

    found = validate(rules, {"result_format": "BASIC", "partial_unexpected_count": 0})
    failing = [
        rule for rule in rules if not found[rule.position]["success"] and not _trouble(found[rule.position])
    ]
    rows: dict[int, dict[str, Any]] = {}
    if failing:
        # Listing the failing rows costs five times as much as counting them, so only those that failed are
        # asked again.
        how = {"result_format": "SUMMARY", "unexpected_index_column_names": [ROW_ID]}
        rows = validate(
            failing, {**how, "return_unexpected_index_query": False, "partial_unexpected_count": _SAMPLE}
        )
    return [_answer(found[rule.position], rows.get(rule.position)) for rule in rules]


def _trouble(item: Mapping[str, Any]) -> str:
    """Why a rule could not run; empty when it could."""
    info = item.get("exception_info") or {}
    several = [info] if "raised_exception" in info else list(info.values())
    messages = [
        one.get("exception_message") or "no reason given" for one in several if one.get("raised_exception")
    ]
    return "; ".join(dict.fromkeys(str(message).strip().splitlines()[0] for message in messages))


def _answer(item: Mapping[str, Any], rows: Mapping[str, Any] | None) -> dict[str, Any]:
    trouble = _trouble(item)
    if trouble:
        return {"status": "could_not_run", "observed": trouble, "sample": []}
    result = item.get("result") or {}
    if result.get("unexpected_count") is not None:
        bad, total = result["unexpected_count"], result.get("element_count", 0)
        observed = f"{bad:,} of {total:,} rows" + (f" ({bad / total:.2%})" if total else "")
    else:
        observed = str(result.get("observed_value", ""))
    listed = (rows or {}).get("result", {}).get("partial_unexpected_index_list") or []
    sample = [str(entry[ROW_ID]) for entry in listed if isinstance(entry, dict) and ROW_ID in entry]
    return {
        "status": "passed" if item["success"] else "failed",
        "observed": observed,
        "sample": sample[:_SAMPLE],
    }


def _result(rule: Rule, answers: Mapping[str, Mapping[str, Any]]) -> CheckResult:
    """One rule's answers over the partitions as one result: the worst of them, with the newest examples."""
    troubled = [name for name, answer in answers.items() if answer["status"] == "could_not_run"]
    failed = [name for name, answer in answers.items() if answer["status"] == "failed"]
    status: Literal["passed", "failed", "warned", "could_not_run"] = "passed"
    named = failed
    if troubled:
        status, named = "could_not_run", troubled
    elif failed:
        status = "failed" if rule.blocking else "warned"
    sample = [row for name in reversed(named) for row in answers[name]["sample"]]
    limits = ", ".join(
        f"{key}={value!r}" for key, value in sorted(rule.kwargs.items()) if key not in _ONE_COLUMN
    )
    shown = [f"{name}: {answers[name]['observed']}" for name in named[-5:]]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return CheckResult(
        name=rule.type,
        table=rule.table,
        column=rule.shown_column,
        status=status,
        blocking=rule.blocking,
        observed="; ".join(shown) + more if named else f"holds in all {len(answers)} partitions",
        evidence=limits,
        sample=tuple(sample[:_SAMPLE]),
    )


def _named(loop: Loop, result: CheckResult, parts: Sequence[CutPartition]) -> CheckResult:
    """The result with its rows by entity and time; answers are kept by row id, whatever the columns are called."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not result.sample:
        return result
    spec = loop.data.tables[result.table]
    entity, time = spec.entity, spec.event_time or spec.known_at or ""
    ids = pa.array(result.sample, pa.string())
    found: dict[str, str] = {}
    for part in parts:
        rows = part.rows.filter(pc.is_in(part.rows.column(ROW_ID), value_set=ids))
        names = [str(row) for row in rows.column(ROW_ID).to_pylist()]
        found |= dict(zip(names, rows_in_words(rows, entity, time), strict=True))
    return result.model_copy(update={"sample": tuple(found.get(row, row) for row in result.sample)})
