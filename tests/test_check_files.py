"""What `treadle check` reads beside the loop file: the heads of sources, SQL, Feast files, loops beside it, pools."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from good_loop import FEAST, changed, with_views, write_good, write_loop
from treadle.check import Finding, check, has_errors, render

# Great Expectations imports a module that Python 3.11 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")


def test_the_head_of_a_large_zipped_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    path = write_good(tmp_path)
    monkeypatch.setattr("treadle.checks.probe.HEAD_BYTES", 300)
    with zipfile.ZipFile(tmp_path / "orders.csv.zip", "w") as archive:
        archive.write(tmp_path / "orders.csv", "orders.csv")
    write_loop(tmp_path, changed({"data.sources.orders": "orders.csv.zip"}))
    assert [f for f in check(path) if f.code != "TR143"] == []
    (tmp_path / "orders.sql").write_text("select *, replace(amount, 'NA', '') as a from orders")
    found = check(path, only=["TR034"])
    assert [(f.code, f.severity) for f in found] == [("TR003", "info")], "types of a head are a guess"


def test_parquet_sources_are_described_without_their_rows(tmp_path: Path) -> None:
    import duckdb

    path = write_good(tmp_path)
    duckdb.sql(
        f"copy (from read_csv('{tmp_path}/orders.csv')) to '{tmp_path}/orders.parquet' (format parquet)"
    )
    write_loop(tmp_path, changed({"data.sources.orders": "orders.parquet"}))
    assert [f for f in check(path) if f.code != "TR143"] == []


def test_a_query_that_only_duckdb_can_parse_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlglot

    def refuses(*args: object, **more: object) -> object:
        raise sqlglot.errors.ParseError("no", errors=[{"line": 2, "col": 3, "highlight": "orders"}])

    path = write_good(tmp_path)
    monkeypatch.setattr(sqlglot, "parse", refuses)
    (finding,) = check(path, only=["TR031"])
    assert (finding.code, finding.severity, finding.line) == ("TR003", "info", 2)
    assert "from 'orders' on" in finding.evidence


@pytest.mark.parametrize(
    "sql",
    [
        "select order_id, placed_at, region as today, amount, late, delivered_at from orders",
        'select order_id, placed_at, region, amount as "random", late, delivered_at from orders -- now()',
        "select order_id, placed_at, 'now()' as region, amount, late, delivered_at from orders",
        "select order_id, placed_at, age(delivered_at, placed_at) > interval 1 day as region, amount, late,"
        " delivered_at from orders",
        "select order_id, placed_at, region, amount, late, delivered_at from orders tablesample reservoir(10%)"
        " repeatable (7)",
        "select order_id, placed_at, region, amount, late, delivered_at from orders using sample 10% (bernoulli,"
        " 7)",
    ],
    ids=["a name", "a quoted name", "a text", "two times", "a seed", "another seed"],
)
def test_what_only_looks_like_the_clock_or_chance_passes(tmp_path: Path, sql: str) -> None:
    path = write_good(tmp_path)
    (tmp_path / "orders.sql").write_text(sql)
    assert check(path, only=["TR119", "TR031", "TR034"]) == []


def test_each_call_to_the_clock_has_its_line(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    (tmp_path / "orders.sql").write_text(
        "select order_id, placed_at, region,\n  age(placed_at) as amount, late, delivered_at\nfrom orders\n"
        "where placed_at < current_date\n  and placed_at < today()"
    )
    found = check(path, only=["TR119"])
    assert [(f.line, f.evidence.split("`")[1]) for f in found] == [
        (2, "age"),
        (4, "current_date"),
        (5, "today"),
    ]


def _neighbour(folder: Path, name: str, feast: str) -> None:
    """A loop beside the good one that shares its view `load`, with a Feast file of its own."""
    other = copy.deepcopy(with_views(folder))
    other["name"], other["features"]["file"] = name, f"{name}_features.py"
    (folder / f"{name}_features.py").write_text(feast)
    write_loop(folder, other, f"{name}.yaml")


def test_a_view_that_differs_is_told_once_with_every_loop(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, with_views(tmp_path))
    for name in ("first", "second"):
        _neighbour(tmp_path, name, FEAST.replace("hours=12", "hours=24"))
    (finding,) = check(path, only=["TR146"])
    assert finding.field == "features.use.0"
    assert "'first'" in finding.evidence
    assert "'second'" in finding.evidence


@pytest.mark.parametrize(
    ("feast", "codes"),
    [
        ("# Ours.\n{}\nunused = 3\n", []),
        ("{}\nstock = FeatureView(name='stock', entities=[region], source=snapshot_source('load'))\n", []),
        ("{}", []),
    ],
    ids=["a comment", "a further view", "the same"],
)
def test_a_neighbour_with_the_same_view_is_no_conflict(tmp_path: Path, feast: str, codes: list[str]) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, with_views(tmp_path))
    _neighbour(tmp_path, "other", feast.replace("{}", FEAST))
    assert [f.code for f in check(path, only=["TR146"])] == codes


def test_a_view_whose_entity_differs_is_a_conflict(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, with_views(tmp_path))
    _neighbour(tmp_path, "other", FEAST.replace('join_keys=["region"]', 'join_keys=["area"]'))
    assert [f.code for f in check(path, only=["TR146"])] == ["TR146"]


# Pools.


def in_pools(folder: Path, text: str, **pools: str) -> Path:
    """The good loop with pools, beside a pools.yaml."""
    path = write_good(folder)
    (folder / "pools.yaml").write_text(text)
    write_loop(folder, changed({"pools": pools} if pools else {}))
    return path


def places(found: list[Finding]) -> list[tuple[str, int, str, str]]:
    return [(Path(f.file).name, f.line, f.code, f.field) for f in found]


MISTAKES = "roomy: {cpu: 1}\nbig:\n  acelerator: gpu\n  count: x\n"


@pytest.mark.parametrize(
    "pools", [{}, {"train": "big"}, {"train": "big", "evaluate": "roomy", "deploy": "big"}]
)
def test_mistakes_in_pools_yaml_are_told_once_at_their_own_lines(
    tmp_path: Path, pools: dict[str, str]
) -> None:
    found = check(in_pools(tmp_path, MISTAKES, **pools), only=["TR054", "TR057", "TR058"])
    assert places(found) == [
        ("pools.yaml", 3, "TR054", "big.acelerator"),
        ("pools.yaml", 4, "TR054", "big.count"),
    ]
    assert "Did you mean 'accelerator'?" in found[0].fix


def test_an_unknown_pool_is_told_beside_the_mistakes_of_the_file(tmp_path: Path) -> None:
    path = in_pools(tmp_path, MISTAKES, train="bgi", evaluate="roomy")
    line = path.read_text().splitlines().index("  train: bgi") + 1
    found = check(path, only=["TR054"])
    assert places(found)[0] == ("orders.yaml", line, "TR054", "pools.train")
    assert found[0].evidence == "there is no pool 'bgi'; known are: big, local, roomy."
    assert found[0].fix == "Did you mean 'big'?"
    assert len(found) == 3


def test_a_pools_yaml_that_cannot_be_read_hides_no_other_finding(tmp_path: Path) -> None:
    found = check(in_pools(tmp_path, "big: [\n", train="bgi"), only=["TR054", "TR057", "TR058"])
    assert [(Path(f.file).name, f.code) for f in found] == [("pools.yaml", "TR054")]
    assert "not YAML" in found[0].evidence


def test_a_device_that_this_machine_lacks_is_no_error_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.hardware.devices import refuse_missing_devices

    monkeypatch.setitem(refuse_missing_devices.__kwdefaults__, "dev", tmp_path / "dev")
    path = in_pools(tmp_path, "gpus: {accelerator: gpu, count: 1}\n", train="gpus")
    (found,) = check(path, only=["TR058"])
    assert (found.code, found.severity, found.field) == ("TR003", "info", "pools.train")
    assert "promises 1 x gpu; this machine shows none. A run that begins on this machine" in found.evidence
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert check(path, only=["TR058"]) == []


@pytest.mark.parametrize(
    ("about", "severity", "words"),
    [
        ("image: treadle:1", "error", "the local backend runs none"),
        ("options: {devises: [0]}", "error", "no option 'devises'"),
        ("accelerator: gpu, count: 2, max_jobs: 2, options: {devices: [0]}", "error", "has 1 device"),
        ("python: /nowhere/python", "info", "/nowhere/python is no program on this machine"),
        ("cpu: 4096", "info", "asks for 4096 cores a job; this machine has"),
    ],
)
def test_what_no_machine_could_do_on_a_pool_of_this_one_is_an_error(
    tmp_path: Path, about: str, severity: str, words: str
) -> None:
    (found,) = check(in_pools(tmp_path, f"here: {{{about}}}\n", train="here"), only=["TR058"])
    assert (found.severity, found.field) == (severity, "pools.train")
    assert words in found.evidence


# Overrides.


def test_overrides_are_checked_as_if_written_in_the_file(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    (tmp_path / "pools.yaml").write_text("roomy: {cpu: 1}\n")
    asked = ["train.flavour=torch", "train.params={hiden: [3], dropout: 2}", "pools.train=romy"]
    found = {f.field: f for f in check(path, only=["TR051", "TR054"], overrides=asked)}
    assert {(f.file, f.line, f.severity) for f in found.values()} == {("--set", 0, "error")}
    assert "did you mean 'hidden'?" in found["train.params.hiden"].evidence
    assert "at least 0 and below 1, not 2" in found["train.params.dropout"].evidence
    assert found["pools.train"].fix == "Did you mean 'roomy'?"
    assert render(list(found.values())).startswith("--set TR0")
    assert check(path, only=["TR051", "TR054"]) == []


def test_a_fault_by_an_override_hides_no_finding_of_the_file(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, changed({"owner": None, "gate.margin": -1}))
    found = check(path, only=["TR141"], overrides=["train.rounds=many", "gate.alpha=0.9"])
    assert has_errors(found)
    assert {(Path(f.file).name, f.code, f.field) for f in found} == {
        ("--set", "TR001", "train.rounds"),
        ("--set", "TR001", "gate.alpha"),
        ("orders.yaml", "TR001", "gate.margin"),
        ("orders.yaml", "TR141", "owner"),
    }
