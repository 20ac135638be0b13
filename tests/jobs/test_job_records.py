"""Stages on pools: the same records and errors as in this process, also without libraries here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import treadle
from job_cases import CIRCLE, features_at, interpreter
from treadle import jobs
from treadle.errors import (
    BlobLost,
    DataRefused,
    Fault,
    HookError,
    JobFailed,
    MissingPackage,
    SpecError,
    StaleChampion,
    Transient,
    TreadleError,
    UserError,
)
from treadle.hardware.pools import Pool
from treadle.runner import run_session
from treadle.wire import error_from_json, error_to_json
from wheel import FIRST, SECOND, THIRD, Wheel, ids

WITHOUT_LIBRARIES = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Blocked())
import treadle

loop = treadle.Loop.load(sys.argv[1])
pools = dict.fromkeys({stages!r}, "local")
options = dict(store=sys.argv[2], who="ann", pools=pools, say=lambda line: print(line, file=sys.stderr))
found = dict(treadle.run(loop, as_of={first!r}, **options))
found |= treadle.watch(loop, as_of={second!r}, **options)
print(json.dumps({{stage: record.model_dump(mode="json") for stage, record in found.items()}}))
"""


NAMES = "numpy scipy pandas pyarrow duckdb ibis feast mlflow xgboost sklearn great_expectations sqlglot"


@pytest.mark.slow
def test_a_caller_without_any_library_gets_the_records_and_bytes_of_a_run_in_process(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path
) -> None:
    stages = (*CIRCLE, "monitor", "retrain")
    program = WITHOUT_LIBRARIES.format(
        names=set(NAMES.split()), stages=stages, first=FIRST, second="2024-02-19"
    )
    place = [str(wheel.path), str(tmp_path / "fresh")]
    done = subprocess.run(
        [sys.executable, "-c", program, *place], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    loop = treadle.Loop.load(wheel.path)
    here = dict(turned[1]) | dict(treadle.watch(loop, as_of="2024-02-19", store=wheel.store, who="ann"))
    for stage, record in here.items():
        plain = record.model_dump(mode="json", exclude={"notes"})
        assert {name: value for name, value in there[stage].items() if name != "notes"} == plain, stage
        assert there[stage]["notes"]["job"]["pool"] == "local"
        assert record.blobs == there[stage]["blobs"]


def test_a_run_with_nothing_to_do_finds_everything_by_pools_too(wheel: Wheel, state: Path) -> None:
    run = wheel.run(FIRST, start="train", to="evaluate", pools={"train": "local"})
    assert run.reused == {"prepare": True, "featurize": True, "train": True, "evaluate": True}
    assert len(list(state.glob("local/treadle-*"))) == 1


@pytest.mark.slow
def test_what_comes_before_the_first_stage_is_only_found_also_on_a_pool(wheel: Wheel) -> None:
    wheel.run(SECOND, to="featurize")
    with pytest.raises(UserError, match="--from evaluate needs what train makes"):
        wheel.run(SECOND, start="evaluate", to="evaluate", pools={"train": "local"})


# What a stage raises is the same here and there: class, words, and what it carries.


def refuse(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "column: amount, min_value: 0", "column: amount, min_value: 20")


def break_hook(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "load: {sql: load.sql,", "load: {python: 'hooks:load',")
    (wheel.path.parent / "hooks.py").write_text("def load(sources):\n    raise ValueError('no such desk')\n")


def break_sql(wheel: Wheel) -> None:
    wheel.edit("orders.sql", "from orders", "from ordres")


def break_params(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "max_depth: 3", "max_depth: 3, objective: 'no:such'")


def take_source_away(wheel: Wheel) -> None:
    (wheel.path.parent / "load.csv").unlink()


@pytest.mark.parametrize(
    ("spoil", "stage", "kind"),
    [
        (refuse, "prepare", DataRefused),
        pytest.param(break_hook, "prepare", HookError, marks=pytest.mark.slow),
        pytest.param(break_sql, "prepare", HookError, marks=pytest.mark.slow),
        pytest.param(take_source_away, "prepare", UserError, marks=pytest.mark.slow),
        (break_params, "train", UserError),
    ],
)
def test_an_error_of_a_stage_comes_back_as_it_is(
    wheel: Wheel, spoil: Callable[[Wheel], None], stage: str, kind: type[TreadleError]
) -> None:
    if stage == "train":
        wheel.run(SECOND, to="featurize")
    spoil(wheel)
    with pytest.raises(kind) as here:
        wheel.run(SECOND, to=stage)
    with pytest.raises(kind) as there:
        wheel.run(SECOND, to=stage, pools={stage: "local"})
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert there.value.retryable == here.value.retryable
    if isinstance(here.value, DataRefused) and isinstance(there.value, DataRefused):
        assert there.value.findings == here.value.findings
        assert len(there.value.results) == len(here.value.results)


@pytest.mark.parametrize(
    "error",
    [
        UserError("no"),
        StaleChampion("another serves"),
        Transient("busy"),
        MissingPackage("xgboost", "train", "stages"),
        BlobLost("ab" * 32, "missing"),
        HookError("the hook", "here", "Traceback\n  line"),
        SpecError([Fault("loop.yaml", 3, "train.rounds", "wrong.", "Put it right.")]),
        DataRefused("2 checks failed", ["one", "two"], [{"name": "a", "status": "failed"}]),
        JobFailed("train on the pool x", "lost", "gone", 3, ["last words"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_json(error: TreadleError) -> None:
    again = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert (again.retryable, again.exit_code) == (error.retryable, error.exit_code)


def test_an_error_on_its_way_loses_its_credentials_and_keeps_its_nearest_class() -> None:
    class OfSomeonesHook(UserError):
        pass

    told = error_to_json(
        OfSomeonesHook("s3://key:hunter2@host/x of /tmp/laid-out"), {"/tmp/laid-out": "loops"}
    )
    assert "hunter2" not in json.dumps(told)
    again = error_from_json(told)
    assert type(again) is UserError
    assert str(again) == "s3://***@host/x of loops"


def test_another_interpreter_runs_the_stage(wheel: Wheel, tmp_path: Path) -> None:
    marker = tmp_path / "used"
    pool = Pool(name="own", python=interpreter(tmp_path, f'touch {marker}; exec {sys.executable} "$@"'))
    record = jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))
    assert record.kind == "candidate"
    assert marker.exists()


@pytest.mark.slow
def test_a_loop_written_in_python_runs_on_a_pool(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = treadle.Loop.load(wheel.path).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    monkeypatch.chdir(wheel.path.parent)
    loop = treadle.Loop.model_validate(content)
    run = treadle.run(loop, as_of=FIRST, store=wheel.store, to="prepare", pools={"prepare": "local"})
    assert run.reused == {"prepare": True}
    assert run["prepare"].id == turned[1]["prepare"].id


@pytest.mark.slow
def test_a_job_finds_its_files_in_an_object_storage(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, s3_environment: str, tmp_path: Path
) -> None:
    loop = treadle.Loop.load(wheel.path)
    store = f"s3://treadle/{tmp_path.name}"
    run = treadle.run(loop, as_of=FIRST, store=store, to="prepare", pools={"prepare": "local"})
    assert run.reused == {"prepare": False}
    assert ids(run) == {"prepare": ids(turned[1])["prepare"]}


# Records by id.


def test_a_stage_by_itself_with_given_records_makes_what_a_whole_run_makes(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    for path in (wheel.store / "records" / "orders" / "verdict").glob("*.json"):
        path.unlink()
    given = {stage: turned[1][stage].id for stage in ("featurize", "train")}
    (wheel.path.parent / "orders.csv").unlink()
    found = run_session(
        wheel.session(FIRST), start="train", to="train", inputs={"featurize": given["featurize"]}
    )
    assert ids(found) == {"train": ids(turned[1])["train"]}
    deployed = run_session(
        wheel.session(FIRST), start="deploy", to="deploy", inputs={"release": turned[1]["release"].id}
    )
    assert ids(deployed) == {"deploy": ids(turned[1])["deploy"]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"featurize": "prepare"}, "featurize of orders made no record"),
        ({"prepare": "nothing"}, "prepare of orders made no record"),
        ({"prepare": "../../x"}, "prepare of orders made no record"),
        ({"perpare": "prepare"}, "'perpare' is no stage"),
    ],
    ids=["another kind", "no such id", "a path", "no stage"],
)
def test_an_input_of_something_else_is_refused(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, inputs: dict[str, str], words: str
) -> None:
    given = {
        stage: turned[1][which].id if which in turned[1].records else which for stage, which in inputs.items()
    }
    with pytest.raises(UserError, match=words):
        run_session(wheel.session(FIRST), start="train", to="train", inputs=given)


def test_an_input_of_another_as_of_is_refused(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    for stage in ("prepare", "featurize", "train", "evaluate"):
        with pytest.raises(
            UserError, match=f"of {stage} was made as of 2024-02-12; this run is as of 2024-03-25"
        ):
            run_session(
                wheel.session(THIRD), start="deploy", to="deploy", inputs={stage: turned[1][stage].id}
            )


def test_an_input_of_another_loop_is_refused(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "name: orders", "name: parcels")
    with pytest.raises(UserError, match="featurize of parcels made no record"):
        run_session(
            wheel.session(FIRST), start="train", to="train", inputs={"featurize": turned[1]["featurize"].id}
        )
