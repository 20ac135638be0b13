"""The harm guard's rates: seldom a false alarm, and plain harm is seen."""

import numpy as np
from treadle.gate.slices import Grouping, harm_criteria
from treadle.spec import Gate

GROUPS = 12


def trial(seed: int, harm: float = 0.0) -> list[str]:
    """The groups that fail among twelve, the first of which is harmed."""
    rng = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(28), 200)
    codes = rng.integers(0, GROUPS, len(blocks))
    differences = rng.normal(0, 0.3, len(blocks)) + 0.02 * rng.normal(0, 1, (28, GROUPS))[blocks, codes]
    differences[codes == 0] += harm
    names = tuple(f"g{number}" for number in range(GROUPS))
    found = harm_criteria(
        differences, blocks, {"group": Grouping(codes, names)}, Gate(slice_limit=9), family="slice"
    )
    return [criterion.name for criterion in found if criterion.status == "failed"]


def test_twelve_unharmed_groups_seldom_raise_an_alarm() -> None:
    assert np.mean([bool(trial(seed)) for seed in range(200)]) <= 0.10


def test_plain_harm_to_one_group_is_found() -> None:
    found = [trial(seed, harm=0.08) for seed in range(50)]
    assert np.mean(["slice:group=g0" in names for names in found]) >= 0.9


def test_the_effect_limit_catches_what_the_correction_lets_pass() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(14), 40 * GROUPS)
    codes = np.tile(np.arange(GROUPS), 14 * 40)
    differences = rng.normal(0, 0.02, len(blocks)) + 0.075 * rng.normal(0, 1, 14)[blocks] * (codes == 0)
    differences[codes == 0] += 0.045
    groups = {"group": Grouping(codes, tuple(f"g{number}" for number in range(GROUPS)))}
    status = {}
    for limit in (0.02, 9):
        found = harm_criteria(differences, blocks, groups, Gate(slice_limit=limit), family="slice")
        status[limit] = {criterion.name: criterion.status for criterion in found}["slice:group=g0"]
    assert status == {0.02: "failed", 9: "passed"}
