"""How long a Dagster code location with 50 loops takes to load, beside 50 groups of assets written by hand.

Each load is a fresh process that imports what it needs and builds the definitions, the asset graph and the jobs: what a
code server does when it starts. The kinds take turns. Three groups are written by hand:

bare assets             eight empty assets in a chain, and nothing else
with a job each         the same and the least that runs them as a loop: one job a group
with what a loop has    the same with as many checks, partitions, two jobs, two schedules, two sensors, all of which do
                        nothing: what a team would write for what treadle shows

The goal is at most 1.2 of bare assets, in CPU: time on a shared machine says more of the others on it.

    python benchmarks/dagster_load.py [--loops 50] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOAL = 1.2
HEAVY = (
    *("airflow", "boto3", "duckdb", "evidently", "feast", "great_expectations", "ibis", "mlflow", "numpy"),
    *("pandas", "pyarrow", "ray", "scipy", "sklearn", "sqlglot", "torch", "xgboost"),
)

# What a Dagster team would write.
BY_HAND = """
import dagster as dg

NAMES = ["snapshot", "features", "candidate", "verdict", "release", "champion", "drift_report", "retrain_decision"]

def group(name):
    found = []
    for before, asset in zip([None, *NAMES], NAMES):
        @dg.asset(key=[name, asset], deps=[[name, before]] if before else [], group_name=name, description=asset)
        def made():
            pass
        found.append(made)
    return dg.Definitions(assets=found{jobs})

def definitions():
    return dg.Definitions.merge(*[group(f"loop_{{number}}") for number in range({loops})])
"""
JOBS = ', jobs=[dg.define_asset_job(f"{name}_job", dg.AssetSelection.groups(name))]'
WHOLE = """
import dagster as dg

CHECKS = {{"snapshot": 10, "features": 1, "candidate": 1, "verdict": 8, "release": 1, "drift_report": 2}}
NAMES = ["snapshot", "features", "candidate", "verdict", "release", "champion", "drift_report", "retrain_decision"]
FRESH = dg.FreshnessPolicy.time_window(fail_window=__import__("datetime").timedelta(days=60))

class Answer(dg.Config):
    by: str
    reason: str

def group(name):
    found = []
    months = dg.MonthlyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")
    for before, asset in zip([None, *NAMES], NAMES):
        @dg.asset(
            key=[name, asset], deps=[[name, before]] if before else [], group_name=name, description=asset,
            owners=["team:ops"], tags={{"loop": name}}, kinds={{"python"}}, code_version="1",
            partitions_def=months if asset not in NAMES[6:] else None,
            freshness_policy=FRESH if asset == "champion" else None,
            required_resource_keys={{"store"}},
            check_specs=[
                dg.AssetCheckSpec(f"check_{{number}}", asset=[name, asset], description="a check", blocking=number > 5)
                for number in range(CHECKS.get(asset, 0))
            ],
        )
        def made(context):
            pass
        found.append(made)

    @dg.op(name=f"{{name}}_answer", required_resource_keys={{"store"}})
    def answered(context, config: Answer):
        pass

    @dg.job(name=f"{{name}}_decide")
    def decide():
        answered()

    loop = dg.define_asset_job(f"{{name}}_job", dg.AssetSelection.groups(name))

    def tick(context):
        return dg.RunRequest()

    def look(context):
        return dg.SkipReason("nothing")

    return dg.Definitions(
        assets=found,
        jobs=[loop, decide],
        schedules=[
            dg.ScheduleDefinition(name=f"{{name}}_{{what}}", job=loop, cron_schedule="0 0 1 * *", execution_fn=tick)
            for what in ("train", "watch")
        ],
        sensors=[
            dg.SensorDefinition(
                name=f"{{name}}_{{what}}", job=loop, evaluation_fn=look, required_resource_keys={{"store"}}
            )
            for what in ("retrain", "release")
        ],
        resources={{"store": STORE}},
    )

STORE = dg.ResourceDefinition.hardcoded_resource("store")

def definitions():
    return dg.Definitions.merge(*[group(f"loop_{{number}}") for number in range({loops})])
"""
TREADLE = """
from treadle_dagster import folder_definitions

def definitions():
    return folder_definitions("{folder}")
"""
LOCATION = """
import dagster as dg

@dg.definitions
def defs():
    return definitions()
"""
MEASURE = """
import json, resource, sys, time
started = time.perf_counter()
code = open(sys.argv[1]).read()
space = {}
exec(compile(code, sys.argv[1], "exec"), space)
imported = time.perf_counter()
repository = space["definitions"]().get_repository_def()
assets = len(repository.asset_graph.get_all_asset_keys())
jobs = len(repository.get_all_jobs())
ended = time.perf_counter()
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(json.loads(sys.argv[2])))
cpu = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"import": imported - started, "build": ended - imported, "cpu": cpu.ru_utime + cpu.ru_stime,
                  "assets": assets, "jobs": jobs, "heavy": heavy}))
"""


def write_loops(folder: Path, count: int) -> None:
    """The flights' files, and their loop under other names."""
    source = ROOT / "loops"
    (folder / "sql").mkdir(parents=True)
    for path in (source / "sql").glob("*.sql"):
        (folder / "sql" / path.name).write_text(path.read_text())
    (folder / "flights_features.py").write_text((source / "flights_features.py").read_text())
    text = (source / "flights.yaml").read_text()
    for number in range(count):
        named = re.sub(r"^name: flights$", f"name: loop_{number}", text, flags=re.MULTILINE)
        (folder / f"loop_{number}.yaml").write_text(named)


def load(script: Path, code: Path) -> dict[str, float | int | list[str]]:
    """One load in a fresh process; modules are compiled once, as where they are installed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, str(script), str(code), json.dumps(HEAVY)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float | int | list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def validate(folder: Path, module: str) -> dict[str, float | int | list[str]]:
    """Dagster's own command: it starts a code server, which loads all of a module. The CPU is that of all processes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    subprocess.run(
        [str(Path(sys.executable).parent / "dagster"), "definitions", "validate", "-m", module],
        cwd=folder,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        capture_output=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cpu": cpu}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help="also time `dagster definitions validate`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_loops(folder / "loops", options.loops)
        script = folder / "measure.py"
        script.write_text(MEASURE)
        codes = {
            "bare assets": BY_HAND.format(loops=options.loops, jobs=""),
            "with a job each": BY_HAND.format(loops=options.loops, jobs=JOBS),
            "with what a loop has": WHOLE.format(loops=options.loops),
            "treadle": TREADLE.format(folder=folder / "loops"),
        }
        for kind, code in codes.items():
            (folder / f"of {kind}.py").write_text(code)
            (folder / f"location_{len(kind)}.py").write_text(code + LOCATION)
        served: dict[str, list[dict[str, float | int | list[str]]]] = {kind: [] for kind in codes}
        found: dict[str, list[dict[str, float | int | list[str]]]] = {kind: [] for kind in codes}
        for number in range(options.rounds + 1):
            for kind in codes:
                measured = load(script, folder / f"of {kind}.py")
                if number:  # the first of each warms the disk's cache
                    found[kind].append(measured)
                if options.serve:
                    served[kind].append(validate(folder, f"location_{len(kind)}"))
    show(found, options.loops)
    if options.serve:
        show_served(served)


def show(found: dict[str, list[dict[str, float | int | list[str]]]], loops: int) -> None:
    """The table, with medians over the rounds."""
    rounds = len(found["treadle"])
    print(f"{loops} groups, medians of {rounds} fresh processes each, in turns\n")
    print("| | import s | definitions, graph, jobs s | together s | CPU s | assets | jobs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    middle = {}
    for kind, all_ in found.items():
        cells = {
            name: statistics.median(float(one[name]) for one in all_) for name in ("import", "build", "cpu")
        }  # type: ignore[arg-type]
        cells["together"] = statistics.median(float(one["import"]) + float(one["build"]) for one in all_)  # type: ignore[arg-type]
        middle[kind] = cells
        numbers = " | ".join(f"{cells[name]:.2f}" for name in ("import", "build", "together", "cpu"))
        print(f"| {kind} | {numbers} | {all_[0]['assets']} | {all_[0]['jobs']} |")
    print()
    for kind in list(found)[:-1]:
        ratios = {name: middle["treadle"][name] / middle[kind][name] for name in ("together", "cpu", "build")}
        print(
            f"treadle beside {kind}: {ratios['together']:.2f} of the time, {ratios['cpu']:.2f} of the CPU"
            f" (without imports {ratios['build']:.2f})"
        )
    heavy = found["treadle"][0]["heavy"]
    print(f"heavy libraries loaded by treadle: {heavy or 'none'}; goal: at most {GOAL} of bare assets")


def show_served(served: dict[str, list[dict[str, float | int | list[str]]]]) -> None:
    """The ratios for Dagster's own command."""
    middle = {
        kind: {name: statistics.median(float(one[name]) for one in all_) for name in ("wall", "cpu")}  # type: ignore[arg-type]
        for kind, all_ in served.items()
    }
    print("\n`dagster definitions validate`, with its code server:\n")
    print("| | time s | CPU s | treadle's CPU beside it |")
    print("| --- | --- | --- | --- |")
    for kind, cells in middle.items():
        ratio = middle["treadle"]["cpu"] / cells["cpu"]
        print(f"| {kind} | {cells['wall']:.2f} | {cells['cpu']:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
