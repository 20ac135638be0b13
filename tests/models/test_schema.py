from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle.errors import UserError
from treadle.models.schema import Feature, InputSchema
from treadle.records import Column

SCHEMA = InputSchema(
    (
        Feature("wind", "number"),
        Feature("weekend", "boolean"),
        Feature("origin", "category", ("EWR", "JFK", "LGA")),
    )
)
NAN = np.nan


def test_levels_are_learned_sorted_and_without_missing():
    table = pa.table({"origin": ["LGA", None, "EWR", "LGA"], "wind": [1, 2, 3, 4]})
    columns = [Column(name="wind", type="number"), Column(name="origin", type="category")]
    learned = InputSchema.learn(table, columns)
    assert learned.names == ("wind", "origin")
    assert learned.features[1].categories == ("EWR", "LGA")


@pytest.mark.parametrize(
    "rows",
    [
        {"wind": [1.5, None, 3], "weekend": [True, None, False], "origin": ["LGA", None, "BOS"]},
        {
            "wind": np.array([1.5, NAN, 3]),
            "weekend": np.array([1, NAN, 0]),
            "origin": np.array(["LGA", None, "BOS"], dtype=object),
        },
        pa.table(
            {
                "more": [1, 2, 3],
                "wind": pa.chunked_array([[1.5, None], [3.0]]),
                "weekend": [True, None, False],
                "origin": pa.array(["LGA", None, "BOS"]).dictionary_encode(),
            }
        ),
    ],
    ids=["lists", "arrays", "table"],
)
def test_missing_and_unseen_become_nan_whatever_holds_the_rows(rows):
    wanted = [[1.5, 1, 2], [NAN, NAN, NAN], [3, 0, NAN]]
    encoded = SCHEMA.encode(rows)
    assert np.array_equal(encoded, wanted, equal_nan=True)
    assert encoded.dtype == np.float64
    assert encoded.flags.c_contiguous


def test_absent_mistyped_and_uneven_columns_are_refused_by_name():
    with pytest.raises(UserError, match="origin"):
        SCHEMA.encode({"wind": [1.0], "weekend": [True]})
    with pytest.raises(UserError, match="the column wind must hold a number"):
        SCHEMA.encode({"wind": ["strong"], "weekend": [True], "origin": ["JFK"]})
    with pytest.raises(UserError, match="different lengths: wind 2"):
        SCHEMA.encode({"wind": [1.0, 2.0], "weekend": [True], "origin": ["JFK"]})


def test_a_column_of_nothing_but_missing_values_is_fine():
    rows = {"wind": [None, None], "weekend": [None, None], "origin": [None, None]}
    assert np.isnan(SCHEMA.encode(rows)).all()


def test_json_brings_the_schema_back():
    assert InputSchema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA


@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "ü", ""])), min_size=1))
def test_a_level_is_its_position_among_the_sorted_levels(values):
    table = pa.table({"c": pa.array(values, type=pa.string())})
    schema = InputSchema.learn(table, [Column(name="c", type="category")])
    levels = sorted({value for value in values if value is not None})
    wanted = [NAN if value is None else levels.index(value) for value in values]
    assert np.array_equal(schema.encode(table)[:, 0], wanted, equal_nan=True)
