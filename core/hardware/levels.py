"""How far each kind of pool was verified, by backend. docs/hardware.md shows the same table with what was run."""

from __future__ import annotations

from typing import Literal

from treadle.hardware.pools import Kind, Pool

Level = Literal["rendered and schema-checked", "run on an emulation", "run on hardware"]
RENDERED: Level = "rendered and schema-checked"
EMULATED: Level = "run on an emulation"
RUN: Level = "run on hardware"

LEVELS: dict[tuple[str, Kind], Level] = {
    ("local", "cpu"): RUN,
    ("local", "gpu"): RENDERED,
    ("local", "trainium"): RENDERED,
    ("local", "inferentia"): RENDERED,
    ("ray", "cpu"): RUN,
    ("ray", "gpu"): RENDERED,
    ("ray", "trainium"): RENDERED,
    ("ray", "inferentia"): RENDERED,
    ("kubernetes", "cpu"): EMULATED,
    ("kubernetes", "gpu"): RENDERED,
    ("kubernetes", "trainium"): RENDERED,
    ("kubernetes", "inferentia"): RENDERED,
    ("sagemaker", "cpu"): EMULATED,
    ("sagemaker", "gpu"): RENDERED,
    ("sagemaker", "trainium"): RENDERED,
    ("sagemaker", "inferentia"): RENDERED,
}


def level_of(pool: Pool) -> str:
    """How far treadle's own tests went with a pool's backend and kind of accelerator, in words."""
    return LEVELS.get((pool.backend, pool.kind), "a backend of your own: run its suite")
