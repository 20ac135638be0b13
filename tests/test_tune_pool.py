"""Samples of a stage on several pools, side by side: which is worth it, in figures and in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import one_json
from small import write_small_loop
from treadle.cli import app
from treadle.errors import SpecError, UserError
from treadle.jobs.tune_pool import Sample, Trial, compare, verdict_on
from typer.testing import CliRunner
from wheel import FIRST


def trial(pool: str, seconds: float, usd: float | None = None, gain: float | None = 0.2) -> Trial:
    per = usd / gain if usd is not None and gain else None
    return Trial(pool, seconds, seconds * 0.9, usd, gain=gain, usd_per_gain=per)


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        (
            [trial("slow", 60, 0.01), trial("fast", 20, 0.05)],
            "Take slow: fast, the next, costs 5.0 times as much for what the model learned. fast is the fastest,"
            " with 20.0 s against 60.0 s, for 5.0 times the cost.",
        ),
        (
            [trial("slow", 60, 0.05), trial("fast", 20, 0.01)],
            "Take fast: slow, the next, costs 5.0 times as much for what the model learned. It is the fastest, too,"
            " with 20.0 s.",
        ),
        (
            [trial("worse", 60, 0.01, gain=0.01), trial("better", 60, 0.02, gain=0.2)],
            "Take better: worse, the next, costs 10.0 times as much for what the model learned.",
        ),
        ([trial("one", 60, 0.0100), trial("two", 50, 0.0101)], "one and two cost about the same"),
        (
            [trial("owned", 60, 0.0), trial("rented", 20, 0.5)],
            "Take owned: rented, the next, costs 2.50 USD, and it nothing",
        ),
        (
            [trial("slow", 60), trial("fast", 20, 0.05)],
            "fast is the fastest: 20.0 s against 60.0 s on slow. Cost is not compared, as slow has no price.",
        ),
        ([trial("one", 20), trial("two", 20.5)], "one and two take about as long, 20.0 s."),
        (
            [trial("one", 20), Trial("two", 3, error="out of memory")],
            "two did not come to an end. Only one did",
        ),
        ([Trial("two", 3, error="out of memory")], "No pool came to an end"),
        (
            [Trial("one", 20, 4, 0.01), Trial("two", 30, 25, 0.1)],
            "On one most of the time was the start: a longer sample tells more",
        ),
    ],
)
def test_the_words_follow_the_figures(trials: list[Trial], words: str) -> None:
    assert words in verdict_on("train", trials)


def test_what_cannot_be_compared_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = write_small_loop(tmp_path, days=1)
    (tmp_path / "pools.yaml").write_text("far: {backend: kubernetes, image: i}\n")
    with pytest.raises(UserError, match="samples are run of prepare, featurize, train, evaluate"):
        compare(path, ["local"], Sample(stage="deploy"))
    with pytest.raises(UserError, match="the pools far are elsewhere"):
        compare(path, ["local", "far"], Sample())
    with pytest.raises(SpecError, match="calling process"):
        compare(path, ["none"], Sample())
    with pytest.raises(SpecError, match="Did you mean 'far'"):
        compare(path, ["fer"], Sample())
    twice = CliRunner().invoke(app, ["tune-pool", str(path), "--pools", "local,local"])
    assert twice.exit_code == 2
    assert "each once" in twice.output


POOLS = """\
roomy: {memory_gib: 8, price: 0.20}
small: {memory_gib: 4, cpu: 1, price: 0.05}
tiny: {memory_gib: 0.03, price: 0.01}
"""


@pytest.mark.slow
def test_two_pools_of_different_limits_are_compared_and_production_is_not_touched(tmp_path: Path) -> None:
    path, store = write_small_loop(tmp_path / "loop"), tmp_path / "store"
    (path.parent / "pools.yaml").write_text(POOLS)
    asked = ["tune-pool", str(path), "--pools", "roomy,small,tiny", "--rounds", "10", "--as-of", FIRST]
    shown = CliRunner().invoke(app, [*asked, "--store", str(store), "--json"])
    assert shown.exit_code == 0, shown.output
    found = one_json(shown.stdout)
    roomy, small, tiny = found["trials"]
    assert found["loss"] == "log_loss"
    assert roomy["gain"] == small["gain"] > 0.05
    assert roomy["usd"] == pytest.approx(0.20 * roomy["seconds"] / 3600, rel=0.01)
    assert small["usd_per_gain"] == pytest.approx(small["usd"] / small["gain"])
    assert 0 < small["work_seconds"] < small["seconds"]
    assert "memory" in tiny["error"]
    assert "tiny did not come to an end. Take small" in found["verdict"]
    # Nothing but the ledger is in the loop's own store: no record, no log, no job, no tracker.
    assert sorted(each.name for each in store.iterdir()) == ["costs", "probe"]
    paid = one_json(
        CliRunner().invoke(app, ["cost", str(path), "--store", str(store), "--by", "track", "--json"]).stdout
    )
    assert [(each["name"], each["jobs"]) for each in paid["groups"]] == [("tune-pool", 3)]


@pytest.mark.slow
def test_a_sample_counts_in_the_budget_and_its_time_is_bounded(tmp_path: Path) -> None:
    path, store = write_small_loop(tmp_path / "loop"), tmp_path / "store"
    path.write_text(path.read_text() + "budget: {monthly: 0.5}\n")
    (path.parent / "pools.yaml").write_text("dear: {price: 60}\nbrief: {price: 0.01}\n")
    sample = Sample(rounds=5, max_seconds=1)
    found = compare(path, ["brief", "dear"], sample, as_of=FIRST, store=str(store))
    brief, dear = found.trials
    assert "ran out of time" in (brief.error or "")
    assert brief.seconds < 60
    assert dear.error is None or "ran out of time" in dear.error
    over = compare(path, ["dear"], Sample(rounds=5, max_seconds=600), as_of=FIRST, store=str(store))
    assert "nothing was submitted" in (over.trials[0].error or "")
