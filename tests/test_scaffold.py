"""`treadle init`: a loop that runs, on made-up data and on a file of one's own, and nothing decided for a person."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import one_json
from treadle.check import check
from treadle.cli import app
from treadle.identity import sha256_of_file
from typer.testing import CliRunner, Result

START = datetime(2024, 1, 1)
WHO = ("--label", "l", "--time", "t", "--entity", "id")
ANSWERS = ("--label-known-at", "3d", "--known-at", "t")
NAMES = ("id", "t", "x", "l")
Row = list[Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    return tmp_path


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: object, code: int = 0) -> str:
    result = invoke(*args)
    assert result.exit_code == code, result.output
    return result.stdout


def told(*args: object, code: int = 0) -> Any:
    return one_json(done(*args, "--json", code=code))


def found(loop: str, *severities: str) -> list[tuple[str, int, str]]:
    """What check finds of some severities: code, line and field. That nobody committed a new loop is no fault of it."""
    findings = check(Path(loop))
    return [(f.code, f.line, f.field) for f in findings if f.severity in severities and f.code != "TR143"]


def files() -> dict[str, str]:
    return {
        p.as_posix(): p.read_text() for p in Path().rglob("*") if p.is_file() and ".treadle" not in p.parts
    }


def edit(path: str, *changes: tuple[str, str]) -> None:
    text = Path(path).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    Path(path).write_text(text)


def write(path: str, rows: list[Row], names: tuple[str, ...] = NAMES, delimiter: str = ",") -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(names)
        writer.writerows(rows)


def asked(days: int = 100, a_day: int = 30, every: int = 1) -> list[Row]:
    """Rows of id, time, number and label."""
    rng = random.Random(1)
    rows: list[Row] = []
    for number in range(days * a_day):
        at = START + timedelta(days=every * (number // a_day), minutes=number % a_day)
        x = rng.gauss(0, 1)
        rows.append([number, at, round(x, 3), int(rng.random() < 1 / (1 + 2.7 ** (-1.5 * x)))])
    return rows


def test_example_ends_with_a_champion_that_predicts() -> None:
    assert "next: treadle check loops/churn.yaml && treadle run loops/churn.yaml" in done("init", "churn")
    assert found("loops/churn.yaml", "error", "warning") == []
    turned = told("run", "loops/churn.yaml")
    assert turned["evaluate"]["decision"] == "promote"
    assert turned["deploy"]["candidate"]
    scored = told("predict", "loops/churn.yaml", "--input", "loops/data/churn.csv", "--output", "scores.csv")
    assert scored["rows"] == 6840


def test_example_with_features_joins_them_and_needs_no_edit() -> None:
    done("init", "churn", "--features")
    assert found("loops/churn.yaml", "error", "warning") == []
    turned = told("run", "loops/churn.yaml")
    assert [column["name"] for column in turned["featurize"]["columns"]][-1] == "channels__complaints"
    assert turned["evaluate"]["decision"] == "promote"


def test_example_is_the_same_for_everyone_and_says_that_it_is_made_up() -> None:
    done("init", "churn")
    assert sha256_of_file(Path("loops/data/churn.csv")) == (
        "4ad695d32248edd306c8af4d854af22e11c3aaa9376ec2f95f12eb8b8fb9b873"
    )
    assert sha256_of_file(Path("loops/data/churn_channels.csv")) == (
        "bddc77244507ce615578866c376cd213f33f34dcc45f5f3144af1e0baa08ebe4"
    )
    assert "Made-up data" in yaml.safe_load(Path("loops/churn.yaml").read_text())["description"]


def test_answers_of_the_example_are_known_days_after_their_questions() -> None:
    done("init", "churn")
    with open("loops/data/churn.csv") as file:
        rows = list(csv.DictReader(file))
    waits = [datetime.fromisoformat(r["ended_at"]) - datetime.fromisoformat(r["asked_at"]) for r in rows]
    assert timedelta(days=2) < min(waits)
    assert max(waits) < timedelta(days=3)
    assert len({row["trial_id"] for row in rows}) == len(rows)


def test_own_file_runs_once_a_person_has_answered_what_check_asks_for() -> None:
    done("init", "example")
    data = "loops/data/example.csv"
    columns = ("--label", "cancelled", "--time", "asked_at", "--entity", "trial_id")
    written = told("init", "trials", "--from", data, *columns)
    lines = Path("loops/trials.yaml").read_text().splitlines()
    places = [tuple(what.split(":")[:2]) for what in written["left"]]
    assert [place[0] for place in places] == ["loops/trials.yaml"] * 2
    assert all("DECIDE" in lines[int(line) - 1] for _, line in places)
    assert [code for code, *_ in found("loops/trials.yaml", "error")] == ["TR037", "TR035"]
    assert "label_known_at" in told("run", "loops/trials.yaml", code=2)["error"]["message"]

    edit("loops/sql/trials.sql", ("-- ended_at,", "ended_at,"))
    edit("loops/trials.yaml", ("label_known_at: label_known_at", "label_known_at: ended_at"))
    assert [code for code, *_ in found("loops/trials.yaml", "error")] == ["TR037"]
    edit("loops/trials.yaml", ("# known_at: asked_at", "known_at: asked_at"))
    assert found("loops/trials.yaml", "error") == []
    assert "TR115" in [code for code, *_ in found("loops/trials.yaml", "warning")]
    edit("loops/trials.yaml", ("# label_delay: 30d", "label_delay: 3d"))
    assert {code for code, *_ in found("loops/trials.yaml", "warning")} == {
        "TR141",
        "TR142",
        "TR102",
        "TR103",
    }
    assert told("run", "loops/trials.yaml")["evaluate"]["decision"] == "promote"
    assert told("predict", "loops/trials.yaml", "--input", data, "--output", "s.parquet")["rows"] == 6840


def test_own_file_with_answers_and_features_runs_at_once() -> None:
    write("asked.csv", asked())
    written = told("init", "asked", "--from", "asked.csv", *WHO, *ANSWERS, "--features")
    assert written["left"] == []
    assert found("loops/asked.yaml", "error") == []
    turned = told("run", "loops/asked.yaml")
    assert turned["prepare"]["as_of"] == "2024-04-10T00:00:00Z"
    assert turned["prepare"]["labelled_rows"] < turned["prepare"]["rows"] == 3000
    assert [c["name"] for c in turned["featurize"]["columns"]] == ["x", "asked_history__questions"]
    assert turned["evaluate"]["decision"] == "promote"


ODD: dict[str, tuple[Callable[[], list[Row]], tuple[str, ...], dict[str, Any]]] = {
    "names that SQL and YAML would misread": (
        lambda: [[r[0], r[1], r[2], r[2], r[3]] for r in asked()],
        ("Kunde Nr.", "select", 'a"b [EUR]', "row_id", "on"),
        {"label": "on", "time": "select", "entity": "Kunde Nr."},
    ),
    "unknown as NA, times as seconds, text of its own in each row": (
        lambda: [
            [
                r[0],
                int(r[1].replace(tzinfo=UTC).timestamp()),
                "NA" if r[0] % 7 == 0 else r[2],
                r[3],
                f"note {r[0]}",
            ]
            for r in asked()
        ],
        (*NAMES, "note"),
        {},
    ),
    "days as numbers, a label that is a number": (
        lambda: [[r[0], r[1].strftime("%Y%m%d"), r[2], r[2] * 3 + r[0] * 7 % 11] for r in asked()],
        NAMES,
        {},
    ),
    "a label of two texts": (
        lambda: [[r[0], r[1], r[2], "it's late" if r[3] else "on time"] for r in asked()],
        NAMES,
        {},
    ),
    "a label of three texts": (
        lambda: [[r[0], r[1], r[2], "abc"[r[0] % 3]] for r in asked()],
        NAMES,
        {},
    ),
    "a row a week for each entity": (
        lambda: [[r[0] % 60, r[1], r[2], r[3]] for r in asked(days=60, a_day=60, every=7)],
        NAMES,
        {},
    ),
    "few rows": (lambda: asked(days=80, a_day=4), NAMES, {}),
    "rows without entity or time": (
        lambda: [[r[0] or "", r[1] if r[0] != 5 else "", r[2], r[3]] for r in asked()],
        NAMES,
        {},
    ),
    "entities that are numbers with a fraction": (
        lambda: [[f"{r[0]}.5", r[1], r[2], r[3]] for r in asked()],
        NAMES,
        {},
    ),
    "columns that say nothing": (
        lambda: [[r[0], r[1], r[2], r[3], "same", "", "10:30"] for r in asked()],
        (*NAMES, "same", "empty", "clock"),
        {},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_loop_on_an_odd_file_is_right_and_prepares(name: str) -> None:
    rows, names, parts = ODD[name]
    write("odd.csv", rows(), names, delimiter=";")
    part = {"label": "l", "time": "t", "entity": "id", **parts}
    options = [text for key, value in part.items() for text in (f"--{key}", value)]
    known = ("--label-known-at", "3d", "--known-at", part["time"])
    features = ["--features"] if part["entity"] == "Kunde Nr." else []
    done("init", "odd", "--from", "odd.csv", *options, *known, *features)
    assert found("loops/odd.yaml", "error") == []
    turned = told("run", "loops/odd.yaml", "--to", "train")
    assert turned["train"]["rows"] > 100
    assert "note" not in [column["name"] for column in turned["featurize"]["columns"]]


def test_parquet_and_repeated_rows_are_told_apart() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [*asked(), *asked()[:7]]
    columns = dict(zip(("id", "t", "x", "l"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({**columns, "s": [{"a": 1}] * len(rows)}), "twice.parquet")
    written = told("init", "twice", "--from", "twice.parquet", *WHO, *ANSWERS)
    assert [what.partition(": ")[2][:14] for what in written["left"]] == ["7 rows share i"]
    assert "share" in told("run", "loops/twice.yaml", code=1)["error"]["message"]
    edit("loops/sql/twice.sql", ("-- QUALIFY", "QUALIFY"), ("some_column", "x"))
    assert told("run", "loops/twice.yaml", "--to", "prepare")["prepare"]["rows"] == 3000


def test_file_of_another_folder_is_named_from_the_loops_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write("data/asked.csv", asked())
    done("init", "near", "--from", "data/asked.csv", *WHO)
    done("init", "far", "--from", tmp_path / "data" / "asked.csv", *WHO)
    for name in ("near", "far"):
        loop = yaml.safe_load(Path(f"loops/{name}.yaml").read_text())
        assert loop["data"]["sources"] == {name: "../data/asked.csv"}


@pytest.mark.parametrize("there", ["churn.yaml", "sql/churn.sql", "data/churn.csv", "churn_features.py"])
def test_no_file_is_overwritten_and_none_is_written_beside_it(there: str) -> None:
    path = Path("loops") / there
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    error = told("init", "churn", "--features", code=2)["error"]
    assert f"loops/{there} exists already" in error["message"]
    assert files() == {f"loops/{there}": "mine"}


def test_second_init_of_a_name_is_refused_before_its_file_is_read() -> None:
    done("init", "churn")
    before = files()
    assert "exists already" in invoke("init", "churn", "--from", "no.csv", *WHO).stderr
    assert files() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["../up"], "can't name a loop"),
        (["9lives"], "can't name a loop"),
        (["x", *WHO], "of which file"),
        (["x", "--from", "asked.csv", "--label", "l"], "also needs --time, --entity"),
        (["x", "--from", "no.csv", *WHO], "no.csv: there is no such file"),
        (["x", "--from", ".", *WHO], "there is no such file"),
        (["x", "--from", "header.csv", *WHO], "has no rows"),
        (["x", "--from", "broken.csv", *WHO], "can't be read as CSV"),
        (["x", "--from", "same.csv", *WHO], "one value only"),
        (["x", "--from", "words.csv", *WHO], "is text such as 'soon', not a time"),
        (
            ["x", "--from", "asked.csv", *WHO[2:], "--label", "late"],
            "no column 'late' for --label. Its columns are: id",
        ),
        (["x", "--from", "asked.csv", *WHO[2:], "--label", "t"], "another part as well"),
        (["x", "--from", "asked.csv", *WHO, "--label-known-at", "30"], "no column '30' for --label-known-at"),
        (["x", "--from", "asked.csv", *WHO, "--known-at", "x"], "'x' is DOUBLE, not a time"),
    ],
)
def test_what_can_not_be_done_is_said_and_leaves_nothing_behind(args: list[str], words: str) -> None:
    write("asked.csv", asked(days=3))
    write("header.csv", [])
    write("broken.csv", [[1, START, 1, 1], [2, START]])
    write("same.csv", [[1, START, 1, 1], [2, START, 2, 1]])
    write("words.csv", [[1, START, 1, 1], [2, "soon", 2, 0]])
    before = files()
    result = invoke("init", *args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert files() == before


def test_folder_that_can_not_be_written_is_a_failure() -> None:
    Path("loops").write_text("no folder")
    result = invoke("init", "churn")
    assert result.exit_code == 3
    assert "can't be written" in result.stderr
