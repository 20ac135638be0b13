"""The command line: help that teaches, one JSON value on standard output, exit codes, and what each command does."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treadle
from processes import command, one_json
from treadle.cli import app
from typer.testing import CliRunner, Result
from wheel import FIRST, SECOND, Wheel, ids, lenient

COMMANDS = [
    "check", "run", "status", "history", "monitor", "approve", "reject", "rollback", "predict", "serve",
    "materialize", "explain-cache",
]  # fmt: skip
STAGES = ["prepare", "featurize", "train", "evaluate", "release", "deploy"]


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def told(wheel: Wheel, name: str, *args: object, code: int = 0) -> Any:
    """The JSON that a command prints for a wheel."""
    result = invoke(name, wheel.path, *(["--store", wheel.store] if name != "check" else []), *args, "--json")
    assert result.exit_code == code, result.output
    return one_json(result.stdout)


@pytest.fixture
def waiting(wheel: Wheel) -> Wheel:
    """A wheel with a challenger that waits for a person."""
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    return wheel


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_teaches_by_an_example(name: str) -> None:
    shown = invoke(name, "--help")
    assert shown.exit_code == 0
    assert f"Example: treadle {name} loops/flights.yaml" in " ".join(shown.stdout.split())


def test_help_names_every_command_with_a_whole_sentence() -> None:
    shown = invoke("--help").stdout
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_stand_on_one_line_to_be_copied(name: str) -> None:
    lines = invoke(name, "--help").stdout.splitlines()
    for line, after in pairwise(lines):
        if "Example:" in line:
            assert not after.strip()


def test_console_script_prints_one_json_object_and_progress_apart(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run]
) -> None:
    done = command("run", wheel.path, "--as-of", FIRST, "--store", wheel.store, "--json")
    assert done.returncode == 0, done.stderr
    found = one_json(done.stdout)
    assert list(found) == STAGES
    assert {stage: (record["id"], record["digest"]) for stage, record in found.items()} == ids(turned[1])
    assert done.stderr.splitlines()[0].startswith("prepare: nothing changed")


def test_console_script_keeps_libraries_off_standard_output(wheel: Wheel) -> None:
    done = command(
        "run",
        wheel.path,
        "--as-of",
        SECOND,
        "--to",
        "retrain",
        "--json",
        env={"TREADLE_STORE": str(wheel.store)},
    )
    found = one_json(done.stdout)
    assert list(found) == [*STAGES, "monitor", "retrain"]
    assert done.returncode == {"promote": 0, "keep": 1, "hold": 1}[found["evaluate"]["decision"]]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["frobnicate"], 2, "No such command"),
        (["run"], 2, "LOOP"),
        (["run", "no.yaml"], 2, "no.yaml: the loop file does not exist"),
        (["run", "{loop}", "--bogus"], 2, "No such option"),
        (["run", "{loop}", "--from", "nowhere"], 2, "the stages are: prepare, featurize"),
        (["run", "{loop}", "--to", "nowhere"], 2, "the stages are: prepare, featurize"),
        (["run", "{loop}", "--from", "train", "--to", "prepare"], 2, "comes after"),
        (["run", "{loop}", "--as-of", "2999-01-01"], 2, "lies after now"),
        (["run", "{loop}", "--as-of", "someday"], 2, "write it as 2013-04-01"),
        (["run", "{loop}", "--set", "train.rounds"], 2, "section.field=value"),
        (["run", "{loop}", "--set", "train.rounds=many"], 2, "--set: train.rounds"),
        (["run", "{loop}", "--set", "train.ronds=5"], 2, "Did you mean 'rounds'"),
        (["run", "{loop}", "--set", "train.rounds.deep=5"], 2, "no section"),
        (["run", "{loop}", "--set", "train.params=]"], 2, "no YAML value"),
        (["run", "{loop}", "--track", "../up"], 2, "can't name a track"),
        (["status", "{loop}", "--track", "Upper"], 2, "can't name a track"),
        (["history", "{loop}", "--at", "noon"], 2, "write it as 2013-04-01"),
        (["history", "{loop}", "--verdict", "best"], 2, "first characters, four or more"),
        (["history", "{loop}", "--verdict", "00000000"], 2, "The newest are: "),
        (["history", "{loop}", "--verdict", "last", "--at", "2024-02-20"], 2, "different questions"),
        (["history", "{loop}", "--verdict", "last", "--track", "new"], 2, "judged no model"),
        (["rollback", "{loop}", "--reason", "bad", "--from", "it"], 2, "names no model"),
        (["approve", "{loop}"], 2, "--reason"),
        (["approve", "{loop}", "--reason", "fine"], 2, "nothing waits for a person"),
        (["reject", "{loop}", "--reason", "no"], 2, "nothing waits for a person"),
        (["rollback", "{loop}", "--reason", "bad"], 2, "nothing to go back to"),
        (["rollback", "{loop}", "--reason", " "], 2, "needs a reason"),
        (["monitor", "{loop}", "--track", "new", "--as-of", "2024-02-19"], 2, "run the loop first"),
        (["predict", "{loop}", "--input", "no.csv", "--output", "out.csv"], 2, "no such file"),
        (["serve", "{loop}", "--port", "many"], 2, "--port"),
    ],
)
def test_users_errors_end_with_2_and_say_what_would_be_right(
    wheel: Wheel, args: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    result = invoke(*(arg.format(loop=wheel.path) for arg in args))
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert not result.stdout
    assert "Traceback" not in result.stderr
    assert wheel.kinds() == ["propose", "promote"]


@pytest.mark.parametrize(
    ("args", "code", "kind"),
    [
        (["run", "--as-of", "2999-01-01"], 2, "AsOfError"),
        (["run", "--set", "x=1"], 2, "SpecError"),
        (["run", "--as-of", FIRST, "--set", "data.holdout=5d"], 1, "HoldoutTooSmall"),
        (["approve", "--reason", "fine"], 2, "UserError"),
    ],
)
def test_errors_are_one_json_object_too(wheel: Wheel, args: list[str], code: int, kind: str) -> None:
    error = told(wheel, args[0], *args[1:], code=code)["error"]
    assert error["type"] == kind
    assert error["message"]
    assert error["retryable"] is False


def test_failures_end_with_3(wheel: Wheel) -> None:
    (wheel.store / "logs" / "orders" / "production" / "00000001.json").unlink()
    for name in ("run", "status", "history", "rollback"):
        reason = ["--reason", "x"] if name == "rollback" else []
        assert told(wheel, name, *reason, code=3)["error"]["type"] == "LogBroken"


def test_refused_challenger_ends_with_1(wheel: Wheel) -> None:
    found = told(wheel, "run", "--as-of", SECOND, "--set", "gate.floor={roc_auc: 0.99}", code=1)
    assert found["evaluate"]["decision"] in ("keep", "hold")
    assert wheel.kinds()[-1] in ("reject", "hold")


def test_parts_of_the_wheel(wheel: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    found = told(wheel, "run", "--as-of", FIRST, "--from", "train", "--to", "evaluate")
    assert list(found) == ["train", "evaluate"]
    assert found["train"]["id"] == turned[1].candidate.id


def test_store_is_beside_the_loop_unless_told(tmp_path: Path, wheel: Wheel) -> None:
    assert told_of(invoke("status", wheel.path, "--json"))["store"] == str(wheel.path.parent / ".treadle")
    result = CliRunner(env={"TREADLE_STORE": str(tmp_path / "other")}).invoke(
        app, ["status", str(wheel.path), "--json"]
    )
    assert told_of(result)["store"] == str(tmp_path / "other")


def told_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return one_json(result.stdout)


def test_history_lists_entries_and_tells_the_champion_of_a_day(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run]
) -> None:
    entries = told(wheel, "history")
    assert [entry["kind"] for entry in entries] == ["propose", "promote"]
    assert entries[1]["previous"] == entries[0]["hash"]
    champion = told(wheel, "history", "--at", "2024-02-20")["champion"]
    assert champion["candidate"] == turned[1].candidate.digest
    assert told(wheel, "history", "--at", "2024-02-01")["champion"] is None
    shown = invoke("history", wheel.path, "--store", wheel.store)
    assert "promote" in shown.stdout
    assert champion["candidate"][:12] in shown.stdout
    at = invoke("history", wheel.path, "--store", wheel.store, "--at", "2024-02-20")
    assert f"--verdict {champion['verdict'][:12]}" in at.stdout


def test_status_in_words_and_json(waiting: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    found = told(waiting, "status")
    assert found["champion"]["candidate"] == turned[1].candidate.digest
    assert found["pending"]["waits_for"] == "the loop's approval is manual"
    shown = invoke("status", waiting.path, "--store", waiting.store).stdout
    assert "the loop's approval is manual" in shown
    for answer in found["pending"]["commands"]:
        assert answer in " ".join(shown.split())


def test_approval_through_the_command_line(waiting: Wheel) -> None:
    act = ("--reason", "slices are fine", "--as-of", SECOND)
    trainer = told(waiting, "approve", *act, "--by", "ann", code=1)
    assert trainer["error"]["type"] == "NeedsPerson"
    entries = told(waiting, "approve", *act, "--by", "bea")
    assert [entry["kind"] for entry in entries] == ["approve", "promote"]
    assert told(waiting, "status")["champion"]["approved_by"] == "bea"


def test_rejection_and_rollback_through_the_command_line(waiting: Wheel) -> None:
    result = invoke(
        "reject",
        waiting.path,
        "--store",
        waiting.store,
        "--reason",
        "a holiday",
        "--by",
        "bea",
        "--as-of",
        SECOND,
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("reject of ")
    assert "by bea: a holiday" in result.stdout
    assert told(waiting, "status")["pending"] is None


def test_rollback_through_the_command_line(wheel: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    (entry,) = told(wheel, "rollback", "--reason", "complaints", "--by", "bea", "--as-of", SECOND)
    assert entry["kind"] == "rollback"
    assert entry["candidate"] == turned[1].candidate.digest


def test_explain_cache_names_the_part_that_was_edited(wheel: Wheel) -> None:
    wheel.edit("orders.sql", "items,", "items, amount / items as price,")
    wheel.run(FIRST, to="train")
    explained = {item["stage"]: item for item in told(wheel, "explain-cache")}
    assert [change["part"] for change in explained["prepare"]["changed"]] == ["files.orders.sql"]
    assert "snapshot" in {change["part"] for change in explained["featurize"]["changed"]}
    assert explained["deploy"]["before"] is None
    shown = invoke("explain-cache", wheel.path, "--store", wheel.store).stdout
    assert "files.orders.sql" in shown


def test_check_finds_faults_and_passes_a_sound_loop(wheel: Wheel) -> None:
    assert not [item for item in told(wheel, "check") if item["severity"] == "error"]
    wheel.edit("order_features.py", "region = Entity", "1 / 0\nregion = Entity")
    wheel.edit("orders.yaml", "floor: {roc_auc: 0.55}", "floor: {auc: 0.55}")
    found = [item for item in told(wheel, "check", code=1) if item["severity"] == "error"]
    assert len(found) >= 2
    assert any("ZeroDivisionError" in json.dumps(item) for item in found)
    assert any(item["line"] and "auc" in item["evidence"] for item in found), found


def test_materialize_feeds_the_champions_views(wheel: Wheel) -> None:
    written = told(wheel, "materialize", "--as-of", FIRST)
    assert list(written.values()) == [4]


def test_monitor_reports_and_decides(wheel: Wheel) -> None:
    found = told(wheel, "monitor", "--as-of", "2024-02-19")
    assert found["retrain"]["due"] is True
    assert found["monitor"]["rows"] > 200


def scores(path: Path) -> list[float]:
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [float(row["prediction"]) for row in csv.DictReader(file)]
    import pyarrow.parquet as pq

    return [float(value) for value in pq.read_table(path)["prediction"].to_pylist()]


def test_predictions_by_features_and_by_entity_agree_with_the_model_in_both_formats(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    import pyarrow.csv
    import pyarrow.parquet as pq
    from treadle.data.tables import read_partitions
    from treadle.models import load_candidate

    store = wheel.session(FIRST).store
    rows = read_partitions(store, turned[1].features.partitions).slice(1500, 150)  # type: ignore[attr-defined]
    predictor = load_candidate(store, turned[1].candidate)  # type: ignore[arg-type]
    expected = predictor.predict(predictor.schema.encode(rows))
    assert expected.std() > 0.01
    features = rows.select(["entity", "event_time", *predictor.schema.names])
    named = rows.select(["entity", "event_time"]).rename_columns(["order_id", "placed_at"])
    for name, table in (("features", features), ("named", named)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        pyarrow.csv.write_csv(table, tmp_path / f"{name}.csv")
        for suffix in ("parquet", "csv"):
            source, target = tmp_path / f"{name}.{suffix}", tmp_path / f"{name}-scores.{suffix}"
            done = told(wheel, "predict", "--input", source, "--output", target, "--as-of", FIRST)
            assert done["rows"] == 150
            assert np.allclose(scores(target), expected, rtol=0, atol=1e-12)


def test_predicting_an_unknown_entity_writes_nothing(wheel: Wheel, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("order_id,placed_at\nnobody,2024-02-10T00:00:00Z\n")
    target.write_text("of yesterday\n")
    error = told(wheel, "predict", "--input", source, "--output", target, "--as-of", FIRST, code=2)["error"]
    assert "'nobody'" in error["message"]
    assert target.read_text() == "of yesterday\n"
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.csv"]


def test_run_shows_the_whole_reason_and_one_name_for_a_model(wheel: Wheel) -> None:
    result = invoke("run", wheel.path, "--store", wheel.store, "--as-of", SECOND)
    found = wheel.run(SECOND)
    words = " ".join(result.stdout.split())
    assert found.verdict.why in words  # type: ignore[attr-defined]
    assert all(len(line) <= 120 for line in result.stdout.splitlines())
    name, other = found.candidate.digest[:12], found.candidate.id[:12]
    assert f"model {name}: xgboost on" in words
    assert f"Candidate(model='{name}'" in result.stderr
    assert other not in result.output


def test_a_verdict_is_shown_with_all_its_criteria(wheel: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    lenient(wheel)
    wheel.edit(
        "orders.yaml", "  margin: 0.5", "  slice_min_rows: 100\n  floor: {roc_auc: 0.55}\n  margin: 0.5"
    )
    wheel.edit(
        "orders.yaml",
        "{type: expect_column_values_to_not_be_null, column: region}",
        "{type: expect_column_values_to_be_between, column: amount, max_value: 100, severity: warn}",
    )
    run = wheel.run(SECOND)
    verdict, champion = run.verdict, turned[1].candidate
    record = told(wheel, "history", "--verdict", "last")
    assert record == verdict.model_dump(mode="json")
    for which in (verdict.id, verdict.id[:6], run.candidate.digest[:12]):
        assert told(wheel, "history", "--verdict", which)["id"] == verdict.id
    first = told(wheel, "history", "--verdict", champion.digest[:12])
    assert first["id"] == turned[1].verdict.id
    shown = invoke("history", wheel.path, "--store", wheel.store, "--verdict", "last").stdout
    words = " ".join(shown.split())
    assert f"model {champion.digest[:12]}: xgboost on" in words
    assert all(id_ in shown for id_ in (verdict.id, run.candidate.id, champion.id))
    row = next(line for line in shown.splitlines() if f"log_loss ({verdict.mode})" in line)
    seen = verdict.comparison
    for value in (
        f"{seen.challenger:.4g}",
        f"{seen.champion:.4g}",
        f"{seen.low:+.3g} to {seen.high:+.3g}",
    ):
        assert value in row
    assert "below 0 " in row
    for name in ("roc_auc (guard)", "roc_auc (floor)", "region=north", "90 % interval"):
        assert name in shown
    assert f"{verdict.holdout.rows} rows in 14 blocks" in words
    assert f"{SECOND} {wheel.kinds()[-1]} by ann" in words
    assert "orders.amount: expect_column_values_to_be_between warned" in words


def test_a_verdict_of_a_first_model_names_its_baseline(wheel: Wheel) -> None:
    shown = invoke("history", wheel.path, "--store", wheel.store, "--verdict", "last").stdout
    assert "none: this is a first model" in shown
    assert "(baseline)" in shown


@pytest.mark.parametrize(
    ("before", "after", "place", "token", "under"),
    [
        ("amount, items", "amount,, items", ":1:", 'near ","', ", items"),
        ("amount, items", "amount, itms", ":1:", '"itms" not found', "itms"),
        ("\nfrom orders", "\nfro orders", ":2:", 'near "orders"', "orders"),
        ("\nfrom orders", "\nfrom orders\nwhere", ":3:", "end of input", ""),
        ("select order_id", "\n-- ids\nselect nothing", ":3:", '"nothing" not found', "nothing"),
    ],
    ids=["comma", "column", "keyword", "end", "below a comment"],
)
def test_a_fault_in_sql_is_told_with_line_and_token(
    wheel: Wheel, before: str, after: str, place: str, token: str, under: str
) -> None:
    wheel.edit("orders.sql", before, after)
    error = told(wheel, "run", "--as-of", FIRST, code=2)["error"]
    assert f"orders.sql{place} the SQL of the table 'orders' failed" in error["message"]
    assert token in error["message"]
    line = (wheel.path.parent / "orders.sql").read_text().splitlines()[int(place.strip(":")) - 1]
    text, mark = error["message"].splitlines()[-2:]
    assert text.strip().strip(".") in line
    assert text[mark.index("^") :].startswith(under)


def test_no_warning_of_a_library_reaches_standard_error(wheel: Wheel) -> None:
    # Feast, once imported, has every deprecation shown: what comes after it must not.
    run = "import feast, sys; from treadle.cli import main; sys.exit(main())"
    args = ["run", str(wheel.path), "--as-of", SECOND, "--store", str(wheel.store), "--to", "featurize"]
    done = subprocess.run([sys.executable, "-c", run, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "made the table orders" in done.stderr
    assert "Warning" not in done.stderr, done.stderr
