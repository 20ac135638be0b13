"""Server CPU per request: treadle's endpoint beside `mlflow models serve`, with the same xgboost model.

    python benchmarks/serving.py            about a minute; prints one table and the ratio

Both are the real servers in processes of their own, one worker each. The figure is the CPU time of the server's
whole process tree, from /proc: it stays meaningful on a busy machine, unlike the requests per second beside it. Each
request holds one row of 20 numbers and 3 categories (8, 20 and 50 levels) for a model of 200 trees. treadle gets the
categories as texts, as its users send them; MLflow gets their codes, which is less work, since its xgboost flavour
can't take texts. Rounds alternate between the servers; the table shows medians. The goal is for a busy server, with 16
connections; with one connection nothing can be joined, and the call of xgboost itself is most of treadle's cost.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
LEVELS = (8, 20, 50)
NUMBERS = 20
TICKS = os.sysconf("SC_CLK_TCK")
GOAL = 10
LOOP = """\
name: bench
data:
  sources: {rows: rows.csv}
  tables:
    rows: {sql: rows.sql, entity: id, event_time: at, known_at: at, label: y, label_known_at: known}
"""


@dataclass
class Server:
    """A running server and a request that it understands."""

    name: str
    pid: int
    url: str
    body: Path


def train(trees: int, rows: int = 20_000) -> Any:
    """A predictor of treadle's xgboost flavour on made-up rows."""
    from treadle import spec
    from treadle.models import get_flavour
    from treadle.models.predictor import FitTask, MemoryCheckpoints
    from treadle.models.schema import Feature, InputSchema

    random = np.random.default_rng(0)
    features = [Feature(f"number_{j}", "number") for j in range(NUMBERS)]
    features += [
        Feature(f"category_{j}", "category", tuple(f"level-{code:02d}" for code in range(count)))
        for j, count in enumerate(LEVELS)
    ]
    codes = [random.integers(count, size=rows).astype(float) for count in LEVELS]
    x = np.column_stack([random.normal(size=(rows, NUMBERS)), *codes])
    score = x[:, :5].sum(axis=1) + np.sin(codes[2]) + np.cos(codes[1])
    return get_flavour("xgboost").fit(
        FitTask(
            train=spec.Train(
                rounds=trees, params={"max_depth": 6, "learning_rate": 0.1}, checkpoint_every=trees
            ),
            schema=InputSchema(tuple(features)),
            x=x,
            y=(score + random.normal(size=rows) > 0).astype(float),
            times_us=np.arange(rows, dtype=np.int64),
            x_valid=None,
            y_valid=None,
            classes=("0", "1"),
            trained_through=datetime(2024, 1, 1, tzinfo=UTC),
            checkpoints=MemoryCheckpoints(),
            report=lambda round_, metrics: None,
        )
    )


def release(predictor: Any, folder: Path) -> tuple[Path, Path]:
    """The loop file and the store in which the model is the champion."""
    from treadle.commit import commit_record, make_record
    from treadle.identity import canonical, digest_of
    from treadle.loop import Loop
    from treadle.records import Candidate
    from treadle.registry.log import ReleaseLog
    from treadle.stages.train import recipe_sections
    from treadle.store import open_store, put_blob

    (folder / "model").mkdir()
    predictor.save(folder / "model")
    store = open_store(folder / "store")
    blobs = {f"model/{path.name}": put_blob(store, path) for path in sorted((folder / "model").iterdir())}
    (folder / "bench.yaml").write_text(LOOP)
    sections = recipe_sections(Loop.load(folder / "bench.yaml"))
    blobs["loop/spec.json"] = put_blob(store, canonical(sections).encode())
    as_of = predictor.trained_through
    results = {
        "flavour": predictor.flavour, "task": predictor.task, "recipe": "bench", "trained_from": None,
        "trained_through": as_of, "rows": 0, "metrics": {}, "classes": predictor.classes, "label_definition": "",
        "features": "",
    }  # fmt: skip
    record = commit_record(
        store,
        make_record(
            Candidate,
            loop="bench",
            as_of=as_of,
            key=blobs,
            digest=digest_of(blobs),
            results=results,
            blobs=blobs,
            notes={},
        ),
    )
    ReleaseLog(store, "bench").append(
        "promote", subject=record.digest, candidate=record.digest, why="benchmark", as_of=as_of, who="benchmark",
        details={"candidate_id": record.id},
    )  # fmt: skip
    return folder / "bench.yaml", folder / "store"


def command_of(name: str) -> str:
    """A command of this Python's environment."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended with everything that it started."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,
            cwd=log.parent,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
        else:
            return
    sys.exit(f"{url} did not come up:\n{log.read_text()[-3000:]}")


def tree(pid: int) -> list[int]:
    """A process and everything that it started and that still runs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, of its ended children too."""
    total = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def drive(server: Server, connections: int, requests: int) -> dict[str, Any]:
    """What the load client saw, with the server's CPU microseconds per request."""
    command = [sys.executable, str(HERE / "load_client.py"), server.url, str(server.body)]
    before = cpu_seconds(server.pid)
    done = subprocess.run(
        [*command, "--connections", str(connections), "--requests", str(requests)],
        check=True,
        capture_output=True,
    )
    seen = json.loads(done.stdout)
    if seen["failed"]:
        sys.exit(f"{server.name}: {seen['failed']} requests failed, such as {seen['failures']}")
    seen["cpu_us"] = 1e6 * (cpu_seconds(server.pid) - before) / seen["requests"]
    return dict(seen)


def ask(server: Server) -> float:
    request = urllib.request.Request(
        server.url, server.body.read_bytes(), {"content-type": "application/json"}
    )
    answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
    return float(answer["predictions"][0])


def requests_of(predictor: Any, folder: Path) -> tuple[Path, Path]:
    """The same row for treadle, with texts, and for MLflow, with codes."""
    numbers = np.random.default_rng(1).normal(size=NUMBERS).round(6).tolist()
    codes = [count // 2 for count in LEVELS]
    texts = [
        feature.categories[code]
        for feature, code in zip(predictor.schema.features[NUMBERS:], codes, strict=True)
    ]
    paths = folder / "treadle.json", folder / "mlflow.json"
    for path, values in zip(paths, (texts, [float(code) for code in codes]), strict=True):
        split = {"columns": list(predictor.schema.names), "data": [numbers + values]}
        path.write_text(json.dumps({"dataframe_split": split}))
    return paths


@contextmanager
def treadle_server(predictor: Any, folder: Path, body: Path) -> Iterator[Server]:
    loop, store = release(predictor, folder)
    port, log = free_port(), folder / "treadle.log"
    command = [
        command_of("treadle"),
        "serve",
        str(loop),
        "--store",
        str(store),
        "--port",
        str(port),
    ]
    with running(command, log, {}) as process:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield Server("treadle serve", process.pid, f"http://127.0.0.1:{port}/invocations", body)


@contextmanager
def mlflow_server(predictor: Any, folder: Path, body: Path) -> Iterator[Server]:
    import mlflow.xgboost

    model = folder / "mlflow-model"
    mlflow.xgboost.save_model(predictor.booster, str(model), pip_requirements=["xgboost"])
    port, log = free_port(), folder / "mlflow.log"
    command = [
        command_of("mlflow"),
        "models",
        "serve",
        "-m",
        str(model),
        "--env-manager",
        "local",
        "-p",
        str(port),
        "-w",
        "1",
    ]
    # It starts uvicorn by its bare name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {
        "PATH": path,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    with running(command, log, environment) as process:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield Server("mlflow models serve", process.pid, f"http://127.0.0.1:{port}/invocations", body)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--requests", type=int, default=4000, help="a round, for treadle; MLflow gets a tenth"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="treadle-bench-") as name:
        folder = Path(name)
        say("training one model for both")
        predictor = train(arguments.trees)
        ours, theirs = requests_of(predictor, folder)
        say("starting both servers")
        with (
            treadle_server(predictor, folder, ours) as treadle,
            mlflow_server(predictor, folder, theirs) as mlflow,
        ):
            answers = ask(treadle), ask(mlflow)
            if abs(answers[0] - answers[1]) > 1e-6:
                sys.exit(f"the servers disagree: {answers}")
            ratios = compare(treadle, mlflow, arguments.rounds, arguments.requests)
    print(
        f"one row costs treadle {ratios[16]:.0f} times less server CPU at 16 connections; the goal is {GOAL}"
    )
    return 0 if ratios[16] >= GOAL else 1


def compare(treadle: Server, mlflow: Server, rounds: int, requests: int) -> dict[int, float]:
    """Prints the table; the ratio of CPU for each number of connections."""
    print(
        f"{'server':22}{'connections':>12}{'CPU us/request':>16}{'(lowest-highest)':>18}{'requests/s':>12}{'p50 ms':>9}"
    )
    ratios = {}
    for connections in (1, 16):
        seen: dict[str, list[dict[str, Any]]] = {treadle.name: [], mlflow.name: []}
        for number in range(rounds + 1):  # the first warms up
            for server, count in ((treadle, requests), (mlflow, requests // 10)):
                result = drive(server, connections, count)
                if number:
                    seen[server.name].append(result)
                say(f"{server.name}, {connections} connections, round {number}: {result['cpu_us']:.0f} us")
        middle = {}
        for name, results in seen.items():
            cpu = [result["cpu_us"] for result in results]
            middle[name] = statistics.median(cpu)
            rate = statistics.median(result["requests"] / result["seconds"] for result in results)
            p50 = statistics.median(result["p50_ms"] for result in results)
            spread = f"{min(cpu):.0f}-{max(cpu):.0f}"
            print(f"{name:22}{connections:12}{middle[name]:16.0f}{spread:>18}{rate:12.0f}{p50:9.2f}")
        ratios[connections] = middle[mlflow.name] / middle[treadle.name]
        print(f"{'ratio':22}{connections:12}{ratios[connections]:15.1f}x")
    return ratios


if __name__ == "__main__":
    sys.exit(main())
