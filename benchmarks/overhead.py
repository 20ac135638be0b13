"""What treadle costs beside the same work without it: whole commands, side by side in one run.

    python benchmarks/overhead.py            some minutes; prints one table, exits 1 when a figure is missed

    cold run     `treadle run loops/flights.yaml --as-of 2013-04-01` in a fresh store, beside benchmarks/straight.py
    no change    the same command again: sources hashed again, nothing made
    import       `import treadle` beside a bare interpreter
    --help       the command line's own start
    measuring    what a job's meter takes of a job that computes for six seconds, as the meter itself says

CPU is user and system time of the process and its children, which stays meaningful on a busy machine, and decides the
cold run; the shorter commands are judged by their wall time. Orders alternate; figures are medians. Each cold command
runs once unmeasured before, so that bytecode and files are there for both. Both sides must come to the same verdict on
the same rows: figures of different work are not shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
LOOP = HERE.parent / "loops" / "flights.yaml"
TREADLE = Path(sys.executable).parent / "treadle"
AS_OF = "2013-04-01"
RATIO, NO_CHANGE_S, IMPORT_S, HELP_S, MEASURING = 1.10, 1.5, 0.15, 0.4, 0.01
METERED = """
import json, time
from treadle.jobs.measure import Meter
with Meter() as meter:
    until = time.process_time() + 6
    while time.process_time() < until: pass
use = meter.use()
print(json.dumps([use.overhead_seconds, use.seconds]))
"""


@dataclass(frozen=True)
class Took:
    """Seconds of a command, whole: wall, and CPU with its children's."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Figure:
    """A line of the table; `met` is None where nothing is demanded."""

    name: str
    treadle: float
    beside: float
    what: str
    goal: str
    met: bool | None


def take(command: Sequence[str], output: Path) -> Took:
    """Runs a command; its standard output goes to a file.

    Raises:
        SystemExit: The command failed; with what it said.
    """
    # Settings of whoever measures would make the two sides do different work, or compile their modules each time.
    ours = ("TREADLE_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    errors = output.with_suffix(".err")
    with open(output, "wb") as out, open(errors, "wb") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=HERE.parent)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = errors.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return Took(wall, used.ru_utime + used.ru_stime)


def medians(taken: Sequence[Took]) -> Took:
    """The median of each figure."""
    return Took(statistics.median(t.wall for t in taken), statistics.median(t.cpu for t in taken))


def alternately(sides: Sequence[Sequence[str]], times: int, folder: Path) -> list[Took]:
    """Medians of commands that take turns; every other turn in reverse order."""
    taken: list[list[Took]] = [[] for _ in sides]
    for turn in range(times):
        for place in range(len(sides))[:: 1 if turn % 2 == 0 else -1]:
            taken[place].append(take(sides[place], folder / "output"))
    return [medians(each) for each in taken]


def treadle_run(store: Path) -> list[str]:
    """The command that is measured."""
    return [str(TREADLE), "run", str(LOOP), "--as-of", AS_OF, "--store", str(store), "--json"]


def cold_runs(rounds: int, folder: Path) -> tuple[Took, Took, Path]:
    """Treadle's and the straight script's medians, and a store that a run has filled."""
    taken: dict[str, list[Took]] = {"treadle": [], "straight": []}
    verdicts: dict[str, Any] = {}
    for turn in range(rounds + 1):
        sides = ("treadle", "straight") if turn % 2 else ("straight", "treadle")
        for side in sides:
            place = folder / f"{side}-{turn}"
            command = treadle_run(place)
            if side == "straight":
                command = [sys.executable, str(HERE / "straight.py"), str(place)]
            took = take(command, folder / f"{side}.out")
            verdicts[side] = json.loads((folder / f"{side}.out").read_text().splitlines()[-1])
            print(
                f"{'warming up' if not turn else f'round {turn}'}: {side}, {took.cpu:.1f} s CPU, {took.wall:.1f} s",
                file=sys.stderr,
            )
            if turn:
                taken[side].append(took)
    require_same_work(verdicts["treadle"], verdicts["straight"])
    return medians(taken["treadle"]), medians(taken["straight"]), folder / f"treadle-{rounds}"


def require_same_work(treadle: dict[str, Any], straight: dict[str, Any]) -> None:
    """Nothing, where both sides trained alike on as many rows and measured the same on the holdout.

    Raises:
        SystemExit: They did not.
    """
    trained, verdict = treadle["train"], treadle["evaluate"]
    compared = verdict["comparison"]
    sides = {
        "rounds": (trained["rounds"], straight["rounds"]),
        "rows to learn from": (trained["rows"], straight["rows"]),
        "rows to judge on": (verdict["holdout"]["rows"], straight["holdout"]),
        "difference of loss": (round(compared["difference"], 6), round(straight["difference"], 6)),
        "p": (round(compared["p"], 6), round(straight["p"], 6)),
    }
    apart = {name: values for name, values in sides.items() if values[0] != values[1]}
    if apart:
        raise SystemExit(
            f"treadle and the straight script did different work: {apart}. Bring benchmarks/straight.py into"
            f" line with {LOOP.name}."
        )


def measure(rounds: int, times: int, folder: Path) -> list[Figure]:
    """Every figure, the expensive ones first."""
    ours, straight, store = cold_runs(rounds, folder)
    again = medians([take(treadle_run(store), folder / "output") for _ in range(rounds)])
    records = json.loads((folder / "output").read_text())
    first = json.loads((folder / "treadle.out").read_text())
    if {name: records[name]["id"] for name in records} != {name: first[name]["id"] for name in first}:
        raise SystemExit("the run with nothing changed made other records than the first")
    python = sys.executable
    bare, imported, shown = alternately(
        [[python, "-c", "pass"], [python, "-c", "import treadle"], [str(TREADLE), "--help"]], times, folder
    )
    take([python, "-c", METERED], folder / "output")
    metering, metered = json.loads((folder / "output").read_text())
    ratio = ours.cpu / straight.cpu
    return [
        Figure(
            "cold run, CPU", ours.cpu, straight.cpu, "straight script", f"<= {RATIO:.2f} x", ratio <= RATIO
        ),
        Figure("cold run, wall", ours.wall, straight.wall, "straight script", "(shown)", None),
        Figure(
            "no change, wall",
            again.wall,
            ours.wall,
            "cold run",
            f"< {NO_CHANGE_S} s",
            again.wall < NO_CHANGE_S,
        ),
        Figure("no change, CPU", again.cpu, ours.cpu, "cold run", "(shown)", None),
        Figure(
            "import treadle, wall",
            imported.wall,
            bare.wall,
            "python -c pass",
            f"<= {IMPORT_S} s more",
            imported.wall - bare.wall <= IMPORT_S,
        ),
        Figure(
            "treadle --help, wall",
            shown.wall,
            bare.wall,
            "python -c pass",
            f"< {HELP_S} s",
            shown.wall < HELP_S,
        ),
        Figure(
            "measuring, CPU",
            metering,
            metered,
            "the job",
            f"< {MEASURING} x",
            metering < MEASURING * metered,
        ),
    ]


def show(figures: Sequence[Figure]) -> None:
    """One table on standard output."""
    words = {True: "met", False: "MISSED", None: ""}
    print(f"{'':22}{'treadle':>10}{'beside it':>12}  {'which is':17}{'ratio':>8}  {'goal':15}")
    for each in figures:
        print(
            f"{each.name:22}{each.treadle:>8.3f} s{each.beside:>10.3f} s  {each.what:17}"
            f"{each.treadle / each.beside:>6.2f} x  {each.goal:15}{words[each.met]}".rstrip()
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the cold run and of the run without change")
    parser.add_argument("--times", type=int, default=10, help="of the short commands")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="treadle-overhead-") as folder:
        figures = measure(options.rounds, options.times, Path(folder))
    show(figures)
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
