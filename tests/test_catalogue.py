"""Prices: the pool's own first, then the user's rows, then the catalogue; nothing is invented."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path

import pytest
from treadle.errors import SpecError, UserError
from treadle.hardware import catalogue
from treadle.hardware.catalogue import COLUMNS, price_of, why_unpriced
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.machines import MACHINES


def pool(**fields: object) -> Pool:
    return Pool.model_validate({"name": "there", **fields})


def test_every_row_is_dated_and_sourced_and_its_accelerator_is_one_that_a_pool_can_name() -> None:
    rows = catalogue.catalogue().values()
    assert len(rows) >= 60
    for row in rows:
        assert date.fromisoformat(row.as_of) <= date.today()
        assert len(row.source) > 20
        assert row.region
        assert (row.vcpu or 0) > 0
        assert (row.memory_gib or 0) > 0
        if row.accelerator:
            named = pool(accelerator=row.accelerator, count=row.count)
            assert named.kind != "cpu"
            assert row.gib_each


def test_the_columns_are_those_that_are_documented() -> None:
    with open(Path(catalogue.__file__).with_name("catalogue.csv"), newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


@pytest.mark.parametrize(
    ("fields", "usd", "holds", "words"),
    [
        ({"price": 0.5, "instance_type": "g6.xlarge"}, 0.5, "exactly", "by the price of the pool"),
        ({"instance_type": "g6.xlarge"}, 0.8048, "exactly", "as of 2026-07-20"),
        ({"instance_type": "g6.xlarge", "region": "us-east-1"}, 0.8048, "exactly", "g6.xlarge"),
        ({"instance_type": "g6.xlarge", "region": "eu-west-1"}, 0.8048, "about", "pool is in eu-west-1"),
        ({"instance_type": "ml.g6.xlarge"}, 0.8048, "at_least", "SageMaker's own is higher"),
        ({"instance_type": "g6.xlarge", "spot": True}, 0.8048, "at_most", "spot is usually cheaper"),
        ({"instance_type": "g6.xlarge", "spot": True, "price": 0.3}, 0.3, "exactly", "price of the pool"),
        ({"instance_type": "ml.g6.xlarge", "spot": True}, 0.8048, "about", "spot is usually cheaper"),
        ({"price": 0}, 0.0, "exactly", "0 USD an hour"),
    ],
)
def test_a_price_says_where_it_is_from_and_how_far_it_holds(
    fields: dict[str, object], usd: float, holds: str, words: str
) -> None:
    found = price_of(pool(**fields))
    assert found is not None
    assert (found.usd_per_hour, found.holds) == (usd, holds)
    assert words in found.words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither price"),
        ({"instance_type": "trn2.48xlarge"}, "without a price"),
        ({"instance_type": "g6.xlrage"}, "did you mean g6."),
    ],
)
def test_a_pool_without_a_price_is_not_priced_and_says_what_to_write(
    fields: dict[str, object], words: str
) -> None:
    assert price_of(pool(**fields)) is None
    assert words in why_unpriced(pool(**fields))


def own(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "prices.csv"
    path.write_text(text)
    monkeypatch.setenv("TREADLE_CATALOGUE", str(path))
    return path


def test_the_users_rows_go_before_the_catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "instance_type,usd_per_hour,as_of,region\n"
    rows = "ml.g6.xlarge,1.1267,2026-11-01,\ng6.xlarge,0.9,2026-11-01,eu-west-1\n"
    path = own(tmp_path, header + rows, monkeypatch)
    sagemaker = price_of(pool(instance_type="ml.g6.xlarge"))
    assert sagemaker is not None
    assert (sagemaker.usd_per_hour, sagemaker.holds) == (1.1267, "exactly")
    there, here = (price_of(pool(instance_type="g6.xlarge", region=name)) for name in ("eu-west-1", None))
    assert there is not None
    assert (there.usd_per_hour, there.holds) == (0.9, "exactly")
    assert here is not None
    path.write_text(header + "g6.xlarge,0.7,2026-11-02,us-east-1\n")
    changed = price_of(pool(instance_type="g6.xlarge"))
    assert changed is not None
    assert changed.usd_per_hour == 0.7


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("instance_type,usd_per_hour\na,1\n", 1, "as_of: this column is required"),
        ("instance_type,usd_per_hour,as_of,currency\n", 1, "currency: there is no such column"),
        ("instance_type,usd_per_hour,as_of\na,1,2026-01-01\nb,-1,2026-01-01\n", 3, "'-1' is no number"),
        ("instance_type,usd_per_hour,as_of\na,1,July\n", 2, "as_of: 'July' is no day"),
        ("instance_type,usd_per_hour,as_of\na,1\n", 2, "not as many values as the header"),
        ("instance_type,usd_per_hour,as_of\n,1,2026-01-01\n", 2, "instance_type: it is empty"),
    ],
)
def test_a_mistake_in_the_users_rows_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, words: str
) -> None:
    path = own(tmp_path, text, monkeypatch)
    with pytest.raises(SpecError) as told:
        price_of(pool(instance_type="g6.xlarge"))
    assert str(told.value).startswith(f"{path}:{line}:")
    assert words in str(told.value)


def test_a_catalogue_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_CATALOGUE", str(tmp_path / "gone.csv"))
    with pytest.raises(UserError, match="which is no file"):
        price_of(pool(instance_type="g6.xlarge"))


def test_every_machine_that_sagemaker_takes_by_itself_is_a_row() -> None:
    known = {row.instance_type: row for row in catalogue.catalogue().values()}
    for machine in MACHINES:
        row = known[machine.name.removeprefix("ml.")]
        assert (row.vcpu, row.memory_gib) == (machine.cpu, machine.memory_gib), machine.name
        assert (row.accelerator, row.count) == (machine.accelerator, machine.count), machine.name
        assert machine.accelerator or row.usd_per_hour, machine.name
