"""What treadle costs beside plain Ray Train: xgboost on two workers, the same rows and parameters, side by side.

    python benchmarks/ray_train.py [--rows 200000] [--rounds 200] [--repeats 3]      some minutes; prints one table

    treadle   `XGBoostFlavour().fit` with `train.workers: 2`: checkpoints, losses by round, the same bytes after a cut
    plain     XGBoostTrainer with `xgboost.train`, which reports to Ray as many checkpoints, and no other rounds
    bare      XGBoostTrainer with one `xgboost.train` of all rounds, which hands back its model and keeps nothing

Each run is a process of its own that starts a Ray cluster of this machine, trains and ends it; orders alternate,
figures are medians. What decides is `fit` beside plain: from rows in memory to the model, Ray Train's own start
included; `whole` also has the start and the end of the cluster. Exits 1 when the ratio is missed. All must come to the
same loss. Ray's own RayTrainReportCallback is not measured: each round is reported: 439 s where bare took 46.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any

RATIO = 1.1
SIDES = ("plain", "treadle", "bare")
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
    from treadle.models.xgboost.flavour import XGBoostFlavour, XGBoostPredictor

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


def keeper(every: int) -> Any:
    """Reports a checkpoint to Ray every so many rounds, as the first worker has it."""
    import ray.train
    import xgboost
    from ray.train import Checkpoint

    class Keeper(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if (epoch + 1) % every:
                return False
            losses = {"log_loss": evals_log["train"]["logloss"][-1]}
            if ray.train.get_context().get_world_rank():
                ray.train.report(losses)
                return False
            with TemporaryDirectory() as folder:
                model.save_model(os.path.join(folder, "model.ubj"))
                ray.train.report(losses, checkpoint=Checkpoint.from_directory(folder))
            return False

    return Keeper()


def plain_loop(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import xgboost

    rank = ray.train.get_context().get_world_rank()
    x, y = ray.get(config["shares"][rank])
    matrix = xgboost.DMatrix(x, label=y, nthread=1)
    params = {**PARAMS, "objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "verbosity": 0}
    callbacks = [keeper(config["every"])] if config["every"] else []
    booster = xgboost.train(
        params, matrix, config["rounds"], evals=[(matrix, "train")], verbose_eval=False, callbacks=callbacks
    )
    if rank == 0:
        config["desk"].put(bytes(booster.save_raw("ubj")))


def by_ray(count: int, rounds: int, every: int) -> tuple[float, bytes]:
    """As above, as one would write it without treadle, with a checkpoint every so many rounds, or none by 0."""
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
            train_loop_config={"shares": shares, "rounds": rounds, "desk": desk, "every": every},
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
    if side == "treadle":
        seconds, model = by_treadle(count, rounds)
    else:
        seconds, model = by_ray(count, rounds, EVERY if side == "plain" else 0)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.rows, arguments.rounds)
        return 0
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as folder:
        for number in range(arguments.repeats):
            for side in SIDES[:: -1 if number % 2 else 1]:
                taken[side].append(measured(side, arguments, folder))
    losses = {side: runs[0]["loss"] for side, runs in taken.items()}
    if max(losses.values()) - min(losses.values()) > 0.01:
        raise SystemExit(f"the sides learned different things: {losses}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{arguments.rows} rows, {arguments.rounds} rounds, {WORKERS} workers, {cores} cores, "
          f"{arguments.repeats} runs each, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'':8}{'treadle':>10}{'plain':>10}{'bare':>10}{'to plain':>10}{'to bare':>9}")
    ratios = {}
    for name in ("whole", "fit"):
        ours, plain, bare = (
            statistics.median(run[name] for run in taken[side]) for side in ("treadle", "plain", "bare")
        )
        ratios[name] = ours / plain
        print(f"{name:8}{ours:9.1f}s{plain:9.1f}s{bare:9.1f}s{ours / plain:10.2f}{ours / bare:9.2f}")
    print(f"log losses {', '.join(f'{side} {found:.4f}' for side, found in losses.items())}; at most {RATIO} times"
          " plain's fit is asked")  # fmt: skip
    return 0 if ratios["fit"] <= RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
