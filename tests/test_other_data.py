"""Tables that the loops of this repository never saw: several classes, numbers, no Feast file at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import treadle
from plain import plain_wheel
from treadle.errors import HoldoutTooSmall
from treadle.models import load_candidate
from treadle.projections import materialize
from treadle.scoring import score_file
from treadle.status import status
from wheel import ids


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_wheel_turns_on_several_classes_and_on_numbers(name: str, tmp_path: Path) -> None:
    wheel = plain_wheel(tmp_path, name)
    first = wheel.run("2024-02-26").verdict
    assert (first.mode, first.decision) == ("first", "promote")  # type: ignore[attr-defined]
    second = wheel.run("2024-03-18")
    verdict = second.verdict
    assert verdict.comparison.champion is not None  # type: ignore[attr-defined]
    assert verdict.holdout.blocks >= 14  # type: ignore[attr-defined]
    assert verdict.holdout.positives is None  # type: ignore[attr-defined]
    assert wheel.kinds() == ["propose", "promote", "propose", "promote"]
    watched = treadle.watch(treadle.Loop.load(wheel.path), as_of="2024-03-25", store=wheel.store)
    assert watched.drift_report.quality.loss == {"digits": "log_loss", "diabetes": "squared_error"}[name]  # type: ignore[attr-defined]
    assert watched.drift_report.rows > 50  # type: ignore[attr-defined]
    assert wheel.kinds()[-1] == "retrain"
    assert ids(wheel.run("2024-03-18")) == ids(second)
    session = wheel.session("2024-03-18")
    assert materialize(session) == {}
    assert status(session)["champion"]["candidate"] == second.candidate.digest

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(wheel.path.parent / "rows.parquet")
    rows = rows.filter(pc.less(rows["seen_at"], session.as_of))
    pq.write_table(rows, tmp_path / "asked.parquet")
    assert score_file(session, tmp_path / "asked.parquet", tmp_path / "scores.parquet")["rows"] == len(rows)
    scores = pq.read_table(tmp_path / "scores.parquet")
    if name == "digits":
        right = np.array(scores["prediction"]) == np.array(rows["target"])
        assert right.mean() > 0.9
        shares = np.array(
            [scores[column] for column in scores.column_names if column.startswith("prediction_")]
        )
        assert shares.shape[0] == len(load_candidate(session.store, second.candidate).classes) == 10  # type: ignore[arg-type]
        assert np.allclose(shares.sum(axis=0), 1, atol=1e-5)
    else:
        assert np.corrcoef(scores["prediction"], rows["target"])[0, 1] > 0.6


def test_fewer_positives_than_the_gate_asks_for_is_told_with_a_remedy(tmp_path: Path) -> None:
    wheel = plain_wheel(tmp_path, "breast_cancer")
    with pytest.raises(
        HoldoutTooSmall, match=r"109 rows of the positive class.* asks for 300.*data\.holdout"
    ):
        wheel.run("2024-02-26")
    assert wheel.kinds() == []
    assert (
        wheel.run("2024-02-26", overrides=("gate.min_positives=50",), track="trial").verdict.decision
        == "promote"
    )  # type: ignore[attr-defined]


def test_class_that_came_after_training_costs_the_challenger_and_breaks_nothing(tmp_path: Path) -> None:
    wheel = plain_wheel(tmp_path, "digits")
    late = "where target <> 'digit 9' or seen_at >= timestamptz '2024-02-05 00:00:00Z'"
    wheel.edit("rows.sql", "select * from rows", f"select * from rows {late}")
    run = wheel.run("2024-02-26")
    assert "digit 9" not in run.candidate.classes  # type: ignore[attr-defined]
    assert np.isfinite(run.verdict.comparison.challenger)  # type: ignore[attr-defined]
    assert run.verdict.metrics["challenger"]["accuracy"] < 0.9  # type: ignore[attr-defined]
