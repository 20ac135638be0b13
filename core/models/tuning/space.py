"""The space of a search: what may be tried, in Optuna's terms, and what a flavour says of its edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from treadle import spec

if TYPE_CHECKING:
    from treadle.models.predictor import Flavour

_COMBINATIONS = 256


def distributions(space: Mapping[str, spec.Dimension]) -> dict[str, Any]:
    """Optuna's distribution of each parameter, in order of names; choices by their position, whatever they are."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, dimension in sorted(space.items()):
        if dimension.choices is not None:
            found[name] = CategoricalDistribution(range(len(dimension.choices)))
            continue
        assert dimension.low is not None
        assert dimension.high is not None
        if dimension.int_:
            found[name] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            found[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return found


def params_of(space: Mapping[str, spec.Dimension], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna asked for as the flavour's parameters."""
    return {
        name: asked[name] if dimension.choices is None else dimension.choices[asked[name]]
        for name, dimension in sorted(space.items())
    }


def trial_spec(train: spec.Train, params: Mapping[str, Any]) -> spec.Train:
    """The train section with these of the search's parameters, and without the search."""
    return train.model_copy(update={"params": {**train.params, **params}, "tune": None})


def search_problems(train: spec.Train, flavour: Flavour) -> list[str]:
    """What is wrong with `train.tune`, each as `field: problem`, the field within `train`.

    The flavour is asked about the edges of the space. A parameter that only counts beside one choice of another
    is right if there is such a choice.
    """
    tune = train.tune
    if tune is None:
        return []
    found = [
        f"tune.space.{name}: is in train.params as well; give it in one of the two."
        for name in tune.space
        if name in train.params
    ]
    if tune.newest is not None and train.early_stopping is not None:
        found.append("tune.newest: the rows that judge are early_stopping.newest; remove one of the two.")
    return [*found, *_edge_problems(train, tune, flavour)]


def _edge_problems(train: spec.Train, tune: spec.Tune, flavour: Flavour) -> list[str]:
    known = set(flavour.problems(trial_spec(train, {})))
    # How often a value of a parameter was tried, and how often each problem with it came up.
    tried: defaultdict[tuple[str, str], int] = defaultdict(int)
    told: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    elsewhere: dict[str, str] = {}
    for params in islice(_edges(tune.space), _COMBINATIONS):
        for name, value in params.items():
            tried[name, repr(value)] += 1
        for problem in flavour.problems(trial_spec(train, params)):
            field, _, words = problem.partition(": ")
            name = field.removeprefix("params.").partition(".")[0]
            if field.startswith("params.") and name in params:
                told[name, repr(params[name])].append(words)
            elif problem not in known:
                elsewhere.setdefault(problem, f"tune.space: with {_listed(params)}, {field}: {words}")
    found: dict[str, str] = {}
    for (name, value), all_words in told.items():
        if len(all_words) == tried[name, value]:
            found.setdefault(name, f"tune.space.{name}: {all_words[0]}")
    return [*found.values(), *elsewhere.values()]


def _edges(space: Mapping[str, spec.Dimension]) -> Iterator[dict[str, Any]]:
    """All choices with all numbers at their low ends, then at their high ends."""
    choices = {name: d.choices for name, d in sorted(space.items()) if d.choices is not None}
    numbers = {name: d for name, d in sorted(space.items()) if d.choices is None}
    for picked in product(*choices.values()):
        for end in ("low", "high"):
            at_end = {
                name: int(getattr(d, end)) if d.int_ else getattr(d, end) for name, d in numbers.items()
            }
            yield {**dict(zip(choices, picked, strict=True)), **at_end}


def _listed(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in params.items())
