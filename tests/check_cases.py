"""One thing wrong with the good loop for each rule of `treadle check`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from good_loop import GOOD, SQL, changed, with_views, write_loop


@dataclass(frozen=True)
class Case:
    """One thing wrong. `field` or `place` (a file's name and a line) say where it must be found."""

    code: str
    change: dict[str, Any] | Callable[[Path], dict[str, Any]]
    field: str | None = None
    place: tuple[str, int] | None = None
    says: str = ""
    along: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """The bad loop's file, in a folder that holds the good one."""
        if callable(self.change):
            return write_loop(folder, self.change(folder))
        return write_loop(folder, changed(self.change))


def file(name: str, text: str, changes: dict[str, Any] | None = None) -> Callable[[Path], dict[str, Any]]:
    """A change that writes a file, and fields of the loop."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_text(text)
        return changed(changes or {})

    return write


def _views(name: str = "", text: str = "", **more: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        content = with_views(folder, **more)
        if name:
            (folder / name).write_text(text)
        return content

    return write


def _beside(name: str, **more: Any) -> Callable[[Path], dict[str, Any]]:
    """Another loop in the same folder, with a table `load` by other SQL."""

    def write(folder: Path) -> dict[str, Any]:
        content = with_views(folder)
        (folder / "other.sql").write_text(
            "select region, known_at, open_orders + 1 as open_orders from load\n"
        )
        other = copy.deepcopy(content)
        other["name"], other["data"]["tables"]["load"]["sql"] = name, "other.sql"
        write_loop(folder, other, "other.yaml")
        return content

    return write


REGRESSION = {
    "train.task": "regression",
    "data.tables.orders.label": "amount",
    "gate.floor": {"r2": 0.2},
    "gate.guard": {"rmse": 0.1},
}
HOOK = {"train.flavour": "estimator", "train.hook": "hooks:model"}
TABLE = "data.tables.orders"
CASES = [
    Case("TR001", {"train.rounds": "many"}, "train.rounds"),
    Case("TR001", {"gate.flor": {"roc_auc": 0.6}}, "gate.flor", says="there is no such key"),
    Case("TR002", {"ignore": {"TR999": "why not"}}, "ignore.TR999"),
    Case("TR002", {"ignore": {"TR031": "why not"}}, "ignore.TR031", says="can't be ignored"),
    Case("TR002", {"ignore": {"TR102": " "}}, "ignore.TR102", says="without a reason"),
    Case(
        "TR003",
        file("hooks.py", "def orders(t): ...\n", {f"{TABLE}.sql": None, f"{TABLE}.python": "hooks:orders"}),
        along=("TR035",),
    ),
    Case("TR005", {"ignore": {"TR102": "we have one"}}, "ignore.TR102", along=("TR102",)),
    Case("TR011", {"data.sources.orders": "${TREADLE_NOT_SET}/orders.csv"}, "data.sources.orders"),
    Case("TR012", {"tags": {"team": "password=hunter2hunter2"}}),
    Case("TR012", file("orders.sql", "-- token: abcdefghijkl\n" + SQL), place=("orders.sql", 1)),
    Case("TR012", {"tracking": {"uri": "https://me:hunter22@tracker.example.org"}}),
    Case("TR013", lambda folder: {**GOOD, "train.rounds=50": None}),
    Case("TR021", {f"{TABLE}.sql": "gone.sql"}, f"{TABLE}.sql"),
    Case("TR021", file("hooks.py", "def model(:\n", HOOK), place=("hooks.py", 1)),
    Case(
        "TR022",
        file("hooks.py", "\nraise RuntimeError('no licence')\n", HOOK),
        place=("hooks.py", 2),
        says="no licence",
    ),
    Case("TR022", file("hooks.py", "def other(): ...\n", HOOK), "train.hook", says="no function 'model'"),
    Case(
        "TR022", {"train.flavour": "estimator", "train.hook": "model"}, "train.hook", says="names no function"
    ),
    Case(
        "TR031",
        file("orders.sql", "select order_id,\nfrom where orders\n"),
        place=("orders.sql", 2),
        says="`where` in line 2: from where orders (column 6)",
    ),
    Case(
        "TR031",
        file("orders.sql", SQL + "where region = 'north\n"),
        place=("orders.sql", 3),
        says="unterminated quoted string at `'north` in line 3: where region = 'north",
    ),
    Case("TR031", file("orders.sql", "drop table orders"), place=("orders.sql", 1), says="not a query"),
    Case("TR031", file("orders.sql", SQL + ";" + SQL), place=("orders.sql", 1), says="2 statements"),
    Case(
        "TR032",
        file("orders.sql", SQL + "join planes using (region)"),
        place=("orders.sql", 3),
        says="'planes'",
    ),
    Case(
        "TR032",
        file("orders.sql", "select * from read_csv('orders.csv')"),
        place=("orders.sql", 1),
        says="by itself",
    ),
    Case("TR033", {"data.sources.orders": "gone.csv"}, "data.sources.orders"),
    Case(
        "TR033",
        file("broken.parquet", "PAR1 but no more", {"data.sources.orders": "broken.parquet"}),
        "data.sources.orders",
    ),
    Case(
        "TR033",
        file("broken.csv.zip", "PK\x03\x04 but no more", {"data.sources.orders": "broken.csv.zip"}),
        "data.sources.orders",
    ),
    Case(
        "TR033",
        {"data.sources.orders": "package://no-such-package-xyz/a.csv"},
        "data.sources.orders",
        says="not installed",
    ),
    Case(
        "TR033",
        file("empty.csv", "", {"data.sources.orders": "empty.csv"}),
        "data.sources.orders",
        says="empty",
    ),
    Case(
        "TR034", file("orders.sql", SQL.replace("amount", "\namout")), place=("orders.sql", 2), says="amout"
    ),
    Case(
        "TR034",
        file("orders.sql", SQL.replace("amount", "late")),
        place=("orders.sql", 1),
        says="two columns",
    ),
    Case("TR035", {f"{TABLE}.entity": "order_number"}, f"{TABLE}.entity", says="order_number"),
    Case("TR035", {f"{TABLE}.label_known_at": "arrived_at"}, f"{TABLE}.label_known_at", says="arrived_at"),
    Case(
        "TR035",
        {f"{TABLE}.known_at_of": {"weight": "placed_at"}},
        f"{TABLE}.known_at_of.weight",
        says="weight",
    ),
    Case("TR036", {f"{TABLE}.event_time": "region"}, f"{TABLE}.event_time", says="VARCHAR"),
    Case("TR036", {f"{TABLE}.entity": "amount"}, f"{TABLE}.entity", says="DOUBLE"),
    Case(
        "TR036",
        file("orders.sql", SQL.replace("amount", "[amount] as amount")),
        place=("orders.sql", 1),
        says="DOUBLE[]",
    ),
    Case("TR037", {f"{TABLE}.known_at": None}, TABLE, says="region, amount"),
    Case("TR038", file("orders.sql", SQL.replace("region", "region, 1 as row_id")), f"{TABLE}.sql"),
    Case("TR039", {"history.to": "2023-01-01"}, "history.to"),
    Case("TR039", {"history.to": "2024-01-10"}, "data.holdout"),
    Case(
        "TR040",
        {"data.checks": [{"type": "expect_column_values_to_not_be_nul"}]},
        "data.checks.0",
        says="not_be_null",
    ),
    Case(
        "TR040",
        {"data.checks": [{"type": "expect_column_values_to_not_be_null", "colum": "region"}]},
        "data.checks.0",
        says="colum",
    ),
    Case(
        "TR040",
        {"data.checks": [{"type": "expect_column_values_to_not_be_null", "column": "wheight"}]},
        "data.checks.0",
        says="no column",
    ),
    Case("TR044", {"gate.block": "0d"}, "gate.block"),
    Case("TR044", {"monitor.every": "0d"}, "monitor.every"),
    Case(
        "TR039",
        {"train.tune": {"space": {"eta": [0.1, 0.2]}, "newest": "400d"}},
        "train.tune.newest",
        says="it takes the newest 400d, and holdout and label_delay leave 350 days of history.",
    ),
    Case("TR040", {"data.checks": [{"column": "region"}]}, "data.checks.0", says="type"),
    Case("TR041", _views(features__use=["load", "stock"]), "features.use.1", says="'stock'"),
    Case(
        "TR041",
        _views("order_features.py", "import feast\n1 / 0\n"),
        place=("order_features.py", 2),
        says="ZeroDivision",
    ),
    Case("TR041", {"features": {"use": ["load"]}}, "features.use"),
    Case("TR041", {"features": {"columns": ["amount", "weight"]}}, "features.columns.1", says="'weight'"),
    Case("TR042", _views(features__use=[]), "features.file"),
    Case("TR043", {"gate.slices": ["region", "continent"]}, "gate.slices.1", says="continent"),
    Case("TR043", {"gate.fairness": ["continent"], "approval": "manual"}, "gate.fairness.0"),
    Case("TR051", {"train": {"flavour": "xgbost"}}, "train.flavour", says="xgbost"),
    Case("TR052", {"gate.loss": "squared_error"}, "gate.loss"),
    Case("TR052", {"gate.floor": {"auc": 0.6}}, "gate.floor.auc"),
    Case("TR053", {f"{TABLE}.label": "region", "gate.slices": ["amount"]}, f"{TABLE}.label"),
    Case("TR054", {"pools": {"trian": "gpu"}}, "pools.trian", says="Did you mean 'train'?"),
    Case("TR054", {"pools": {"learn": "gpu"}}, "pools.learn", says="The stages are: prepare"),
    Case("TR054", {"pools": {"train": "gpu"}}, "pools.train", says="no pools.yaml"),
    Case(
        "TR054",
        file("pools.yaml", "cpu: {backend: local}\n", {"pools": {"train": "gpu"}}),
        "pools.train",
        says="cpu",
    ),
    Case(
        "TR057",
        file("policy.yaml", "required_tags: [team]\n", {"pools": {"train": "local"}}),
        "pools.train",
        says="'team'",
    ),
    Case(
        "TR058",
        file(
            "pools.yaml",
            "chips: {accelerator: inferentia, count: 1, options: {cores_per_device: 2}}\nroomy: {cpu: 1}\n",
            {"pools": {"train": "chips"}},
        ),
        "pools.train",
        says="Name a pool of cpu or gpu for train (local, roomy); no flavour trains on inferentia.",
    ),
    Case(
        "TR058",
        file(
            "pools.yaml",
            "chips: {accelerator: inferentia, count: 1, options: {cores_per_device: 2}}\n",
            {"pools": {"deploy": "chips"}},
        ),
        "pools.deploy",
        says="xgboost can't be compiled for inferentia: it computes neural networks only, and no trees. What can is"
        " torch",
    ),
    Case(
        "TR058",
        file("pools.yaml", "far: {backend: ray, options: {pendin_s: 5}}\n", {"pools": {"prepare": "far"}}),
        "pools.prepare",
        says="pendin_s",
    ),
    Case(
        "TR058",
        file(
            "pools.yaml",
            "chips: {accelerator: trainium, count: 1, options: {cores_per_device: 2}}\n"
            "gpus: {accelerator: nvidia-l4, count: 1}\n",
            {"pools": {"train": "chips"}, "train.flavour": "xgboost"},
        ),
        "pools.train",
        says="Name a pool of cpu or gpu for train (gpus, local), or take the flavour torch.",
    ),
    Case("TR055", {"retrain.schedule": "fortnightly"}, "retrain.schedule"),
    Case("TR056", {"monitor": None}, "retrain.on.0"),
    Case("TR101", {"gate.guard": {}, "gate.floor": {}}, "gate"),
    Case("TR102", {"gate.floor": {}}, "gate.floor"),
    Case("TR103", {"gate.slices": []}, "gate.slices"),
    Case("TR104", {"gate.margin": 0.3}, "gate.margin"),
    Case("TR105", {"gate.margin": 0.0}, "gate.margin"),
    Case("TR106", {"gate.alpha": 0.3}, "gate.alpha"),
    Case("TR107", {"data.holdout": "10d"}, "data.holdout"),
    Case("TR108", {"data.holdout": "10d", "gate.min_blocks": 10}, "data.holdout"),
    Case("TR109", {"gate.block": "1h"}, "gate.block"),
    Case("TR110", {"gate.slice_min_blocks": 20}, "gate.slice_min_blocks"),
    Case("TR111", {"gate.guard": {"roc_auc": 0.01}}, "gate.guard.roc_auc"),
    Case("TR112", {"gate.fairness": ["region"]}, "approval"),
    Case("TR113", {"data.window": "20d"}, "data.window"),
    Case("TR114", {"train.early_stopping": {"newest": "60d"}}, "train.early_stopping.newest"),
    Case("TR114", {"train.tune": {"space": {"eta": [0.1, 0.2]}, "newest": "60d"}}, "train.tune.newest"),
    Case("TR115", {"data.label_delay": "0d"}, "data.label_delay"),
    Case("TR116", {"data.checks": []}, "data.checks"),
    Case("TR117", {"data.leakage": {"allow": {"amount": "paid in advance"}}}, "data.leakage.allow.amount"),
    Case(
        "TR118",
        file("orders.sql", SQL.replace("amount", "\navg(amount) over (partition by region) as amount")),
        place=("orders.sql", 2),
        says="`AVG(amount) OVER (PARTITION BY region)` enters amount: it has no ORDER BY",
    ),
    Case("TR119", file("orders.sql", SQL + "where placed_at < now()"), place=("orders.sql", 3), says="`now`"),
    Case("TR119", file("orders.sql", SQL.replace("amount", "random() as amount")), place=("orders.sql", 1)),
    Case("TR119", file("orders.sql", SQL + "using sample 10%"), place=("orders.sql", 3), says="chance"),
    Case("TR102", REGRESSION | {"gate.floor": {}}, "gate.floor", says="{r2: 0.2}"),
    Case("TR120", REGRESSION, "gate.margin", says="square of the label's unit"),
    Case("TR120", REGRESSION | {"gate.margin": 0.2}, "gate.slice_limit"),
    Case("TR120", REGRESSION | {"gate.loss": "absolute_error"}, "monitor.quality.margin", says="median"),
    Case("TR121", {"monitor": None}, "monitor"),
    Case("TR122", {"retrain": None}, "retrain"),
    Case("TR123", {"data.label_delay": "30d"}, "monitor.every"),
    Case("TR123", {"monitor.quality": {"min_coverage": 0.95}}, "monitor.quality.min_coverage"),
    Case("TR124", {"retrain.on": []}, "retrain.on"),
    Case("TR125", {"retrain.schedule": None}, "retrain"),
    Case("TR126", {"retrain.strikes": 1}, "retrain.strikes"),
    Case("TR127", {"retrain.schedule": "weekly"}, "monitor.every"),
    Case("TR127", {"retrain.schedule": "0 6 * * *"}, "monitor.every"),
    Case("TR128", {"retrain.cooldown": "1d"}, "retrain.cooldown"),
    Case("TR129", {"retrain.new_labels": 500}, "retrain.new_labels"),
    Case("TR130", {"retrain.on": ["drift", "decay"]}, "retrain.on.1"),
    Case("TR131", {"deploy": {"capture": False}}, "deploy.capture"),
    Case("TR132", _views(monitor=None), "features.use"),
    Case("TR141", {"owner": None}, "owner"),
    Case("TR142", {"description": None}, "description"),
    Case("TR143", {"tags": {"edited": "yes"}}, says="orders.yaml"),
    Case("TR144", {"train.trust": "pickle"}, "train.trust"),
    Case("TR146", _beside("others"), "data.tables.load.sql", says="'others'"),
    Case("TR147", _beside("orders"), "name"),
    Case(
        "TR148",
        lambda folder: changed({"data.sources.orders": str(folder / "orders.csv")}),
        "data.sources.orders",
    ),
    Case("TR149", file("planes.csv", "a\n1\n", {"data.sources.planes": "planes.csv"}), "data.sources.planes"),
    Case("TR150", _views(features=None), "data.tables.load"),
    Case("TR151", {"retry": {"attempts": 20}}, "retry.attempts"),
    Case("TR153", {"tracking": {"uri": "http://tracker.example.org"}}, "tracking.uri"),
]
NOT_BY_FILE = {"TR004", "TR145", "TR152"}
