"""Which model answers a request, and how a new one takes over between two requests.

A request takes one variant and keeps it to its end, so a swap never mixes models within an answer.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from treadle.models.predictor import Predictor
from treadle.models.schema import Feature
from treadle.serving.encode import RequestEncoder

INLINE_SECONDS = 0.005  # a model slower than this for one row would hold up every other connection
_PROBE_ROWS = 16


class OnlineFeatures(Protocol):
    """Looks up features for requests that name entities only."""

    def columns_for(
        self, rows: Sequence[Mapping[str, Any]], at: datetime | None
    ) -> Mapping[str, Sequence[Any]]:
        """The model's features by name, one value a row, in the order of `rows`.

        Raises:
            TreadleError: A value is absent or too old, a join key is missing, or the store does not answer. One
                that has `code`, `problem`, `field` and `row` (see RowRefused) is answered with them.
        """
        ...

    def warm(self) -> None:
        """Does beforehand what the first request would have to wait for.

        Raises:
            TreadleError: It can't, yet; requests that need it try again.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A model that can answer, made by `make_variant`.

    Attributes:
        candidate: The digest of the candidate.
        version: The sequence of the log's entry that put it there: it only grows.
        weight: Its share of the traffic, relative to the others'.
        joins: Whether rows predicted together come out bit-equal to rows predicted alone.
        inline: Whether it is quick enough to predict on the event loop.
        device: What it computes on.
    """

    predictor: Predictor
    candidate: str
    version: int
    encoder: RequestEncoder
    online: OnlineFeatures | None = None
    weight: float = 1.0
    joins: bool = False
    inline: bool = False
    device: str = "cpu"

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions in double precision: (n_rows,), or (n_rows, n_classes) for several classes."""
        return np.asarray(self.predictor.predict(matrix), dtype=np.float64)


def make_variant(
    predictor: Predictor,
    candidate: str,
    version: int,
    *,
    online: OnlineFeatures | None = None,
    weight: float = 1.0,
    device: str = "cpu",
) -> Variant:
    """A variant, warmed by predictions that also tell whether requests may be joined and answered inline.

    Raises:
        Exception: Whatever the model raises when it can't predict at all.
    """
    encoder = RequestEncoder(predictor.schema.features)
    rows = _probe_rows(predictor.schema.features)
    variant = Variant(predictor, candidate, version, encoder, online, weight)
    alone, seconds = [], []
    for at in range(_PROBE_ROWS):
        started = time.perf_counter()
        alone.append(variant.predict(rows[at : at + 1]))
        seconds.append(time.perf_counter() - started)
    inline = min(seconds) < INLINE_SECONDS
    joins = inline and np.array_equal(variant.predict(rows), np.concatenate(alone), equal_nan=True)
    return Variant(predictor, candidate, version, encoder, online, weight, joins, inline, device)


def _probe_rows(features: Sequence[Feature]) -> NDArray[np.float64]:
    """Rows of plausible values without gaps, since not every model takes missing values."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(_PROBE_ROWS, len(features)))
    for j, feature in enumerate(features):
        if feature.kind != "number":
            codes = 2 if feature.kind == "boolean" else max(len(feature.categories), 1)
            rows[:, j] = random.integers(codes, size=_PROBE_ROWS)
    return rows


class Router:
    """Holds what serves. Reading and replacing it are single assignments, so no request sees half a swap."""

    def __init__(self, name: str, *variants: Variant) -> None:
        self.name = name
        self.swaps = 0
        self.trouble = ""
        self._serving = variants

    @property
    def serving(self) -> tuple[Variant, ...]:
        """The variants that answer now; empty while there is no champion."""
        return self._serving

    def swap(self, *variants: Variant) -> None:
        """From the next request on, these answer."""
        self._serving = variants
        self.swaps += 1

    def route(self, key: str) -> Variant | None:
        """The variant for a request: the same for the same key as long as the same variants serve."""
        serving = self._serving
        if len(serving) <= 1:
            return serving[0] if serving else None
        point = zlib.crc32(key.encode()) / 2**32 * sum(variant.weight for variant in serving)
        for variant in serving:
            point -= variant.weight
            if point < 0:
                return variant
        return serving[-1]


@dataclass(frozen=True, slots=True)
class Desired:
    """The model that should serve. `fallback` serves while nothing does and this one can't be had."""

    version: int
    candidate: str
    details: Mapping[str, Any] = field(default_factory=dict)
    fallback: Desired | None = None


class Follower:
    """Keeps a router at what is desired, from a thread: looks, loads, warms, swaps.

    While something fails, what serves goes on serving, `router.trouble` says why, and the pauses grow.

    Args:
        desired: What should serve now; None when nothing should.
        load: Loads and warms a desired model.
        every_s: Seconds between looks.
        say: Takes one line for each swap and each new trouble.
        nothing: Says why nothing is desired, and what to do; asked once each time that this comes about.
    """

    LONGEST_S = 30.0

    def __init__(
        self,
        router: Router,
        desired: Callable[[], Desired | None],
        load: Callable[[Desired], Variant],
        *,
        every_s: float = 0.25,
        say: Callable[[str], None] = lambda line: None,
        nothing: Callable[[], str] = lambda: "the release log names no champion",
    ) -> None:
        self._router, self._desired, self._load = router, desired, load
        self._every_s, self._say, self._nothing = every_s, say, nothing
        self._is_waiting = False
        self.failures = 0
        self._in_a_row = 0
        self._retry_at = 0.0
        self._failed: tuple[int, str] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="treadle-follow", daemon=True)

    def start(self) -> None:
        """Begins to follow; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stops following; what serves stays."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _follow(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self._every_s):
                return

    def look(self) -> None:
        """One look: nothing happens when what is desired serves, or failed lately."""
        try:
            desired = self._desired()
        except Exception as error:
            if time.monotonic() >= self._retry_at:
                self._failed = None
                self._note_failure(f"the release log can't be read: {error}")
            return
        serving = self._router.serving
        now = (serving[0].version, serving[0].candidate) if serving else None
        wanted = (desired.version, desired.candidate) if desired else None
        if desired is None:
            self._wait()
        elif now == wanted:
            self._well()
        elif wanted != self._failed or time.monotonic() >= self._retry_at:
            if wanted != self._failed:
                self._in_a_row = 0
            self._replace(desired)

    def _wait(self) -> None:
        """Nothing should serve, for now."""
        if self._router.serving:
            self._router.swap()
        elif self._is_waiting:
            return
        self._well()
        try:
            why = self._nothing()
        except Exception as error:
            why = f"why the release log names no champion can't be found out: {error}"
        self._is_waiting, self._router.trouble = True, why
        self._say(f"nothing serves: {why}")

    def _replace(self, desired: Desired) -> None:
        try:
            variant = self._load(desired)
        except Exception as error:
            self._failed = (desired.version, desired.candidate)
            model = f"model {desired.candidate[:12]} of log entry {desired.version}"
            self._note_failure(f"{model} can't be loaded: {type(error).__name__}: {error}")
            if not self._router.serving and desired.fallback is not None:
                self._serve_instead(desired.fallback)
            return
        self._router.swap(variant)
        self._say(f"serving model {desired.candidate[:12]} of log entry {desired.version}")
        self._well()

    def _serve_instead(self, fallback: Desired) -> None:
        try:
            self._router.swap(self._load(fallback))
        except Exception as error:
            self._say(f"its predecessor {fallback.candidate[:12]} can't be loaded either: {error}")
        else:
            self._say(f"serving its predecessor {fallback.candidate[:12]} of log entry {fallback.version}")

    def _note_failure(self, trouble: str) -> None:
        self.failures += 1
        self._is_waiting = False
        pause = min(self._every_s * 2**self._in_a_row, self.LONGEST_S)
        self._in_a_row = min(self._in_a_row + 1, 20)
        self._retry_at = time.monotonic() + pause
        if trouble != self._router.trouble:
            self._router.trouble = trouble
            self._say(f"{trouble} (what served goes on serving; trying again)")

    def _well(self) -> None:
        self._is_waiting = False
        self._router.trouble, self._failed, self._in_a_row, self._retry_at = "", None, 0, 0.0
