"""What a person does on the log: at which time, on which model, and twice."""

from __future__ import annotations

import pytest
import treadle
from processes import one_json
from treadle import acts
from treadle.cli import app
from treadle.clock import format_instant, parse_instant, today
from treadle.errors import StaleChampion, UserError
from treadle.registry.log import Entry
from typer.testing import CliRunner, Result
from wheel import FIRST, SECOND, THIRD, Wheel, lenient


def invoke(wheel: Wheel, name: str, *args: object) -> Result:
    return CliRunner().invoke(app, [name, str(wheel.path), "--store", str(wheel.store), *map(str, args)])


def rolled_back(wheel: Wheel, reason: str = "complaints", who: str = "bea", undo: str | None = None) -> Entry:
    return acts.rollback(wheel.session(SECOND, who=who), reason, undo=undo)


@pytest.fixture
def twice(wheel: Wheel) -> Wheel:
    """A wheel whose second champion serves."""
    lenient(wheel)
    wheel.run(SECOND)
    return wheel


def test_an_act_in_a_replay_takes_the_time_of_the_logs_head(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    for as_of in (FIRST, SECOND):
        wheel.run(as_of, track="replay")
        done = invoke(wheel, "approve", "--track", "replay", "--reason", "fine", "--by", "bea", "--json")
        assert done.exit_code == 0, done.output
        assert [entry["as_of"] for entry in one_json(done.stdout)] == [
            format_instant(parse_instant(as_of))
        ] * 2
        assert f"as of {as_of}, the time of the log's last entry" in done.stderr
    wheel.run(THIRD, track="replay")
    assert wheel.kinds("replay") == ["propose", "hold", "approve", "promote"] * 2 + ["propose", "hold"]


def test_an_act_on_production_takes_today_and_says_what_that_means(twice: Wheel) -> None:
    done = invoke(twice, "rollback", "--reason", "complaints", "--by", "bea", "--json")
    (entry,) = one_json(done.stdout)
    assert entry["as_of"] == format_instant(today())
    assert f"as of {today().date()}, today; the log's last entry is of {SECOND}, " in done.stderr
    assert "years before, and no run of a time between can be released" in done.stderr


def test_an_act_takes_the_end_of_a_history_that_ended(twice: Wheel) -> None:
    twice.edit("orders.yaml", "owner: ops", "owner: ops\nhistory: {to: 2024-03-31}")
    (entry,) = one_json(invoke(twice, "rollback", "--reason", "complaints", "--json").stdout)
    assert entry["as_of"] == format_instant(parse_instant(SECOND))


def test_a_run_behind_the_log_is_told_who_serves_and_what_to_do(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(THIRD, who="eva")
    serving = wheel.session(THIRD).log.champion()
    assert serving is not None
    with pytest.raises(StaleChampion) as refused:
        wheel.run(SECOND)
    told = str(refused.value)
    assert f"model {(serving.candidate or '')[:12]} serves since {THIRD} (eva promoted it, recorded " in told
    assert f"run the loop with --as-of {THIRD} or later" in told
    assert "--track NAME" in told


def test_rollback_repeated_by_the_same_person_for_the_same_reason_goes_back_once(twice: Wheel) -> None:
    third = twice.run(THIRD)
    assert twice.kinds()[-1] == "promote"
    session = twice.session(THIRD, who="bea")
    said: list[str] = []
    session.say = said.append
    first, again = acts.rollback(session, "complaints"), acts.rollback(session, "complaints")
    assert again == first
    assert first.champion == third.candidate.digest
    assert f"done already: bea rolled {first.champion[:12]} back to {first.candidate[:12]}" in said[-1]  # type: ignore[index]
    assert f"--from {first.candidate[:12]}" in said[-1]  # type: ignore[index]
    back_one_more = acts.rollback(session, "complaints", undo=first.candidate)
    assert back_one_more.sequence == first.sequence + 1
    assert back_one_more.champion == first.candidate


def test_rollback_by_another_person_or_for_another_reason_goes_back_one_more(twice: Wheel) -> None:
    twice.run(THIRD)
    acts.rollback(twice.session(THIRD, who="bea"), "complaints")
    acts.rollback(twice.session(THIRD, who="cem"), "complaints")
    assert twice.kinds()[-2:] == ["rollback", "rollback"]
    with pytest.raises(UserError, match="replaced nothing"):
        acts.rollback(twice.session(THIRD, who="cem"), "more complaints")


def test_rollback_from_a_named_model_is_done_once_whoever_repeats_it(twice: Wheel) -> None:
    bad = twice.session(SECOND).log.champion().candidate  # type: ignore[union-attr]
    assert bad
    entry = rolled_back(twice, undo=bad[:8])
    assert entry.champion == bad
    assert rolled_back(twice, "again", "cem", undo=bad[:12]) == entry
    assert twice.kinds()[-2:] == ["promote", "rollback"]


def test_rollback_from_a_model_that_does_not_serve_is_refused(
    twice: Wheel, turned: tuple[Wheel, treadle.Run]
) -> None:
    first, serving = turned[1].candidate.digest, twice.session(SECOND).log.champion()
    with pytest.raises(StaleChampion) as refused:
        rolled_back(twice, undo=first[:12])
    assert f"model {first[:12]} does not serve: model {serving.candidate[:12]} serves since" in str(
        refused.value
    )  # type: ignore[union-attr, index]
    assert twice.kinds()[-1] == "promote"


def test_rollback_says_from_which_model_to_which(twice: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    bad = twice.session(SECOND).log.champion().candidate  # type: ignore[union-attr]
    told = invoke(twice, "rollback", "--reason", "complaints", "--by", "bea", "--as-of", SECOND).stdout
    names = f"from {bad[:12]} to {turned[1].candidate.digest[:12]}"  # type: ignore[index]
    assert told.startswith(f"rollback {names} as of {SECOND} by bea: complaints")
    assert f"from {bad[:12]}: complaints" in invoke(twice, "history").stdout  # type: ignore[index]


def test_answer_to_nothing_tells_what_became_of_the_newest_proposal(wheel: Wheel) -> None:
    with pytest.raises(UserError, match=rf"nothing waits.*of {FIRST}, was promoted by ann"):
        acts.approve(wheel.session(FIRST, who="bea"), "fine")
    with pytest.raises(UserError, match=r"nothing waits.*No model was ever proposed"):
        acts.reject(wheel.session(FIRST, track="new"), "no")
