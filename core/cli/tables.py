"""What the command line shows to a person: progress, tables, a status in words."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from treadle.records import Json, Record
from treadle.registry.log import Entry
from treadle.session import Run
from treadle.words import counted, moment, short


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that takes lines of progress: a spinner with the time on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    started = time.monotonic()
    with console.status("starting ...") as spinner:

        def say(line: str) -> None:
            if line.endswith("..."):
                spinner.update(f"{line} ({time.monotonic() - started:.0f} s)")
            else:
                console.print(line, highlight=False, markup=False)

        yield say


def width() -> int:
    """How wide texts may be: the terminal's width, and 120 in a file or a pipe; COLUMNS says otherwise."""
    return shutil.get_terminal_size((120, 24)).columns


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as `width` at most."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=max(width(), 80)).print(table, markup=False)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names with their texts beside them, wrapped; a text's own lines begin anew."""
    if not fields:
        return
    indent = 2 + max(len(name) for name, _ in fields) + 2
    for name, text in fields:
        lead = f"  {name}".ljust(indent)
        for line in text.splitlines() or [""]:
            print(wrapped(line, lead, indent))
            lead = " " * indent


def wrapped(text: str, lead: str, indent: int) -> str:
    """A paragraph after its lead, its further lines indented."""
    return textwrap.fill(
        text,
        max(width(), indent + 40),
        initial_indent=lead,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_run(run: Run) -> None:
    """What each stage of a run came to."""
    print(f"{run.loop} as of {moment(run.as_of)} on {run.track}")
    serving = getattr(run.get("deploy"), "candidate", None)
    print_fields([(stage, _in_words(record, serving)) for stage, record in run.items()])
    for warning in run.warnings:
        print(wrapped(warning, "  note: ", 8))


def _in_words(record: Record, serving: str | None) -> str:
    """A record's results, as a run shows them; `serving` is the model that serves at its end."""
    told: Any = record
    match record.kind:
        case "snapshot":
            return f"{counted(told.rows, 'row')}, {told.labelled_rows:,} with a known label{_remarks(told)}"
        case "features":
            return f"{counted(told.rows, 'row')}, {counted(len(told.columns), 'feature')}{_remarks(told)}"
        case "candidate":
            return (
                f"model {short(told.digest)}: {told.flavour} on {counted(told.rows, 'row')}"
                f" before {moment(told.trained_through)}"
            )
        case "verdict":
            return f"{told.decision}: {told.why}"
        case "release":
            proposed = "promoted" if told.candidate == serving else "proposed"
            return f"model {short(told.candidate)} {proposed if told.proposed else 'rejected'}"
        case "deployment":
            how = f", compiled for {told.compiled.device}" if told.compiled else ""
            return f"model {short(told.candidate)} serves{how}" if told.candidate else "nothing serves yet"
        case "drift_report":
            return str(told.words)
        case _:
            when = f", as of {moment(told.run_as_of)}" if told.run_as_of else ""
            return f"{f'due ({told.trigger}{when})' if told.due else 'not due'}: {told.why}"


def _remarks(record: Any) -> str:
    remarks = sum(check.status != "passed" for check in record.checks)
    return f"; {counted(remarks, 'warning')} of {counted(len(record.checks), 'check')}" if remarks else ""


def print_history(entries: Sequence[Entry]) -> None:
    """The release log, one line an entry."""
    rows, said = [], dict[tuple[str, str], int]()
    for entry in entries:
        model = short(entry.candidate) if entry.candidate else ""
        first = said.setdefault((entry.subject, entry.why), entry.sequence)
        why = entry.why if first == entry.sequence else f"as said in {first}"
        if entry.kind == "rollback":
            why = f"from {short(entry.champion)}: {why}"
        rows.append((str(entry.sequence), moment(entry.effective_at), entry.kind, model, entry.who, why))
    print_table("release log", ("#", "effective", "kind", "model", "who", "why"), rows)


def print_status(found: Json) -> None:
    """The state of a loop."""
    print(f"{found['loop']} on track {found['track']} ({found['store']})")
    champion, pending = found["champion"], found["pending"]
    fields = []
    if champion:
        fields.append(("serves", _serves(champion)))
    elif pending:
        fields.append(("serves", "nothing yet: the first model waits"))
    else:
        fields.append(("serves", "nothing yet: run the loop"))
    for name, label in (("last_verdict", "verdict"), ("last_retrain", "retrain")):
        if found[name]:
            fields.append((label, f"{_day(found[name]['as_of'])} {found[name]['why']}"))
    if found["drift"]:
        fields.append(("drift", f"{_day(found['drift']['end'])} {found['drift']['words']}"))
    fields += [("data", f"of the champion: {warning}") for warning in (champion or {}).get("warnings", ())]
    if pending:
        fields.append(("waits", f"{_day(pending['as_of'])} model {short(pending['candidate'])}"))
    print_fields(fields + [("ALERT", alert) for alert in found["alerts"]])


def _serves(champion: Json) -> str:
    through = f", trained through {_day(champion['trained_through'])}" if champion["trained_through"] else ""
    return f"model {short(champion['candidate'])} since {_day(champion['since'])}{through}"


def _day(instant: str) -> str:
    """An instant's date, with the time where it is not midnight."""
    return instant.removesuffix("T00:00:00Z").replace("T", " ")


def print_champion(at: str, champion: Json | None) -> None:
    """Who served at a time."""
    if champion is None:
        print(f"nothing served at {at}")
        return
    print(f"at {at} model {short(champion['candidate'])} served:")
    fields = [(name, _shown(name, value)) for name, value in champion.items() if name not in _NAMED_ELSEWHERE]
    print_fields([(name, text) for name, text in fields if text])


_NAMED_ELSEWHERE = ("candidate", "candidate_id")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_shown(key, item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if name in ("features", "recipe"):
        return short(value)
    if name == "verdict":
        return f"{short(value)} (treadle history LOOP --verdict {short(value)})"
    return _day(value) if name in ("since", "trained_through") else str(value)


def print_explained(explained: Sequence[Json]) -> None:
    """Why each stage ran again."""
    for stage in explained:
        if stage["before"] is None:
            print(f"{stage['stage']}: {stage['name']} was made for the first time")
            continue
        outcome = "with the same result" if stage["same_result"] else "with another result"
        print(f"{stage['stage']}: {stage['name']} made after {stage['name_before']}, {outcome}, because of")
        for change in stage["changed"]:
            print(f"  {change['part']}: {_brief(change['before'])} -> {_brief(change['now'])}")


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
