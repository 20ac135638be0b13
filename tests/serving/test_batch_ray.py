"""Scoring a file on several workers: the same file as by one, the same refusals, bounded memory, nothing left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import treadle
from serving_models import trained
from test_predict_file import table
from treadle.errors import MissingPackage, UserError
from treadle.scoring import score_file
from treadle.serving.batch import predict_file
from treadle.serving.batch_ray import ModelParcel, RaySpread
from wheel import FIRST, Wheel, copy_of

pytestmark = pytest.mark.timeout(900)  # starting Ray takes its time where other tests run beside it


def processes() -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listed.splitlines() if f"{tempfile.gettempdir()}/treadle-workers-" in line]


@pytest.fixture(scope="module")
def own_folder() -> Iterator[None]:
    """Ray's files in a folder with a short name, so that what is left can be told from other sessions'."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="t") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        tempfile.tempdir = folder
        yield
        tempfile.tempdir = before


@pytest.fixture(scope="module")
def session(own_folder: None) -> Iterator[None]:
    """One Ray session for all tests of the module; each call would start its own."""
    from treadle.models.ray_session import ray_workers

    with ray_workers(2, 1, "test"):
        yield
    assert processes() == []


@pytest.fixture(scope="module")
def parcel(tmp_path_factory: pytest.TempPathFactory) -> ModelParcel:
    folder = tmp_path_factory.mktemp("model")
    trained(1).save(folder)
    return ModelParcel({path.name: path.read_bytes() for path in folder.iterdir()}, "none", None)


@pytest.fixture
def spread(session: None, parcel: ModelParcel) -> Callable[[], RaySpread]:
    return lambda: RaySpread(2, parcel, lambda: pytest.fail("nothing is joined here"))


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "target"), [(".parquet", "o.parquet"), (".csv", "o.csv")])
def test_the_output_is_that_of_one_process_to_the_byte(
    tmp_path: Path, spread: Callable[[], RaySpread], suffix: str, target: str
) -> None:
    content, source = table(3000), tmp_path / f"in{suffix}"
    pq.write_table(content, source) if suffix == ".parquet" else pc.write_csv(content, source)
    one, several = tmp_path / f"one-{target}", tmp_path / f"several-{target}"
    alone = predict_file(trained(1), source, one, model="m", batch_rows=250)
    by_two = predict_file(trained(1), source, several, model="m", batch_rows=250, spread=spread())
    assert several.read_bytes() == one.read_bytes()
    assert by_two == alone
    assert by_two.rows == 3000


@pytest.mark.slow
def test_the_first_bad_row_of_the_file_is_refused_as_by_one_process(
    tmp_path: Path, spread: Callable[[], RaySpread]
) -> None:
    rows = [{**row, "distance": 1.0} for row in table(2000).to_pylist()]
    rows[777]["distance"] = rows[300]["distance"] = 1e39
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source)
    output.write_text("before")
    words = []
    for each in (None, spread()):
        with pytest.raises(UserError, match="column distance in row 301 is 1e\\+39") as refused:
            predict_file(trained(1), source, output, model="m", batch_rows=100, spread=each)
        words.append(str(refused.value))
    assert words[0] == words[1]
    assert output.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


@pytest.mark.slow
def test_a_file_that_breaks_off_is_refused_as_by_one_process(
    tmp_path: Path, spread: Callable[[], RaySpread]
) -> None:
    source = tmp_path / "in.csv"
    pc.write_csv(table(2000), source)
    lines = source.read_text().splitlines()
    lines[1500] += ",more"
    source.write_text("\n".join(lines))
    words = []
    for each in (None, spread()):
        with pytest.raises(UserError, match="row 1500 has 8 values, but the header has 7") as refused:
            predict_file(trained(1), source, tmp_path / "out.csv", model="m", batch_rows=100, spread=each)
        words.append(str(refused.value))
    assert words[0] == words[1]


@pytest.mark.slow
def test_features_are_looked_up_by_the_workers(wheel: Wheel, tmp_path: Path, session: None) -> None:
    """Rows that name entity and time only; views come from the store, as for one process, and gaps are counted."""
    opened = wheel.session(FIRST)
    orders = pc.read_csv(wheel.path.parent / "orders.csv")
    rows = orders.select(["order_id", "placed_at"]).slice(200, 400)
    source, outputs = tmp_path / "in.parquet", [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    pq.write_table(rows, source)
    told = [score_file(opened, source, path, workers=n) for n, path in enumerate(outputs, start=1)]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert [{**each, "output": ""} for each in told] == [{**told[0], "output": ""}] * 2
    assert told[1]["rows"] == 400
    unknown = pa.table({"order_id": ["nobody"], "placed_at": [rows["placed_at"][0].as_py()]})
    pq.write_table(pa.concat_tables([rows, unknown.cast(rows.schema)]), source)
    words = []
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"row 401: .*nobody") as refused:
            score_file(opened, source, tmp_path / "o.parquet", workers=workers)
        words.append(str(refused.value))
    assert words[0] == words[1]


PEAK = r"""
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from serving_models import trained
from treadle.serving.batch import predict_file
from treadle.serving.batch_ray import ModelParcel, RaySpread
model = Path(sys.argv[4])
parcel = ModelParcel({path.name: path.read_bytes() for path in model.iterdir()}, "none", None)
done = predict_file(trained(1), Path(sys.argv[2]), Path(sys.argv[3]), model="m" * 64, batch_rows=20_000,
                    spread=RaySpread(2, parcel, None))
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"rows": done.rows, "resident": int(peak[1]) / 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, own_folder: None) -> None:
    """The client's own, with the pages of Ray's shared memory that it saw; all rows kept would be 200 MiB more."""
    small, model, peaks = table(50_000), tmp_path / "model", []
    model.mkdir()
    trained(1).save(model)
    for copies in (4, 32):
        source = tmp_path / f"in{copies}.parquet"
        pq.write_table(pa.concat_tables([small] * copies), source)
        here, output = str(Path(__file__).parent), str(tmp_path / "out.parquet")
        command = [sys.executable, "-c", PEAK, here, str(source), output, str(model)]
        # Not in the folder of a session that is open: the paths of Ray's sockets must be short.
        environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        answer = json.loads(done.stdout)
        assert answer["rows"] == small.num_rows * copies
        peaks.append(answer["resident"])
    assert peaks[1] - peaks[0] < 120, peaks  # 75 MiB, measured


def test_without_ray_the_extra_is_named(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.models.ray_session.find_spec", lambda name: None)
    source = tmp_path / "in.csv"
    source.write_text("order_id,placed_at\no0010-1,2024-01-11T00:37:00Z\n")
    with pytest.raises(MissingPackage, match=r'ray is needed to score .*: pip install "treadle\[ray\]"'):
        score_file(wheel.session(FIRST), source, tmp_path / "out.csv", workers=2)
    assert not (tmp_path / "out.csv").exists()


def test_the_loop_s_workers_count_where_the_command_names_none(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "treadle.scoring.score_file", lambda *given, **options: asked.append(options) or {"rows": 0}
    )
    from treadle.cli import app
    from typer.testing import CliRunner

    arguments = ["predict", str(wheel.path), "--input", "i.csv", "--output", "o.csv", "--json"]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    CliRunner().invoke(app, [*arguments, "--workers", "3"], catch_exceptions=False)
    assert [options["workers"] for options in asked] == [None, 3]
    monkeypatch.undo()
    monkeypatch.setattr("treadle.models.ray_session.find_spec", lambda name: None)
    other = copy_of(wheel, tmp_path / "other")
    other.edit("orders.yaml", "train: {flavour: xgboost,", "train: {workers: 2, flavour: xgboost,")
    source = tmp_path / "in.csv"
    source.write_text("order_id,placed_at\no0010-1,2024-01-11T00:37:00Z\n")
    with pytest.raises(MissingPackage, match="ray is needed"):
        score_file(other.session(FIRST), source, tmp_path / "out.csv")
    assert treadle.Loop.load(other.path).train.workers == 2
    assert re.search(
        "rows", json.dumps(score_file(other.session(FIRST), source, tmp_path / "o.csv", workers=1))
    )
