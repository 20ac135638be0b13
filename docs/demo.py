"""A year of one model's life on the flights that left New York in 2013: what `make demo` runs.

First champion as of 1 April, then week by week: monitor, triggers, challengers, verdicts; an endpoint that a client
in another process keeps busy across a promotion; an edit of the features in July; a rollback in September, and the
person's word that the rolled-back recipe needs afterwards. Everything lives in .treadle/demo, which each run
makes anew.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import treadle
from rich.console import Console
from rich.table import Table
from treadle import acts
from treadle.clock import parse_instant
from treadle.records import DriftReport, RetrainDecision, Verdict
from treadle.registry.log import champion_in
from treadle.runner import deploy_champion
from treadle.session import open_session

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("TREADLE_DEMO", HERE.parent / ".treadle" / "demo"))
FIRST, LAST = parse_instant("2013-04-01"), parse_instant("2013-12-30")
EDIT_AT, ROLLBACK_AT = parse_instant("2013-07-08"), parse_instant("2013-09-16")
CONNECTIONS = 16
console = Console(stderr=True)
started = time.monotonic()


class Year:
    """What happened, one row a line of the table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def add(self, when: datetime, trigger: str, verdict: Verdict | None, words: str, serves: str) -> None:
        """One line of the year."""
        losses = interval = ""
        if verdict is not None and verdict.comparison is not None:
            seen = verdict.comparison
            champion = "" if seen.champion is None else f"{seen.champion:.4f}"
            losses = f"{champion} / {seen.challenger:.4f}"
            if seen.difference is not None:
                interval = f"{seen.difference:+.4f} [{seen.low:+.4f}, {seen.high:+.4f}]"
        self.rows.append((when.strftime("%d %b"), trigger, losses, interval, words, serves))

    def show(self) -> None:
        """The table, on standard output."""
        table = Table(
            title="One model's year: flights from New York, 2013", show_lines=True, title_justify="left"
        )
        columns = (
            "date",
            "trigger",
            "log-loss: champion / challenger",
            "difference [90 %]",
            "decision and why",
            "serves",
        )
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 170).print(table, markup=False)


def brief(why: str) -> str:
    """A verdict's reason without the sentences on the holdout; `treadle history` has them all."""
    return why.partition(" Judged on")[0]


def say(line: str) -> None:
    """A line of progress with the time since the start."""
    console.print(f"[{time.monotonic() - started:5.0f} s] {line}", highlight=False, markup=False)


def quiet(line: str) -> None:
    """Progress inside a stage, when TREADLE_DEMO_VERBOSE is set."""
    if os.environ.get("TREADLE_DEMO_VERBOSE"):
        say(f"    {line}")


def main() -> int:
    """The year."""
    # Asked to end, it ends the endpoint as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    loops, store = WORK / "loops", WORK / "store"
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(
        HERE.parent / "loops",
        loops,
        ignore=shutil.ignore_patterns(".treadle", "__pycache__"),
    )
    path, year = loops / "flights.yaml", Year()
    edit_features(path, AFTER, BEFORE)
    turn(path, store, FIRST, "first", year)
    client: Client | None = None
    with endpoint(path, store) as url:
        say(f"serving on {url}")
        day = FIRST + timedelta(days=7)
        while day <= LAST:
            if day == EDIT_AT:
                edit_features(path, BEFORE, AFTER)
                year.add(day, "person", None, EDIT, serving(path, store))
            if day == ROLLBACK_AT:
                roll_back(path, store, day, year)
            decision = look(path, store, day, year)
            if decision.due:
                if client is None:
                    client = Client(url, path, store)
                turn(path, store, decision.run_as_of or day, decision.trigger, year)
                if client.running and client.versions_served() > 1:
                    year.add(day, "endpoint", None, client.stop(), serving(path, store))
            day += timedelta(days=7)
        if client is not None and client.running:
            year.add(LAST, "endpoint", None, client.stop(), serving(path, store))
    if not any("keep" in row[4].split(":")[0] for row in year.rows):
        break_on_purpose(path, store, year)
    year.show()
    say(f"done in {time.monotonic() - started:.0f} s; look closer with:")
    say(f"  .venv/bin/treadle history {relative(path)} --store {relative(store)}")
    return 1 if client is not None and client.failed else 0


def relative(path: Path) -> str:
    """A path as a person would type it."""
    return os.path.relpath(path)


def serving(path: Path, store: Path) -> str:
    """The short digest of the champion."""
    session = open_session(treadle.Loop.load(path), store=store, say=quiet)
    entry = champion_in(session.log.entries())
    return f"{entry.candidate[:8]} (v{entry.sequence})" if entry and entry.candidate else "nothing"


def turn(path: Path, store: Path, as_of: datetime, trigger: str, year: Year) -> None:
    """One run of the loop, and the person's answer where one is asked for."""
    say(f"{as_of.date()} {trigger}: prepare, featurize, train, evaluate, release, deploy")
    loop = treadle.Loop.load(path)
    result = treadle.run(loop, as_of=as_of, store=store, say=quiet, who="demo")
    verdict = result.verdict
    assert isinstance(verdict, Verdict)
    session = open_session(loop, as_of=as_of, store=store, say=quiet, who="maria")
    waiting = session.log.entries()[-1].kind == "hold"
    if waiting:
        why = session.log.entries()[-1].why
        year.add(as_of, trigger, verdict, f"hold: {why}", serving(path, store))
        acts.approve(session, "the rollback was a rehearsal; slices and calibration looked at")
        deploy_champion(session)
        year.add(as_of, "person", None, "approve: maria lets the recipe back in", serving(path, store))
    else:
        year.add(as_of, trigger, verdict, f"{verdict.decision}: {brief(verdict.why)}", serving(path, store))
    say(f"{as_of.date()} {verdict.decision}: {brief(verdict.why)}")


def look(path: Path, store: Path, as_of: datetime, year: Year) -> RetrainDecision:
    """One weekly look at the window; drifted ones enter the table."""
    result = treadle.watch(treadle.Loop.load(path), as_of=as_of, store=store, say=quiet, who="demo")
    report, decision = result.monitor, result.retrain
    assert isinstance(report, DriftReport)
    assert isinstance(decision, RetrainDecision)
    say(
        f"{as_of.date()} monitor: {report.words}"
        + (f" -> retrain ({decision.trigger})" if decision.due else "")
    )
    return decision


def roll_back(path: Path, store: Path, as_of: datetime, year: Year) -> None:
    """A person returns to the champion before."""
    session = open_session(treadle.Loop.load(path), as_of=as_of, store=store, say=quiet, who="maria")
    entry = acts.rollback(session, "rehearsal: the desk at EWR wants yesterday's model back")
    deploy_champion(session)
    year.add(as_of, "person", None, f"rollback: {entry.why}", serving(path, store))
    say(f"{as_of.date()} rollback by maria")


EDIT = "edit: departures and arrivals at the airport itself join the features; the champion is judged by its own files"
BEFORE, AFTER = "use: [weather, delays]", "use: [weather, delays, airport]"


def edit_features(path: Path, before: str, after: str) -> None:
    """Changes which feature views the loop uses, as a person would with an editor."""
    text = path.read_text()
    if after in text and before not in text:
        return
    if before not in text:
        raise SystemExit(
            f"{path} has no line `{before}`: the demo's copy was changed; remove {relative(WORK)}"
        )
    path.write_text(text.replace(before, after))


def break_on_purpose(path: Path, store: Path, year: Year) -> None:
    """Where the year held no honest refusal: one candidate, broken openly, so that a refusal can be seen."""
    say("the year held no refusal: one candidate is broken on purpose (2 rounds) to show one ...")
    loop = treadle.Loop.load(path, overrides=["train.rounds=2"])
    result = treadle.run(loop, as_of=LAST, store=store, say=quiet, who="demo")
    verdict = result.verdict
    assert isinstance(verdict, Verdict)
    year.add(
        LAST, "BROKEN ON PURPOSE", verdict, f"{verdict.decision}: {brief(verdict.why)}", serving(path, store)
    )


def write_row(path: Path, store: Path, row: Path) -> None:
    """One real row of features, as a client would send it."""
    from treadle.commit import get_record
    from treadle.data.tables import read_partitions
    from treadle.records import Candidate, FeatureSet

    session = open_session(treadle.Loop.load(path), store=store, say=quiet)
    entry = champion_in(session.log.entries())
    assert entry is not None
    candidate = get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
    features = get_record(session.store, FeatureSet, session.loop.name, candidate.features_id)
    table = read_partitions(
        session.store, features.partitions[-1:], columns=[c.name for c in features.columns]
    )
    row.write_text(json.dumps({"dataframe_records": table.slice(0, 1).to_pylist()}))


@contextmanager
def endpoint(path: Path, store: Path) -> Iterator[str]:
    """`treadle serve` in a process of its own."""
    command = [
        str(Path(sys.executable).with_name("treadle")),
        "serve",
        str(path),
        "--store",
        str(store),
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if "http://" in line:
                yield line.split()[-1].strip()
                break
        else:
            raise RuntimeError("the endpoint did not start")
    finally:
        server.terminate()
        server.wait(20)


class Client:
    """A client in another process: 16 connections that never rest, and a tally of what they were told."""

    def __init__(self, url: str, path: Path, store: Path) -> None:
        self.failed, self.running = 0, True
        row = WORK / "row.json"
        write_row(path, store, row)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "demo_client.py"), url, str(row), str(CONNECTIONS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def versions_served(self) -> int:
        """How many versions answered so far."""
        return int(self._ask("versions")["versions"])

    def stop(self) -> str:
        """Ends the client, and says in words what it saw."""
        tally = self._ask("stop")
        self.process.wait(20)
        self.running, self.failed = False, int(tally["failed"])
        order = "in order" if tally["in_order"] else "OUT OF ORDER"
        return (
            f"{tally['answers']} answers on {CONNECTIONS} connections across a promotion: versions "
            f"{', '.join(tally['seen'])} {order}, {tally['failed']} failed"
        )

    def _ask(self, word: str) -> dict[str, object]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


if __name__ == "__main__":
    sys.exit(main())
