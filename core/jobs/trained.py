"""What a training says of itself beyond its model: its losses by round, how much work it was, and earlier ones' use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from treadle.commit import find_record
from treadle.errors import TreadleError
from treadle.jobs.file import JobFile, newest_attempt, read_job, read_result
from treadle.jobs.measure import Use
from treadle.records import Candidate
from treadle.stages import Outcome
from treadle.store import Store

ROUNDS = "rounds.json"
# How many earlier trainings are looked at: each costs four reads of the store.
_MOST = 20


def history_of(outcome: Outcome) -> Mapping[str, Sequence[float]]:
    """Metric to its values by round, as a training reported them; empty for other stages."""
    content = outcome.files.get(ROUNDS)
    found = json.loads(content) if isinstance(content, bytes) else {}
    return found if isinstance(found, dict) else {}


def work_of(outcome: Outcome) -> float | None:
    """Rows times rounds that this very training did; None where its flavour reports no rounds."""
    rows, rounds = outcome.results.get("rows"), outcome.notes.get("rounds_trained")
    return float(rows * rounds) if rows and rounds else None


def earlier_uses(store: Store, file: JobFile, flavour: str) -> Iterator[tuple[str, Use]]:
    """Name and use of the newest other trainings of the same loop, track, flavour and kind of device."""
    for key in _trainings(store, file)[-_MOST:]:
        try:
            number = newest_attempt(store, file.loop, key)
            other = read_job(store, file.loop, key, number) if number else None
            result = read_result(store, file.loop, key, number)
            if other is None or result is None or result.use is None or result.record is None:
                continue
            made = find_record(store, Candidate, file.loop, result.record["id"])
        except TreadleError:  # written by another version
            continue
        same_device = other.pool.accelerator == file.pool.accelerator
        if same_device and made is not None and made.flavour == flavour:
            yield other.name, result.use


def _trainings(store: Store, file: JobFile) -> list[str]:
    """The keys of the loop's other trainings on the track, the oldest `as_of` first."""
    found = []
    for name in store.list(f"jobs/{file.loop}"):
        key = name.removesuffix(".json")
        try:
            told = json.loads(store.read(f"jobs/{file.loop}/{name}"))
        except (FileNotFoundError, ValueError):
            continue
        if key != file.key and (told.get("stage"), told.get("track")) == (file.stage, file.track):
            found.append((str(told.get("as_of")), key))
    return [key for _, key in sorted(found)]
