"""Scoring files: the same predictions as the endpoint, whatever the batches, and errors that name the place."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from serving_models import SCHEMA, Logistic, ThreeClasses, trained
from treadle.errors import UserError
from treadle.serving.batch import predict_file

START = datetime(2013, 4, 1, tzinfo=UTC)


def table(rows: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "row_id": [f"{number:032x}" for number in range(rows)],
            "entity": pa.array([f"00{number}" for number in range(rows)], pa.string()),
            "event_time": pa.array(
                [START + timedelta(minutes=number) for number in range(rows)], pa.timestamp("us", "UTC")
            ),
            "distance": pa.array(random.normal(size=rows).round(2), mask=random.random(rows) < 0.1),
            "carrier": pa.array(random.choice(["AA", "DL", "UA", "ZZ"], rows).tolist(), pa.string()),
            "night": pa.array(random.integers(2, size=rows).astype(bool), mask=random.random(rows) < 0.1),
            "temperature": pa.array(random.integers(-20, 40, size=rows)),
        }
    )


def written(tmp_path: Path, content: pa.Table, suffix: str) -> Path:
    path = tmp_path / f"input{suffix}"
    if suffix == ".parquet":
        pq.write_table(content, path)
    else:
        with gzip.open(path, "wb") if suffix == ".csv.gz" else open(path, "wb") as file:
            pc.write_csv(content, file)
    return path


def read(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pc.read_csv(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
@pytest.mark.parametrize("target", ["scores.parquet", "scores.csv"])
def test_a_file_gets_the_models_predictions_row_by_row(tmp_path: Path, suffix: str, target: str) -> None:
    content, predictor, output = table(1000), trained(1), tmp_path / target
    rows = predict_file(predictor, written(tmp_path, content, suffix), output, model="m" * 64, batch_rows=300)
    found = read(output)
    assert rows.rows == found.num_rows == 1000
    assert found.column_names == ["row_id", "entity", "event_time", "prediction", "model"]
    assert found["prediction"].to_pylist() == predictor.predict(SCHEMA.encode(content)).tolist()
    assert set(found["model"].to_pylist()) == {"m" * 64}
    if suffix == target[-8:] == ".parquet":
        assert found.select(["row_id", "entity", "event_time"]) == content.select(
            ["row_id", "entity", "event_time"]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"input{suffix}", target])


def test_a_csvs_ids_are_carried_over_as_they_are_written(tmp_path: Path) -> None:
    source = written(tmp_path, table(3).append_column("price", pa.array([1.5, 2, 3])), ".csv")
    predict_file(trained(1), source, tmp_path / "out.parquet", model="m", keep=("price", "absent"))
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["entity"].to_pylist() == ["000", "001", "002"]
    assert found["event_time"].to_pylist()[0].startswith("2013-04-01 00:00")
    assert found["price"].to_pylist() == ["1.5", "2", "3"]
    assert "absent" not in found.column_names


def test_several_classes_get_a_name_and_each_ones_probability(tmp_path: Path) -> None:
    content, output = table(20), tmp_path / "out.parquet"
    predictor = ThreeClasses(classes=("a", "b", "c"))
    predict_file(predictor, written(tmp_path, content, ".parquet"), output, model="m")
    found = pq.read_table(output)
    probabilities = predictor.predict(SCHEMA.encode(content))
    assert found["prediction_b"].to_pylist() == probabilities[:, 1].tolist()
    assert found["prediction"].to_pylist() == ["abc"[best] for best in probabilities.argmax(axis=1)]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_file_without_rows_gets_an_output_without_rows(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / "out.parquet"
    assert predict_file(trained(1), written(tmp_path, table(0), suffix), output, model="m").rows == 0
    assert pq.read_table(output).column_names == ["row_id", "entity", "event_time", "prediction", "model"]


class ByPlace:
    """Features by the place that the entity names."""

    columns = {"carrier": "category", "seat": "integer"}

    def __init__(self, content: pa.Table) -> None:
        self.content, self.seen = content, []  # type: ignore[var-annotated]

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.seen.append(batch.schema)
        return self.content.take(pa.array([int(entity) for entity in batch["entity"].to_pylist()]))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_entities_and_times_get_their_features_by_the_join(tmp_path: Path, suffix: str) -> None:
    content, output = table(500), tmp_path / "out.parquet"
    join = ByPlace(content)
    ids = content.select(["entity", "event_time"]).append_column("seat", pa.array([7] * 500))
    source = written(tmp_path, ids, suffix)
    predict_file(trained(1), source, output, model="m", join=lambda: join, batch_rows=200)
    found = pq.read_table(output)
    assert found["prediction"].to_pylist() == trained(1).predict(SCHEMA.encode(content)).tolist()
    assert found.column_names == ["entity", "event_time", "prediction", "model"]
    assert join.seen[0].names == ["entity", "event_time", "seat"]
    assert join.seen[0].field("seat").type == pa.int64()


def test_a_csvs_keys_keep_their_leading_zeros(tmp_path: Path) -> None:
    source, join = tmp_path / "in.csv", ByPlace(table(3))
    source.write_text("entity,carrier\n001,007\n")
    predict_file(trained(1), source, tmp_path / "out.parquet", model="m", join=lambda: join)
    assert join.seen[0].field("carrier").type == pa.string()


def test_a_file_with_all_features_is_not_joined(tmp_path: Path) -> None:
    def join() -> Any:
        raise AssertionError("nothing to look up")

    source = written(tmp_path, table(5), ".csv")
    assert predict_file(trained(1), source, tmp_path / "o.csv", model="m", join=join).rows == 5


def test_a_join_that_loses_rows_is_refused(tmp_path: Path) -> None:
    class Lossy(ByPlace):
        def __call__(self, batch: pa.Table) -> pa.Table:
            return table(4)

    source = written(tmp_path, table(5).select(["entity"]), ".parquet")
    with pytest.raises(UserError, match="made 4 rows of 5"):
        predict_file(trained(1), source, tmp_path / "out.csv", model="m", join=lambda: Lossy(table(5)))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["entity", "event_time", "distance"], "'distance' is looked up, as the file does not have all of"),
        (["entity", "event_time", "humidity"], "'humidity' is not among the columns that scoring reads"),
        (["entity", "event_time", "Carrier"], "'Carrier' is not among the columns that scoring reads"),
    ],
)
def test_a_column_that_nobody_would_read_is_refused(tmp_path: Path, columns: list[str], words: str) -> None:
    content = (
        table(3).append_column("humidity", pa.array([1, 2, 3])).append_column("Carrier", pa.array(["A"] * 3))
    )
    source = written(tmp_path, content.select(columns), ".csv")
    with pytest.raises(UserError, match=words):
        predict_file(trained(1), source, tmp_path / "o.csv", model="m", join=lambda: ByPlace(content))
    assert [path.name for path in tmp_path.iterdir()] == ["input.csv"]


def changed(column: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    content = table(len(values))
    return content.set_column(content.column_names.index(column), column, pa.array(values, kind))


@pytest.mark.parametrize(
    ("content", "suffix", "words"),
    [
        (table(3).drop_columns(["carrier"]), ".parquet", "'carrier' is missing"),
        (table(3).drop_columns(["carrier"]), ".csv", "'carrier' is missing"),
        (
            changed("distance", ["1", "2"]),
            ".parquet",
            "column distance in row 1 is the text '1', but must be a number",
        ),
        (changed("distance", ["1", "2", "far"]), ".csv", "column distance in row 3 is the text 'far'"),
        (changed("night", ["true", "perhaps"]), ".csv", "column night in row 2"),
        (changed("distance", [1.0, float("inf"), 2.0]), ".parquet", "column distance in row 2 is"),
        (changed("distance", [1.0, 2.0, 1e39]), ".csv", "column distance in row 3 is"),
    ],
)
def test_errors_name_file_column_and_row(tmp_path: Path, content: pa.Table, suffix: str, words: str) -> None:
    source = written(tmp_path, content, suffix)
    with pytest.raises(UserError, match=words) as raised:
        predict_file(trained(1), source, tmp_path / "out.parquet", model="m", batch_rows=1)
    assert str(source) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_row_is_named_by_its_place_in_the_whole_file(tmp_path: Path) -> None:
    lines = ["temperature,night,carrier,distance"] + ["1,true,AA,2"] * 200_000 + ["1,true,AA,far"]
    source = tmp_path / "in.csv"
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="column distance in row 200001"):
        predict_file(Logistic(), source, tmp_path / "out.csv", model="m")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("in.parquet", b"PAR1 nothing", "can't be read"),
        ("in.csv", b"", "'temperature', .* are missing"),
        ("in.csv", b"\xff\xfe\x00", "can't be read"),
        (
            "in.csv",
            b"temperature,night,carrier,distance\n1,true\n",
            "row 1 has 2 values, but the header has 4",
        ),
        ("in.csv", b"temperature,night,carrier,distance,distance\n", "distance is there twice"),
        ("in.xlsx", b"", "must end in .parquet or .csv"),
        ("in.csv.gz", b"temperature", "can't be read"),
    ],
)
def test_a_damaged_or_strange_file_is_the_users_error(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        predict_file(Logistic(), tmp_path / name, tmp_path / "out.parquet", model="m")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_paths_that_can_not_be_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    source = written(tmp_path, table(2), ".csv")
    for given, output, words in (
        (tmp_path / "none.csv", tmp_path / "o.csv", "no such file"),
        (source, source, "the input as well"),
        (source, tmp_path / "none" / "o.csv", "no such folder"),
        (source, tmp_path / "o.txt", "must end in"),
    ):
        with pytest.raises(UserError, match=words):
            predict_file(Logistic(), given, output, model="m")


def test_an_output_stays_as_it_was_when_scoring_fails(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("before")
    with pytest.raises(UserError, match=r"column .* in row [1-9] is missing, .*: Input contains NaN"):
        predict_file(Logistic(missing=None), written(tmp_path, table(9), ".parquet"), output, model="m")
    assert output.read_text() == "before"


PEAK = r"""
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pyarrow as pa
from serving_models import Logistic
from treadle.serving.batch import predict_file
class Quick(Logistic):
    def predict(self, x):
        return x[:, 0]
done = predict_file(Quick(), Path(sys.argv[2]), Path(sys.argv[3]), model="m" * 64, batch_rows=20_000)
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
arrow = pa.default_memory_pool().max_memory()
print(json.dumps({"rows": done.rows, "arrow": arrow / 2**20, "resident": int(peak[1]) / 1024}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    """A file eight times larger, in one row group, needs no more memory; a number kept for each row would be 11 MiB.

    The smaller file, too, fills what is read ahead and what waits to be written.
    """
    small, done = table(50_000), []
    for copies in (4, 32):
        source = tmp_path / f"in{copies}{suffix}"
        if suffix == ".parquet":
            content = pa.concat_tables([small] * copies).combine_chunks()
            pq.write_table(content, source, row_group_size=content.num_rows, use_dictionary=False)
        else:
            header, body = written(tmp_path, small, ".csv").read_bytes().split(b"\n", 1)
            with open(source, "wb") as file:
                file.writelines([header, b"\n", *[body] * copies])
        here, output = str(Path(__file__).parent), str(tmp_path / "out.parquet")
        command = [sys.executable, "-c", PEAK, here, str(source), output]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        done.append(json.loads(answer))
        assert done[-1]["rows"] == small.num_rows * copies
        source.unlink()
    assert done[1]["arrow"] - done[0]["arrow"] < 8, done
    assert done[1]["resident"] - done[0]["resident"] < 32, done
