"""What parsing costs: 50 loops through the drop-in file beside 50 bare DAGs of as many EmptyOperators, by hand.

Each parse is a fresh process that imports a DAG file as Airflow does; the two take turns. Seconds, the least of the
turns, as whatever else the machine does only adds to them. Airflow's own import is the same for both, and most of all:
the third row of each clock takes the least of it for both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOOPS, TURNS = 50, 7
ROOT = Path(__file__).parents[1]

BARE = """\
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

"""
ONE = """\
with DAG("bare_{number}", schedule="0 0 1 * *", catchup=False, tags={{"bare"}}) as dag_{number}:
{tasks}
    {chain}
"""
PARSE = """\
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
import airflow.sdk
import airflow.dag_processing.dagbag
between = time.perf_counter(), time.process_time()
from airflow.dag_processing.dagbag import BundleDagBag
bag = BundleDagBag(dag_folder=sys.argv[1], bundle_path=sys.argv[2], bundle_name="bench")
assert not bag.import_errors, bag.import_errors
end = time.perf_counter(), time.process_time()
print(json.dumps({
    "tasks": sum(len(dag.tasks) for dag in bag.dags.values()), "dags": len(bag.dags),
    "wall": end[0] - wall, "cpu": end[1] - cpu,
    "own wall": end[0] - between[0], "own cpu": end[1] - between[1],
}))
"""


def write_loops(folder: Path) -> Path:
    """The flights loop fifty times, under fifty names, beside the drop-in file."""
    loops = folder / "loops"
    shutil.copytree(ROOT / "loops", loops, ignore=shutil.ignore_patterns(".treadle", "__pycache__"))
    text = (loops / "flights.yaml").read_text()
    (loops / "flights.yaml").unlink()
    for number in range(LOOPS):
        (loops / f"flights_{number}.yaml").write_text(
            text.replace("name: flights", f"name: flights_{number}", 1)
        )
    return Path(shutil.copy(ROOT / "dags" / "treadle_loops.py", folder))


def write_bare(folder: Path, tasks: int) -> Path:
    """As many DAGs by hand, with as many tasks in all."""
    folder.mkdir()
    a_dag = tasks // LOOPS
    lines = [BARE]
    for number in range(LOOPS):
        body = "\n".join(f'    t{task} = EmptyOperator(task_id="t{task}")' for task in range(a_dag))
        chain = " >> ".join(f"t{task}" for task in range(a_dag))
        lines.append(ONE.format(number=number, tasks=body, chain=chain))
    file = folder / "bare.py"
    file.write_text("\n".join(lines))
    return file


def parse(file: Path, home: Path) -> dict[str, float]:
    """One fresh process."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment.pop("TREADLE_LOOPS", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSE, str(file), str(file.parent)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loops = write_loops(folder)
        warm = parse(loops, folder / "home")
        bare = write_bare(folder / "bare", int(warm["tasks"]))
        told: dict[str, list[dict[str, float]]] = {"loops": [], "bare": []}
        for _ in range(TURNS):
            for kind, file in (("bare", bare), ("loops", loops)):
                told[kind].append(parse(file, folder / "home"))
        by_hand = told["bare"][0]
        print(f"{LOOPS} loops: {warm['dags']} DAGs, {warm['tasks']} tasks")
        print(f"by hand: {by_hand['dags']} DAGs, {by_hand['tasks']} tasks")
        print(f"{'':28}{'bare':>8}{'loops':>8}{'ratio':>8}")
        for clock in ("cpu", "wall"):
            show(f"{clock}, with Airflow", *(least(told[kind], clock) for kind in ("bare", "loops")))
            bare_own, loops_own = (least(told[kind], f"own {clock}") for kind in ("bare", "loops"))
            show(f"{clock}, without", bare_own, loops_own)
            airflow = min(turn[clock] - turn[f"own {clock}"] for turns in told.values() for turn in turns)
            show(f"{clock}, one Airflow for both", airflow + bare_own, airflow + loops_own)


def least(turns: list[dict[str, float]], measure: str) -> float:
    return min(turn[measure] for turn in turns)


def show(words: str, bare_s: float, loops_s: float) -> None:
    print(f"{words:28}{bare_s:8.2f}{loops_s:8.2f}{loops_s / bare_s:8.2f}")


if __name__ == "__main__":
    main()
