"""What `treadle status` tells an operator: who serves, on what data, and the very command that comes next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from treadle.cli import app
from treadle.session import open_session
from treadle.status import status
from typer.testing import CliRunner, Result
from wheel import FIRST, SECOND, Wheel


def shown(wheel: Wheel, *args: str) -> str:
    result = CliRunner().invoke(app, ["status", str(wheel.path), "--store", str(wheel.store), *args])
    assert result.exit_code == 0, result.output
    return result.stdout


def typed(command: str) -> Result:
    """The result of a command as status prints it, with its blanks filled in."""
    words = shlex.split(command.replace("WHY", "fine").replace("NAME", "bea"))
    assert words[0] == "treadle"
    return CliRunner().invoke(app, words[1:])


@pytest.mark.parametrize("inside", [True, False], ids=["from its folder", "from elsewhere"])
def test_first_model_that_waits_comes_with_the_command_that_lets_it_serve(
    wheel: Wheel, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(FIRST, track="careful")
    monkeypatch.chdir(wheel.path.parent if inside else wheel.store)
    told = shown(wheel, "--track", "careful")
    assert "nothing yet: the first model waits" in told
    assert f"a first model of {FIRST} waits for a person: the loop's approval is manual" in told
    found = status(wheel.session(FIRST, track="careful"))
    approve = found["pending"]["commands"][0]
    assert approve.split()[2] == (wheel.path.name if inside else str(wheel.path))
    assert typed(approve).exit_code == 0
    assert wheel.kinds("careful")[-1] == "promote"
    assert "ALERT" not in shown(wheel, "--track", "careful")


def test_proposal_whose_run_was_killed_comes_with_the_run_that_finishes_it(wheel: Wheel) -> None:
    session = wheel.session(SECOND)
    champion = session.log.champion()
    assert champion is not None
    session.log.append(
        "propose",
        subject="verdict",
        candidate="c" * 64,
        champion=champion.candidate,
        why="better",
        as_of=session.as_of,
        details={"candidate_id": "id"},
    )
    told = shown(wheel)
    assert "was proposed, and its run never finished" in told
    assert f"treadle run {wheel.path} --as-of {SECOND}" in " ".join(told.split())


def test_commands_leave_out_what_goes_without_saying(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle.loop import Loop

    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    monkeypatch.chdir(wheel.path.parent)
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    wheel.run(SECOND, overrides=("gate.floor={}", "gate.guard={}", "gate.margin=0.5", "gate.slice_limit=9.0"))
    found = status(open_session(Loop.load(Path(wheel.path.name)), as_of=SECOND))
    assert found["pending"]["commands"] == [
        f"treadle {act} orders.yaml --reason WHY --by NAME" for act in ("approve", "reject")
    ]


def test_warnings_of_the_champions_data_are_shown(wheel: Wheel) -> None:
    assert status(wheel.session(FIRST))["champion"]["warnings"] == []
    wheel.edit(
        "orders.yaml",
        "{type: expect_column_values_to_not_be_null, column: region}",
        "{type: expect_column_values_to_be_between, column: amount, max_value: 100, severity: warn}",
    )
    wheel.run(FIRST, track="other")
    (warning,) = status(wheel.session(FIRST, track="other"))["champion"]["warnings"]
    assert warning.startswith("orders.amount: expect_column_values_to_be_between warned")
    assert f"data of the champion: {warning}"[:60] in " ".join(shown(wheel, "--track", "other").split())
