"""What the command line shows to a person: progress, tables, a status in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from treadle.records import Json
from treadle.registry.log import Entry


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


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)


def print_history(entries: Sequence[Entry]) -> None:
    """The release log, one line an entry."""
    rows = [
        (
            str(entry.sequence),
            entry.effective_at.strftime("%Y-%m-%d"),
            entry.kind,
            (entry.candidate or "")[:12],
            entry.who,
            entry.why,
        )
        for entry in entries
    ]
    _print_table("release log", ("#", "effective", "kind", "candidate", "who", "why"), rows)


def print_status(found: Json) -> None:
    """The state of a loop."""
    champion = found["champion"]
    lines = [f"{found['loop']} on track {found['track']} ({found['store']})"]
    if champion:
        lines.append(
            f"  serves      {champion['candidate'][:12]} since {champion['since'][:10]},"
            f" trained through {str(champion['trained_through'])[:10]}"
        )
    else:
        lines.append("  serves      nothing yet: run the loop")
    for name, label in (("last_verdict", "verdict"), ("last_retrain", "retrain")):
        if found[name]:
            lines.append(f"  {label:<11} {found[name]['as_of'][:10]} {found[name]['why']}")
    if found["drift"]:
        lines.append(f"  drift       {found['drift']['end'][:10]} {found['drift']['words']}")
    lines += [f"  ALERT       {alert}" for alert in found["alerts"]]
    print("\n".join(lines))


def print_champion(at: str, champion: Json | None) -> None:
    """Who served at a time."""
    if champion is None:
        print(f"nothing served at {at}")
        return
    width = max(len(name) for name in champion)
    print(f"at {at}:")
    for name, value in champion.items():
        lines = [f"{key} {item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
        for number, line in enumerate(lines or [""]):
            print(f"  {name if number == 0 else '':<{width}}  {line}")


def print_explained(explained: Sequence[Json]) -> None:
    """Why each stage ran again."""
    for stage in explained:
        if stage["before"] is None:
            print(f"{stage['stage']}: made for the first time ({stage['id'][:12]})")
            continue
        outcome = "with the same result" if stage["same_result"] else "with another result"
        print(
            f"{stage['stage']}: {stage['id'][:12]} made after {stage['before'][:12]}, {outcome}, because of"
        )
        for change in stage["changed"]:
            print(f"  {change['part']}: {_short(change['before'])} -> {_short(change['now'])}")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
