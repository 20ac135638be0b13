from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from feast_cases import FEATURES, HOUR, START, Case, report, visit
from treadle.data.feast_store import Plan, feature_plan, legal_name
from treadle.errors import HookError, SpecError, UserError


def plan_of(case: Case, **types: str) -> Plan:
    snapshot = case.snapshot([visit("a", START + HOUR)], [report(START, 1.0)], **types)
    return feature_plan(case.loop, case.store, snapshot)


def test_a_plan_says_what_the_feast_file_says(tmp_path: Path) -> None:
    plan = plan_of(Case(tmp_path))
    assert [(column.name, column.type) for column in plan.columns] == [
        ("town", "category"),
        ("size", "number"),
        ("weather__temp", "number"),
        ("weather__wind_y", "number"),
        ("weather__rain", "boolean"),
        ("weather__sky", "category"),
    ]
    assert plan.views[0].ttl_us == 6 * 3600 * 1_000_000
    assert plan.views[0].online.startswith("weather_")


def test_a_view_without_a_schema_has_all_columns_of_its_table(tmp_path: Path) -> None:
    start, end = FEATURES.index("    schema=["), FEATURES.index("    source=")
    plan = plan_of(Case(tmp_path, features=FEATURES[:start] + FEATURES[end:]))
    assert [(field.name, field.dtype) for field in plan.views[0].fields] == [
        ("temp", "Float64"),
        ("wind_y", "Float64"),
        ("rain", "Bool"),
        ("sky", "String"),
    ]


def test_a_known_plan_is_read_without_importing_feast(tmp_path: Path) -> None:
    case = Case(tmp_path)
    snapshot = case.snapshot([visit("a", START + HOUR)], [report(START, 1.0)])
    case.featurize(snapshot)
    (tmp_path / "snapshot.json").write_text(snapshot.to_json())
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from treadle.loop import Loop
from treadle.records import Snapshot
from treadle.stages import Context
from treadle.stages.featurize import featurize
from treadle.store import LocalStore
folder = Path({str(tmp_path)!r})
loop = Loop.model_validate_json((folder / "loop.json").read_text())
loop._folder = folder / "loop"
snapshot = Snapshot.from_json((folder / "snapshot.json").read_text())
context = Context(loop, snapshot.as_of, LocalStore(folder / "store"), None, folder, print)
outcome = featurize(context, snapshot)
heavy = [name for name in ("feast", "pandas", "pyarrow", "duckdb", "ibis") if name in sys.modules]
print("joined", outcome.notes["rows_joined"], "heavy", heavy)
"""
    (tmp_path / "loop.json").write_text(case.loop.model_dump_json(by_alias=True))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["joined 0 heavy []"], done.stderr


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('Field(name="temp", dtype=Float64)', 'Field(name="tmp", dtype=Float64)', "'tmp' is no column of"),
        ('dtype=Float64', 'dtype=Int64', "is declared Int64, but the column is DOUBLE"),
        ('dtype=Bool', 'dtype=String', "is declared String, but the column is BOOLEAN"),
        ('Entity(name="town",', 'Entity(name="city", join_keys=["city"],', "join key 'city' is no column"),
        ('Entity(name="town",', 'Entity(name="town", join_keys=["sky"],', "key 'sky' is no column of"),
        ('Field(name="sky",', 'Field(name="known_at",', "'known_at' is declared String"),
        ('    entities=[town],\n', "", "no entity to join by"),
    ],
    ids=["field", "integer", "kind", "key", "labelled-key", "time", "no-entity"],
)  # fmt: skip
def test_a_wrong_view_is_an_error_that_names_file_view_and_remedy(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert old in FEATURES
    case = Case(tmp_path, features=FEATURES.replace(old, new))
    with pytest.raises(SpecError) as caught:
        plan_of(case)
    assert problem in str(caught.value)
    assert "seen.py" in str(caught.value)
    assert "view 'weather'" in str(caught.value)


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    features = FEATURES.replace('"temp"', '"tmp"').replace('"rain"', '"ran"')
    with pytest.raises(SpecError) as caught:
        plan_of(Case(tmp_path, features=features))
    assert len(caught.value.faults) == 2


def test_an_unknown_view_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no FeatureView 'wether'.*It defines: weather"):
        plan_of(Case(tmp_path, use=["wether"]))


def test_a_feast_file_that_raises_shows_its_own_traceback(tmp_path: Path) -> None:
    case = Case(tmp_path, features="def f():\n    return 1 / 0\n\nf()\n")
    with pytest.raises(HookError) as caught:
        plan_of(case)
    assert "seen.py" in str(caught.value)
    assert "return 1 / 0" in str(caught.value)
    assert str(caught.value).endswith("ZeroDivisionError: division by zero")


def test_the_labelled_table_can_not_be_a_source(tmp_path: Path) -> None:
    case = Case(
        tmp_path, features=FEATURES.replace('snapshot_source("weather")', 'snapshot_source("visits")')
    )
    with pytest.raises(HookError, match="the table with the label is not one of them"):
        plan_of(case)


def test_a_feast_file_imports_its_neighbours_and_leaves_no_module_behind(tmp_path: Path) -> None:
    case = Case(
        tmp_path, features="from lengths import TTL\n" + FEATURES.replace("timedelta(hours=6)", "TTL")
    )
    (case.loop.folder / "lengths.py").write_text("from datetime import timedelta\nTTL = timedelta(hours=2)\n")
    before = set(sys.modules)
    assert plan_of(case).views[0].ttl_us == 2 * 3600 * 1_000_000
    assert not {name for name in set(sys.modules) - before if "lengths" in name or "treadle_feast" in name}
    (case.loop.folder / "lengths.py").write_text("from datetime import timedelta\nTTL = timedelta(hours=3)\n")
    assert plan_of(case).views[0].ttl_us == 3 * 3600 * 1_000_000


def test_a_view_under_another_name_and_key_is_another_view(tmp_path: Path) -> None:
    extra = 'there = weather.with_name("there").with_join_key_map({"town": "visit"})\n'
    plan = plan_of(Case(tmp_path, features=FEATURES + extra, use=["weather", "there"]))
    assert [(view.name, view.keys[0].labelled) for view in plan.views] == [
        ("weather", "town"),
        ("there", "visit"),
    ]


def test_snapshot_source_outside_of_a_run_says_what_to_do() -> None:
    from treadle.features import snapshot_source

    with pytest.raises(UserError, match="treadle run"):
        snapshot_source("weather")


def test_own_columns_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(Case(tmp_path, columns=["size", "sizes", "went", "asked_at"]))
    problems = [fault.problem for fault in caught.value.faults]
    assert [
        "no column 'sizes'" in problems[0],
        "is the label" in problems[1],
        "TIMESTAMP" in problems[2],
    ] == [True] * 3
    assert [column.name for column in plan_of(Case(tmp_path / "two", columns=["size"])).own] == ["size"]


def test_legal_names_stay_distinct() -> None:
    assert legal_name("flights_production") == "flights_production"
    assert len({legal_name("a-b"), legal_name("a_b"), legal_name("a b")}) == 3
