"""The command line: help that teaches, one JSON value on standard output, and exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import treadle
from cli_cases import invoke, told
from processes import command, one_json
from treadle.cli import app
from typer.testing import CliRunner, Result
from wheel import FIRST, SECOND, Wheel, ids

COMMANDS = [
    "check", "run", "status", "history", "monitor", "approve", "reject", "rollback", "predict", "serve",
    "materialize", "explain-cache",
]  # fmt: skip
STAGES = ["prepare", "featurize", "train", "evaluate", "release", "deploy"]


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
        (["serve", "{loop}", "--track", "Upper"], 2, "can't name a track"),
        (["check", "{loop}", "--set", "train.rounds"], 2, "section.field=value"),
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


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"treadle {metadata.version('treadle')}\n")


@pytest.mark.parametrize("port", ["80000", "-1"])
def test_a_port_that_there_is_not_is_the_users_error(wheel: Wheel, port: str) -> None:
    done = invoke("serve", wheel.path, "--store", wheel.store, "--port", port)
    assert done.exit_code == 2
    assert "Invalid value for '--port'" in done.output
