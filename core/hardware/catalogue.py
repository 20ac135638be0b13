"""What machines cost: a small dated catalogue of instance types, the user's own rows before it, a pool's price first.

    pools.yaml `price`  ─►  the CSV of TREADLE_CATALOGUE  ─►  catalogue.csv of this package  ─►  not priced

Prices are in US dollars, for an hour of one machine. Nothing is invented: no discount for spot, no rate of a service
that the catalogue does not list, and no price at all where none is known.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal

from treadle.errors import Fault, SpecError, UserError
from treadle.hardware.pools import Pool
from treadle.words import rate

COLUMNS = (
    *("instance_type", "vcpu", "memory_gib", "accelerator", "count", "gib_each", "cores_each"),
    *("usd_per_hour", "region", "as_of", "source"),
)
_NEEDED = ("instance_type", "usd_per_hour", "as_of")
_NUMBERS = ("vcpu", "memory_gib", "count", "gib_each", "cores_each", "usd_per_hour")
_OWN = Path(__file__).with_name("catalogue.csv")
_SAGEMAKER = "ml."

Holds = Literal["exactly", "about", "at_least", "at_most"]
_PREFIX: dict[Holds, str] = {"exactly": "", "about": "about ", "at_least": "at least ", "at_most": "at most "}


@dataclass(frozen=True, slots=True)
class Instance:
    """A kind of machine.

    Attributes:
        accelerator: As a pool writes it, such as `nvidia-l4`; empty: none.
        count: How many accelerators.
        gib_each: Memory of each accelerator.
        cores_each: NeuronCores of each.
        usd_per_hour: On demand; None: not known.
        as_of: The day of the price, as `2026-07-20`.
    """

    instance_type: str
    vcpu: float | None
    memory_gib: float | None
    accelerator: str
    count: int
    gib_each: float | None
    cores_each: int | None
    usd_per_hour: float | None
    region: str
    as_of: str
    source: str


@dataclass(frozen=True, slots=True)
class Price:
    """What one machine of a pool costs in an hour.

    Attributes:
        holds: Whether the bill is this, about this, or at least or at most this.
        as_of: The day of the price; None for one that the pool names.
        source: Where it stands.
        words: The price with its day and its reservations.
    """

    usd_per_hour: float
    holds: Holds
    as_of: str | None
    source: str
    words: str


def price_of(pool: Pool) -> Price | None:
    """What one machine of a pool costs in an hour; None where that is not known, see `why_unpriced`.

    Raises:
        UserError, SpecError: `TREADLE_CATALOGUE` names no file, or one with a mistake.
    """
    if pool.price is not None:
        words = f"{rate(pool.price)} USD an hour, by the price of the pool"
        return Price(pool.price, "exactly", None, "pools.yaml", words)
    found = _row_of(pool)
    if found is None or found.usd_per_hour is None or pool.instance_type is None:
        return None
    reservations = list(_reservations(pool, found))
    kinds = {kind for kind, _ in reservations}
    holds: Holds = "exactly" if not kinds else kinds.pop() if len(kinds) == 1 else "about"
    words = f"{_PREFIX[holds]}{rate(found.usd_per_hour)} USD an hour for {found.instance_type}, as of {found.as_of}"
    words = "; ".join([words, *(told for _, told in reservations)])
    return Price(found.usd_per_hour, holds, found.as_of, found.source, words)


def _reservations(pool: Pool, found: Instance) -> Iterator[tuple[Holds, str]]:
    """Why the bill may be another than the row says."""
    if found.instance_type != pool.instance_type:
        yield "at_least", "EC2's rate, and SageMaker's own is higher: write price in the pool"
    if pool.region and found.region and pool.region != found.region:
        yield "about", f"the rate of {found.region}, and the pool is in {pool.region}"
    if pool.spot:
        yield "at_most", "on demand, and spot is usually cheaper: write price in the pool"


def why_unpriced(pool: Pool) -> str:
    """Why a pool has no price, and what to write."""
    if pool.instance_type is None:
        return "the pool names neither price (USD an hour) nor instance_type"
    if _row_of(pool) is not None:
        return f"the catalogue knows {pool.instance_type} without a price: write price in the pool"
    near = get_close_matches(pool.instance_type, {name for name, _ in catalogue()}, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the catalogue has no {pool.instance_type}{hint}: write price in the pool, or a row in TREADLE_CATALOGUE"


def _row_of(pool: Pool) -> Instance | None:
    """The row of the pool's machine: of its region, else of any; EC2's row where SageMaker's own is not there."""
    name, rows = pool.instance_type, catalogue()
    for wanted in (name, name.removeprefix(_SAGEMAKER)) if name else ():
        if (wanted, pool.region) in rows:
            return rows[wanted, pool.region or ""]
        if there := [row for (type_, _), row in rows.items() if type_ == wanted]:
            return there[0]
    return None


def catalogue() -> Mapping[tuple[str, str], Instance]:
    """Every known machine by instance type and region; the rows of `TREADLE_CATALOGUE` first.

    Raises:
        UserError, SpecError: See `price_of`.
    """
    named = os.environ.get("TREADLE_CATALOGUE")
    if not named:
        return _read(_OWN, 0)
    path = Path(named).expanduser()
    if not path.is_file():
        raise UserError(f"TREADLE_CATALOGUE names {named}, which is no file. Correct it, or unset it.")
    theirs = _read(path, path.stat().st_mtime_ns)
    return {**theirs, **{key: row for key, row in _read(_OWN, 0).items() if key not in theirs}}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Mapping[tuple[str, str], Instance]:
    """The rows of a file; `changed` is when it was last written, so that another state is read anew."""
    faults: list[Fault] = []
    rows: dict[tuple[str, str], Instance] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        faults += _header_faults(path, reader.fieldnames or ())
        for content in reader if not faults else ():
            wrong = list(_row_faults(path, reader.line_num, content))
            faults += wrong
            if not wrong:
                row = _instance(content)
                rows[row.instance_type, row.region] = row
    if faults:
        raise SpecError(faults)
    return rows


def _header_faults(path: Path, given: Sequence[str]) -> list[Fault]:
    unknown = [name for name in given if name not in COLUMNS]
    missing = [name for name in _NEEDED if name not in given]
    fix = f"Known columns are: {', '.join(COLUMNS)}."
    return [
        *(Fault(str(path), 1, name, "there is no such column in a catalogue.", fix) for name in unknown),
        *(Fault(str(path), 1, name, "this column is required.", "Write it.") for name in missing),
    ]


def _row_faults(path: Path, line: int, row: Mapping[str | None, str | None]) -> Iterator[Fault]:
    if None in row or None in row.values():
        yield Fault(str(path), line, "", "the row has not as many values as the header.", "Count its commas.")
        return
    if not row["instance_type"]:
        yield Fault(str(path), line, "instance_type", "it is empty.", "Write the name of the machine.")
    for name in _NUMBERS:
        text = row.get(name) or "0"
        if not text.replace(".", "", 1).isdigit():
            yield Fault(str(path), line, name, f"{text!r} is no number of 0 or more.")
    try:
        date.fromisoformat(row["as_of"] or "")
    except ValueError:
        yield Fault(str(path), line, "as_of", f"{row['as_of']!r} is no day.", "Write it as 2026-07-20.")


def _instance(row: Mapping[str, str]) -> Instance:
    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    cores = number("cores_each")
    return Instance(
        instance_type=row["instance_type"],
        vcpu=number("vcpu"),
        memory_gib=number("memory_gib"),
        accelerator=row.get("accelerator") or "",
        count=int(number("count") or 0),
        gib_each=number("gib_each"),
        cores_each=None if cores is None else int(cores),
        usd_per_hour=number("usd_per_hour"),
        region=row.get("region") or "",
        as_of=row["as_of"],
        source=row.get("source") or "",
    )
