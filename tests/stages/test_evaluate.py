"""Verdicts on real small models: the same rows for all, and a person where the champion can't be judged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from treadle.commit import make_record
from treadle.errors import BlobLost, HoldoutTooSmall, SpecError
from treadle.gate.metrics import row_losses
from treadle.models import load_candidate
from treadle.records import Candidate, Column, Verdict
from treadle.stages.evaluate import Contest, Contestant, evaluate, holdout_span, key
from treadle.stages.train import key as train_key
from treadle.stages.train import train
from treadle.store import LocalStore, blob_path, put_blob

sys.path.insert(0, str(Path(__file__).parent))
from train_loops import AS_OF, COLUMNS, dataset_rows, flight_rows, make_context, make_loop, put_features

EARLIER = AS_OF - timedelta(days=28)
DATA = {"holdout": "21d"}
GATE = {"min_positives": 50, "suspicious": 0.5, "slices": ["origin"], "slice_min_rows": 100}


@pytest.fixture(scope="module")
def table():
    return flight_rows()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def store(home):
    return LocalStore(home / "store")


@pytest.fixture(scope="module")
def loop(home):
    return with_gate(make_loop(home / "loop", data=DATA, params={"max_depth": 2}, rounds=15), **GATE)


def with_gate(loop, **gate):
    """The same loop with another gate."""
    changed = type(loop).model_validate({**loop.model_dump(by_alias=True), "gate": gate})
    changed._folder = loop.folder
    return changed


def contestant(loop, store, scratch, rows, *, as_of=AS_OF, trained_as_of=None, columns=COLUMNS, parts=3):
    """A model trained at `trained_as_of` on what was known then, with its features at `as_of`."""
    trained_as_of = trained_as_of or as_of
    known = rows.filter(pc.less(rows["event_time"], pa.scalar(trained_as_of)))
    earlier = put_features(store, known, columns)
    context = make_context(loop, store, scratch, as_of=trained_as_of)
    outcome = train(context, earlier)
    candidate = make_record(
        Candidate,
        loop=loop.name,
        as_of=trained_as_of,
        key=train_key(context, earlier),
        digest=outcome.digest,
        results=dict(outcome.results),
        blobs={name: put_blob(store, content) for name, content in outcome.files.items()},
        notes={},
    )
    return Contestant(candidate, put_features(store, rows, columns, parts))


def verdict(loop, store, scratch, contest, as_of=AS_OF):
    """The outcome, and its results as the record that the runner would commit."""
    context = make_context(loop, store, scratch, as_of=as_of)
    outcome = evaluate(context, contest)
    record = make_record(
        Verdict,
        loop=loop.name,
        as_of=as_of,
        key=key(context, contest),
        digest="0" * 64,
        results=dict(outcome.results),
        blobs={},
        notes=dict(outcome.notes),
    )
    return outcome, record


@pytest.fixture(scope="module")
def two(loop, store, home, table):
    """A challenger trained now and a champion trained four weeks earlier, by one recipe."""
    challenger = contestant(loop, store, home / "a", table)
    champion = contestant(loop, store, home / "b", table, trained_as_of=EARLIER)
    return Contest(challenger, replace(champion, features=challenger.features), None)


def test_a_first_champion_is_judged_against_what_the_labels_alone_tell(two, loop, store, tmp_path, table):
    contest = Contest(two.challenger, None, None)
    _, found = verdict(loop, store, tmp_path / "s", contest)
    assert (found.decision, found.mode, found.champion) == ("promote", "first", None)
    assert found.challenger_id == contest.challenger.candidate.id
    span = (found.holdout.start, found.holdout.end)
    assert span == (AS_OF - timedelta(days=21), AS_OF)
    known = table.filter(pc.greater_equal(table["event_time"], pa.scalar(found.holdout.start)))
    assert found.holdout.rows == len(known) - known["label"].null_count
    assert found.holdout.unlabelled == known["label"].null_count > 0
    assert found.holdout.positives == pc.sum(known["label"]).as_py()
    assert found.holdout.blocks == 20  # the last day has no labels yet


def test_both_models_are_measured_on_the_same_rows_after_the_training_of_either(
    two, loop, store, tmp_path, table
):
    _, found = verdict(loop, store, tmp_path / "s", two)
    assert found.mode == "non_inferiority"
    assert (
        found.holdout.start
        >= two.challenger.candidate.trained_through
        > two.champion.candidate.trained_through
    )
    rows = table.filter(pc.greater_equal(table["event_time"], pa.scalar(found.holdout.start)))
    rows = rows.filter(pc.is_valid(rows["label"]))
    labels = rows["label"].to_numpy()
    for name, who in (("challenger", two.challenger), ("champion", two.champion)):
        predictor = load_candidate(store, who.candidate)
        losses = row_losses("binary", "log_loss", labels, predictor.predict(predictor.schema.encode(rows)))
        assert found.metrics[name]["log_loss"] == pytest.approx(losses.mean())
        assert getattr(found.comparison, name) == pytest.approx(losses.mean())
    assert {c.name for c in found.criteria} >= {"slice:origin=EWR", "slice:origin=JFK", "slice:origin=LGA"}


def test_the_same_contest_gives_the_same_results_however_the_rows_are_laid_out(
    two, loop, store, tmp_path, table
):
    one, first = verdict(loop, store, tmp_path / "s", two)
    spread = put_features(store, table, parts=7)
    moved = Contest(replace(two.challenger, features=spread), replace(two.champion, features=spread), None)
    other, second = verdict(loop, store, tmp_path / "s", moved)
    assert first.holdout.digest == second.holdout.digest
    assert one.results == other.results


def test_a_challenger_that_is_the_champion_changes_nothing(two, loop, store, tmp_path):
    _, found = verdict(loop, store, tmp_path / "s", replace(two, champion=two.challenger))
    assert found.decision == "no_change"
    assert found.holdout is None


def test_a_champion_trained_later_leaves_no_holdout(two, loop, store, tmp_path):
    newest, oldest = two.challenger, two.champion
    contest = Contest(oldest, newest, None)
    with pytest.raises(HoldoutTooSmall, match="before 2013-03-11 00:00, as a champion learned from rows"):
        verdict(loop, store, tmp_path / "s", contest, as_of=EARLIER)
    with pytest.raises(HoldoutTooSmall, match="on 9 days only"):
        verdict(loop, store, tmp_path / "s", contest, as_of=AS_OF - timedelta(days=12))


def test_a_holdout_without_rows_is_too_small(two, loop, store, tmp_path, table):
    empty = replace(two.challenger, features=put_features(store, table.slice(0, 1500)))
    with pytest.raises(HoldoutTooSmall, match="0 labelled rows"):
        verdict(loop, store, tmp_path / "s", Contest(empty, None, None))


def test_labels_must_be_known_by_the_end(loop, store, tmp_path, table):
    delayed = loop.model_copy(
        update={"data": loop.data.model_copy(update={"label_delay": timedelta(days=3)})}
    )
    challenger = contestant(delayed, store, tmp_path / "a", table)
    _, found = verdict(delayed, store, tmp_path / "s", Contest(challenger, None, None))
    assert found.holdout.end == AS_OF - timedelta(days=3)
    assert found.holdout.unlabelled == 0
    context = make_context(delayed, store, tmp_path / "s")
    assert holdout_span(context, challenger.candidate) == (found.holdout.start, found.holdout.end)


def test_a_champion_is_judged_by_its_own_features(two, loop, store, tmp_path, table):
    """The challenger has another column and recipe; the champion reads one that is gone from today's."""
    gust = table.append_column("gust", pc.multiply(table["wind"], 1.5)).drop_columns(["wind"])
    columns = (Column(name="gust", type="number"), *COLUMNS[1:])
    edited = with_gate(make_loop(tmp_path / "edited", data=DATA, params={"max_depth": 2}, rounds=15), **GATE)
    (edited.folder / "flights.sql").write_text("select *, wind * 1.5 as gust from flights\n")
    challenger = contestant(edited, store, tmp_path / "c", gust, columns=columns)
    own = put_features(store, table)
    _, found = verdict(
        loop, store, tmp_path / "s", Contest(challenger, replace(two.champion, features=own), None)
    )
    assert found.mode == "superiority"
    assert found.metrics["champion"]["log_loss"] == pytest.approx(
        verdict(loop, store, tmp_path / "s", two)[1].metrics["champion"]["log_loss"]
    )
    lacking = replace(two.champion, features=challenger.features)
    _, held = verdict(edited, store, tmp_path / "s", Contest(challenger, lacking, None))
    assert held.decision == "hold"
    assert "wind" in held.why


def test_a_fault_of_the_champion_needs_a_person_and_names_no_folder(two, loop, store, tmp_path):
    fault = f"{tmp_path}/files: the hook hooks:f failed:\nTraceback\nKeyError: 'wind'"
    broken = replace(two, champion=replace(two.champion, features=None, fault=fault))
    outcome, found = verdict(loop, store, tmp_path / "s", broken)
    assert found.decision == "hold"
    assert "KeyError: 'wind'" in found.why
    assert str(tmp_path) not in str(outcome.results)
    assert found.notes["champion_fault"] == fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: _with_labels(rows, flip_last=40), "the label's definition changed: "),
        (lambda rows: rows.filter(pc.not_equal(rows["origin"], "LGA")), "only the challenger's"),
        (lambda rows: _later(rows), "other times"),
    ],
)
def test_other_rows_or_labels_can_not_be_compared(two, loop, store, tmp_path, table, change, words):
    other = replace(two.champion, features=put_features(store, change(table)))
    _, found = verdict(loop, store, tmp_path / "s", replace(two, champion=other))
    assert found.decision == "hold"
    assert words in found.why
    assert found.comparison.difference is None


def _with_labels(rows, flip_last):
    labels = rows["label"].to_pylist()
    known = [i for i, value in enumerate(labels) if value is not None]
    for i in known[-flip_last:]:
        labels[i] = 1 - labels[i]
    return rows.set_column(rows.column_names.index("label"), "label", pa.array(labels))


def _later(rows):
    moved = pc.add(rows["event_time"], pa.scalar(timedelta(microseconds=1)))
    return rows.set_column(rows.column_names.index("event_time"), "event_time", moved)


def test_a_label_of_another_definition_needs_a_person(two, loop, store, tmp_path):
    renamed = two.champion.candidate.model_copy(update={"label_definition": "f" * 64})
    _, found = verdict(
        loop, store, tmp_path / "s", replace(two, champion=replace(two.champion, candidate=renamed))
    )
    assert (found.decision, "the label's definition changed" in found.why) == ("hold", True)


def lose_model(store, candidate):
    for name, sha256 in candidate.blobs.items():
        if name.startswith("model/"):
            store.delete(blob_path(sha256))


def test_a_lost_champion_needs_a_person_and_a_lost_challenger_is_made_again(two, loop, store, tmp_path):
    store = LocalStore(Path(shutil.copytree(store.root, tmp_path / "store")))
    lose_model(store, two.champion.candidate)
    assert verdict(loop, store, tmp_path / "s", two)[1].decision == "hold"
    lose_model(store, two.challenger.candidate)
    with pytest.raises(BlobLost):
        verdict(loop, store, tmp_path / "s", two)


def test_the_anchor_is_asked_too_unless_it_is_the_champion(two, loop, store, tmp_path, table):
    anchor = contestant(loop, store, tmp_path / "c", table, trained_as_of=EARLIER - timedelta(days=7))
    gone = replace(anchor, features=None, fault="gone")
    _, found = verdict(loop, store, tmp_path / "s", replace(two, anchor=anchor))
    assert [c.name for c in found.criteria if c.name == "anchor"] == ["anchor"]
    assert "anchor" in found.metrics
    _, same = verdict(loop, store, tmp_path / "s", replace(two, anchor=two.champion))
    assert [c.name for c in same.criteria if c.name == "anchor"] == []
    _, held = verdict(loop, store, tmp_path / "s", replace(two, anchor=gone))
    assert "gone" in next(c.words for c in held.criteria if c.name == "anchor")
    assert held.decision in ("hold", "keep")


def test_rows_without_a_value_are_a_slice_of_their_own(loop, store, tmp_path, table):
    origin = pc.if_else(pc.equal(table["origin"], "LGA"), None, table["origin"])
    gaps = table.set_column(table.column_names.index("origin"), "origin", origin)
    challenger = contestant(loop, store, tmp_path / "a", gaps)
    champion = contestant(loop, store, tmp_path / "b", gaps, trained_as_of=EARLIER)
    _, found = verdict(loop, store, tmp_path / "s", Contest(challenger, champion, None))
    assert "slice:origin=(none)" in {c.name for c in found.criteria}


def test_a_slice_that_is_no_column_is_an_error_with_the_field(two, loop, store, tmp_path):
    wrong = with_gate(loop, **{**GATE, "slices": ["carrier"]})
    contest = Contest(two.challenger, None, None)
    with pytest.raises(SpecError, match=r"gate\.slices.*'carrier'.*origin"):
        verdict(wrong, store, tmp_path / "s", contest)


def test_a_metric_that_the_task_lacks_is_an_error_with_the_field(two, loop, store, tmp_path):
    wrong = with_gate(loop, guard={"r2": 0}, floor={"rmse": 1}, loss="squared_error")
    with pytest.raises(SpecError) as caught:
        verdict(wrong, store, tmp_path / "s", Contest(two.challenger, None, None))
    assert len(caught.value.faults) == 3


def test_budgets_are_measured_and_the_latency_is_a_note_only(two, loop, store, tmp_path):
    tight = with_gate(loop, **GATE, latency_ms=1000, size_mb=0.000001)
    outcome, found = verdict(tight, store, tmp_path / "s", two)
    status = {c.name: c.status for c in found.criteria}
    assert (status["latency"], status["size"]) == ("passed", "failed")
    assert 0 < found.notes["latency_ms"] < 1000
    assert str(found.notes["latency_ms"]) not in str(outcome.results)


@pytest.mark.parametrize(("name", "task"), [("iris", "multiclass"), ("diabetes", "regression")])
def test_multiclass_and_regression_are_judged_by_the_same_gate(store, tmp_path, name, task):
    table, columns, classes = dataset_rows(name)
    as_of = table["event_time"][-1].as_py().astimezone(UTC) + timedelta(minutes=30)
    base = make_loop(
        tmp_path / "loop", data={"holdout": "40h"}, task=task, params={"max_depth": 2}, rounds=10
    )
    gate = {"block": "2h", "suspicious": 9}
    loop = with_gate(base, **gate, floor={"accuracy": 0.6} if classes else {"r2": 0.05})
    challenger = contestant(loop, store, tmp_path / "a", table, as_of=as_of, columns=columns)
    _, first = verdict(loop, store, tmp_path / "s", Contest(challenger, None, None), as_of)
    assert (first.decision, first.holdout.blocks) == ("promote", 21)
    assert first.holdout.positives is None
    poor = base.model_copy(update={"train": base.train.model_copy(update={"rounds": 1})})
    champion = contestant(with_gate(poor, **gate), store, tmp_path / "b", table, as_of=as_of, columns=columns)
    contest = Contest(challenger, champion, None)
    _, better = verdict(loop, store, tmp_path / "s", contest, as_of)
    assert (better.decision, better.mode) == ("promote", "superiority")
    _, worse = verdict(loop, store, tmp_path / "s", Contest(champion, challenger, None), as_of)
    assert worse.decision == "keep"


def test_the_key_knows_all_that_can_change_the_verdict_and_nothing_else(two, loop, store, tmp_path, table):
    context = make_context(loop, store, tmp_path / "s")
    base = key(context, two)
    assert key(replace(context, loop=loop.model_copy(update={"approval": "manual"})), two) == base
    features = put_features(store, table.slice(0, 2900))
    others = [
        key(replace(context, as_of=AS_OF - timedelta(days=1)), two),
        key(replace(context, loop=with_gate(loop, margin=0.1)), two),
        key(context, replace(two, looks=1)),
        key(context, replace(two, champion=None)),
        key(context, replace(two, anchor=two.champion)),
        key(context, replace(two, champion=replace(two.champion, features=features))),
        key(context, replace(two, challenger=two.champion)),
    ]
    assert all(other != base for other in others)


def test_the_key_imports_nothing_heavy():
    heavy = "numpy pandas pyarrow scipy sklearn xgboost duckdb mlflow"
    code = f"import sys, treadle.stages.evaluate; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
