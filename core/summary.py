"""A record in a few plain values: what an orchestrator's page, a message or a log line shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.records import Json, Record


def summary_of(record: Record) -> Json:
    """See `Record.summary`."""
    from treadle.records import STAGE_OF

    header = record.model_dump(mode="json", include={"id", "digest", "loop", "as_of"})
    results = record.model_dump(mode="json", include=set(record.result_fields()))
    # Texts, yes or no, times and ids; what is nested is data about data, and stays in the store.
    plain = {name: value for name, value in results.items() if value is None or isinstance(value, str | bool)}
    return {
        "stage": STAGE_OF[record.kind],
        "kind": record.kind,
        **header,
        **plain,
        "words": _words(record, results),
        "numbers": dict(_numbers(results)),
    }


def _words(record: Record, results: Mapping[str, Any]) -> str:
    """One line: the record's own reason where it has one, else its headline."""
    told = results.get("why") or results.get("words")
    if told:
        return " ".join(str(told).split())
    shown = {name: results[name] for name in record.headline()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or str(record)


def _numbers(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Each number by its dotted name; lists (columns, partitions, checks) are left out."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{prefix}{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{prefix}{name}", float(item)
