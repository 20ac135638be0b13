from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from treadle.data.digests import column_digest

NOW = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, None, 3]), pa.array([1.0, None, 3.0])),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.int64())),
        (pa.array([0.0, 1.0]), pa.array([-0.0, 1.0])),
        (pa.array([float("nan"), 1.0]), pa.array([None, 1.0])),
        (pa.array(["a", None]), pa.array(["a", None]).dictionary_encode()),
        (pa.array(["x", "a", "b"]).slice(1), pa.array(["a", "b"], pa.large_string())),
        (pa.array([NOW], pa.timestamp("s", "UTC")), pa.array([NOW], pa.timestamp("us", "UTC"))),
        (pa.array([None, None], pa.string()), pa.array([None, None], pa.float64())),
        (pa.chunked_array([[1], [2, 3]]), pa.chunked_array([[1, 2, 3]])),
    ],
    ids=["int-float", "width", "zero", "nan", "dictionary", "slice", "unit", "empty", "chunks"],
)
def test_equal_values_have_one_digest(one: pa.Array, other: pa.Array) -> None:
    assert column_digest(one) == column_digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, 2]), pa.array([2, 1])),
        (pa.array([0, 1]), pa.array([None, 1])),
        (pa.array(["ab", "c"]), pa.array(["a", "bc"])),
        (pa.array(["", "a"]), pa.array([None, "a"])),
        (pa.array([True, False]), pa.array([1, 0])),
        (pa.array([2**60]), pa.array([2**60 + 1])),
        (pa.array([None]), pa.array([None, None])),
    ],
    ids=["order", "null", "bounds", "blank", "kind", "large", "length"],
)
def test_different_values_have_different_digests(one: pa.Array, other: pa.Array) -> None:
    assert column_digest(one) != column_digest(other)
