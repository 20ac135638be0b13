"""A record in a few plain values, for an orchestrator's page."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import treadle
from treadle.records import STAGE_OF, DriftReport, Record, RetrainDecision
from treadle.stages import STAGES
from wheel import Wheel


def test_every_kind_of_record_is_made_by_one_stage() -> None:
    assert tuple(STAGE_OF.values()) == STAGES


@pytest.mark.parametrize("stage", STAGES[:6])
def test_a_summary_is_small_plain_json_that_names_its_record(
    turned: tuple[Wheel, treadle.Run], stage: str
) -> None:
    record = turned[1][stage]
    told = record.summary()
    assert json.loads(json.dumps(told)) == told
    assert (told["stage"], told["kind"], told["id"], told["digest"]) == (
        stage,
        record.kind,
        record.id,
        record.digest,
    )
    assert datetime.fromisoformat(told["as_of"]) == record.as_of
    assert told["words"]
    assert "\n" not in told["words"]
    assert all(isinstance(value, float) for value in told["numbers"].values())
    assert len(json.dumps(told)) < 4000


def test_a_summary_says_what_a_person_asks(turned: tuple[Wheel, treadle.Run]) -> None:
    run = turned[1]
    assert run["prepare"].summary()["numbers"]["labelled_rows"] == 1624
    trained = run["train"].summary()
    assert trained["flavour"] == "xgboost"
    assert trained["numbers"]["rounds"] == 30
    assert trained["numbers"]["metrics.train_log_loss"] > 0
    judged = run["evaluate"].summary()
    assert judged["decision"] == "promote"
    assert judged["words"] == judged["why"]
    assert judged["numbers"]["comparison.difference"] < 0
    assert judged["numbers"]["metrics.challenger.roc_auc"] > 0.5


def header(record: type[Record]) -> dict[str, object]:
    return {"id": "a" * 64, "digest": "b" * 64, "loop": "orders", "as_of": "2024-02-19", "key": {}}


def test_a_report_says_whether_it_drifted_and_a_decision_whether_a_retrain_is_due() -> None:
    span = {"start": "2024-02-12", "end": "2024-02-19", "rows": 280, "captured": 0, "replayed": 280}
    report = DriftReport.model_validate(
        {**header(DriftReport), **span, "candidate": None, "drifted": True, "words": "amount\n  moved"}
    )
    assert (
        report.summary() | {"drifted": True, "words": "amount moved", "stage": "monitor"} == report.summary()
    )
    decision = RetrainDecision.model_validate(
        {
            **header(RetrainDecision),
            "due": True,
            "trigger": "drift",
            "why": "2 of 2",
            "run_as_of": "2024-02-19",
        }
    )
    told = decision.summary()
    assert (told["due"], told["trigger"], told["why"]) == (True, "drift", "2 of 2")
    assert told["run_as_of"] == "2024-02-19T00:00:00Z"
