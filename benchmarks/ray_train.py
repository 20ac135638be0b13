"""What treadle costs beside plain Ray Train: xgboost on two workers, the same rows and parameters, side by side.

    python benchmarks/ray_train.py [--rows 200000] [--rounds 200] [--repeats 3]      some minutes; prints one table

    treadle   `XGBoostFlavour().fit` with `train.workers: 2`: stretches with checkpoints, losses by round
    plain     XGBoostTrainer with one `xgboost.train` of all rounds, which hands back its model and keeps nothing

Each run is a process of its own that starts a Ray cluster of this machine, trains and ends it; orders alternate,
figures are medians. What decides is `fit`: from rows in memory to the model, Ray Train's own start included; `whole`
also has the start and the end of the cluster. Exits 1 when the ratio is missed. Both must come to the same loss.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

RATIO = 1.1
WORKERS, FEATURES, EVERY = 2, 20, 25
PARAMS = {"max_depth": 6, "learning_rate": 0.1}


def rows(count: int) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, FEATURES))
    y = (x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(size=count) > 0).astype(np.float64)
    return x, y


def by_treadle(count: int, rounds: int) -> tuple[float, bytes]:
    """The seconds of the fit alone, and the model."""
    from datetime import UTC, datetime

    import numpy as np
    from treadle import spec
    from treadle.models.predictor import FitTask, MemoryCheckpoints
    from treadle.models.ray_session import ray_workers
    from treadle.models.schema import Feature, InputSchema
    from treadle.models.xgboost import XGBoostFlavour, XGBoostPredictor

    x, y = rows(count)
    train = spec.Train(params=PARAMS, rounds=rounds, workers=WORKERS, threads=1, checkpoint_every=EVERY)
    task = FitTask(
        train=train,
        schema=InputSchema(tuple(Feature(f"f{number}", "number") for number in range(FEATURES))),
        x=x,
        y=y,
        times_us=np.zeros(count, dtype=np.int64),
        x_valid=None,
        y_valid=None,
        classes=("0", "1"),
        trained_through=datetime(2024, 1, 1, tzinfo=UTC),
        checkpoints=MemoryCheckpoints(),
        report=lambda number, losses: None,
    )
    with ray_workers(WORKERS, 1, "measure"):
        started = time.perf_counter()
        predictor = XGBoostFlavour().fit(task)
        assert isinstance(predictor, XGBoostPredictor)
        return time.perf_counter() - started, predictor.raw


def plain_loop(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import xgboost

    rank = ray.train.get_context().get_world_rank()
    x, y = ray.get(config["shares"][rank])
    matrix = xgboost.DMatrix(x, label=y, nthread=1)
    params = {**PARAMS, "objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "verbosity": 0}
    booster = xgboost.train(params, matrix, config["rounds"], evals=[(matrix, "train")], verbose_eval=False)
    if rank == 0:
        config["desk"].put(bytes(booster.save_raw("ubj")))


def by_plain(count: int, rounds: int) -> tuple[float, bytes]:
    """As above, as one would write it without treadle."""
    import numpy as np
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.xgboost import XGBoostTrainer
    from ray.util.queue import Queue
    from treadle.models.ray_session import ray_workers

    x, y = rows(count)
    with ray_workers(WORKERS, 1, "measure"):
        started = time.perf_counter()
        shares = [
            ray.put(share)
            for share in zip(np.array_split(x, WORKERS), np.array_split(y, WORKERS), strict=True)
        ]
        desk = Queue(actor_options={"num_cpus": 0})
        XGBoostTrainer(
            plain_loop,
            train_loop_config={"shares": shares, "rounds": rounds, "desk": desk},
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="fit", storage_path=os.environ["BENCHMARK_FOLDER"]),
        ).fit()
        model = desk.get()
        return time.perf_counter() - started, model


def loss(model: bytes, count: int) -> float:
    import numpy as np
    import xgboost

    x, y = rows(count)
    p = xgboost.Booster(model_file=bytearray(model)).predict(
        xgboost.DMatrix(x, nthread=1), validate_features=False
    )
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def one(side: str, count: int, rounds: int) -> None:
    """Measures one side, in this process, and prints what came out as JSON."""
    started = time.perf_counter()
    seconds, model = (by_treadle if side == "treadle" else by_plain)(count, rounds)
    whole = time.perf_counter() - started
    print(json.dumps({"fit": seconds, "whole": whole, "loss": loss(model, count)}))


def measured(side: str, arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    command = [sys.executable, "-P", __file__, "--one", side]
    command += ["--rows", str(arguments.rows), "--rounds", str(arguments.rounds)]
    environment = {**os.environ, "BENCHMARK_FOLDER": folder, "RAY_TRAIN_METRICS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    from tempfile import TemporaryDirectory

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=["treadle", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.rows, arguments.rounds)
        return 0
    taken: dict[str, list[dict[str, float]]] = {"treadle": [], "plain": []}
    with TemporaryDirectory() as folder:
        for number in range(arguments.repeats):
            for side in ("treadle", "plain") if number % 2 else ("plain", "treadle"):
                taken[side].append(measured(side, arguments, folder))
    losses = {side: runs[0]["loss"] for side, runs in taken.items()}
    if abs(losses["treadle"] - losses["plain"]) > 0.01:
        raise SystemExit(f"the two sides learned different things: {losses}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{arguments.rows} rows, {arguments.rounds} rounds, {WORKERS} workers, {cores} cores, "
          f"{arguments.repeats} runs each, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'':8}{'treadle':>10}{'plain':>10}{'ratio':>8}")
    ratios = {}
    for name in ("whole", "fit"):
        ours, theirs = (statistics.median(run[name] for run in taken[side]) for side in ("treadle", "plain"))
        ratios[name] = ours / theirs
        print(f"{name:8}{ours:9.1f}s{theirs:9.1f}s{ratios[name]:8.2f}")
    print(
        f"log loss {losses['treadle']:.4f} and {losses['plain']:.4f}; at most {RATIO} times the fit is asked"
    )
    return 0 if ratios["fit"] <= RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
