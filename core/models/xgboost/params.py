"""Which of xgboost's parameters a loop may set, so that a typo is refused before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from treadle import spec
from treadle.words import sentence

OBJECTIVES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "binary": ("binary:logistic",),
        "multiclass": ("multi:softprob",),
        "regression": (
            "reg:squarederror",
            "reg:absoluteerror",
            "reg:pseudohubererror",
            "reg:squaredlogerror",
            "reg:gamma",
            "reg:tweedie",
            "count:poisson",
        ),
    }
)

# Why each is refused: treadle decides it, or it would break a promise.
OWNED: Mapping[str, str] = MappingProxyType(
    {
        "callbacks": "treadle watches training itself",
        "device": "the pool decides where training runs",
        "disable_default_eval_metric": "early stopping needs the objective's own loss",
        "early_stopping_rounds": "it is train.early_stopping",
        "enable_categorical": "categories are always taken natively",
        "eval_metric": "early stopping goes by the objective's own loss; the gate has the other metrics",
        "missing": "missing values are always taken natively",
        "n_estimators": "it is train.rounds",
        "n_jobs": "it is train.threads",
        "nthread": "it is train.threads",
        "num_boost_round": "it is train.rounds",
        "num_class": "the labels decide it",
        "process_type": "an updated model would not be one that was trained here",
        "random_state": "it is train.seed",
        "refresh_leaf": "an updated model would not be one that was trained here",
        "seed": "it is train.seed",
        "seed_per_iteration": "treadle seeds each stretch of rounds, so that a resumed run ends the same",
        "tree_method": "treadle uses hist, which is the same for any number of threads",
        "updater": "treadle uses hist, which is the same for any number of threads",
        "validate_parameters": "treadle validates them",
        "verbosity": "treadle shows progress itself",
    }
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`; without `low` itself where `above` is true."""

    low: float | None = None
    high: float | None = None
    whole: bool = False
    above: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        wanted = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'at least'} {self.low:g}" if self.low is not None else ""
        high = f"at most {self.high:g}" if self.high is not None else ""
        limits = " and ".join(part for part in (low, high) if part)
        right = (
            isinstance(value, int if self.whole else (int, float))
            and not isinstance(value, bool)
            and value == value
            and (self.low is None or (value > self.low if self.above else value >= self.low))
            and (self.high is None or value <= self.high)
        )
        return None if right else f"must be {wanted}{' ' + limits if limits else ''}, not {value!r}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        return None if value in self.words else f"must be one of {', '.join(self.words)}, not {value!r}"


@dataclass(frozen=True, slots=True)
class Shape:
    """A value of a nested shape, said in words."""

    words: str
    fits: Callable[[Any], bool]

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        return None if self.fits(value) else f"must be {self.words}, not {value!r}"


def _directions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(s) is int and -1 <= s <= 1 for s in value.values())


def _groups(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(group, (list, tuple)) and all(isinstance(name, str) for name in group) for group in value
    )


_FRACTION = Number(0, 1, above=True)
_SHARE = Number(0, 1)
_POSITIVE = Number(0)

KNOWN: Mapping[str, Number | OneOf | Shape] = MappingProxyType(
    {
        "alpha": _POSITIVE,
        "base_score": Number(),
        "booster": OneOf(("gbtree", "dart")),
        "colsample_bylevel": _FRACTION,
        "colsample_bynode": _FRACTION,
        "colsample_bytree": _FRACTION,
        "eta": _POSITIVE,
        "gamma": _POSITIVE,
        "grow_policy": OneOf(("depthwise", "lossguide")),
        "huber_slope": Number(0, above=True),
        "interaction_constraints": Shape("a list of lists of feature names", _groups),
        "lambda": _POSITIVE,
        "learning_rate": _POSITIVE,
        "max_bin": Number(2, whole=True),
        "max_cat_threshold": Number(1, whole=True),
        "max_cat_to_onehot": Number(1, whole=True),
        "max_delta_step": _POSITIVE,
        "max_depth": Number(0, whole=True),
        "max_leaves": Number(0, whole=True),
        "min_child_weight": _POSITIVE,
        "min_split_loss": _POSITIVE,
        "monotone_constraints": Shape("a mapping from feature name to -1, 0 or 1", _directions),
        "normalize_type": OneOf(("tree", "forest")),
        "num_parallel_tree": Number(1, whole=True),
        "objective": OneOf(tuple(name for names in OBJECTIVES.values() for name in names)),
        "one_drop": Number(0, 1, whole=True),
        "rate_drop": _SHARE,
        "reg_alpha": _POSITIVE,
        "reg_lambda": _POSITIVE,
        "sample_type": OneOf(("uniform", "weighted")),
        "scale_pos_weight": Number(0, above=True),
        "skip_drop": _SHARE,
        "subsample": _FRACTION,
        "tweedie_variance_power": Number(1, 2, above=True),
    }
)

_SAME = (
    ("alpha", "reg_alpha"),
    ("eta", "learning_rate"),
    ("gamma", "min_split_loss"),
    ("lambda", "reg_lambda"),
)
_ONLY_DART = frozenset({"normalize_type", "one_drop", "rate_drop", "sample_type", "skip_drop"})


def problems(train: spec.Train) -> list[str]:
    """What is wrong with a train section for xgboost, each as `field: problem`."""
    params = train.params
    faults = [(name, _problem(name, value)) for name, value in params.items()]
    found = [f"params.{name}: {sentence(problem)}" for name, problem in faults if problem]
    for first, second in _SAME:
        if first in params and second in params:
            found.append(f"params.{second}: is the same as {first}; give one of them.")
    objective = params.get("objective")
    if objective not in (None, *OBJECTIVES[train.task]) and KNOWN["objective"].problem(objective) is None:
        fitting = ", ".join(OBJECTIVES[train.task])
        found.append(f"params.objective: {objective!r} is not for the task {train.task}; {fitting} is.")
    if params.get("booster") == "dart":
        if train.early_stopping:
            found.append("early_stopping: dart changes earlier trees, so there is no going back to a round.")
    else:
        found += [f"params.{name}: only counts with booster: dart." for name in params if name in _ONLY_DART]
    if train.seed < 0:
        found.append("seed: xgboost takes no negative seed.")
    if train.hook:
        found.append("hook: xgboost takes no hook; the flavour estimator does.")
    if train.init_from:
        found.append(
            "init_from: xgboost starts from nothing, as trees are added and not tuned; torch takes weights."
        )
    if train.trust != "none":
        found.append("trust: xgboost's models need none; remove it.")
    return found


def _problem(name: str, value: Any) -> str | None:
    if name in OWNED:
        return f"is not for the loop to set: {OWNED[name]}"
    if name not in KNOWN:
        near = get_close_matches(name, [*KNOWN, *OWNED], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(KNOWN)}"
        return f"xgboost has no such parameter{hint}"
    return KNOWN[name].problem(value)


def by_position(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parameters with constraints on named features turned into xgboost's positions.

    Raises:
        ValueError: A constraint names a feature that the model does not have.
    """
    position = {name: number for number, name in enumerate(names)}
    signs: Mapping[str, int] = params.get("monotone_constraints") or {}
    groups: Sequence[Sequence[str]] = params.get("interaction_constraints") or ()
    absent = sorted({name for group in [signs, *groups] for name in group if name not in position})
    if absent:
        raise ValueError(f"train.params constrains {', '.join(absent)}; the features are: {', '.join(names)}")
    result = dict(params)
    if signs:
        result["monotone_constraints"] = f"({','.join(str(signs.get(name, 0)) for name in names)})"
    if groups:
        result["interaction_constraints"] = str([[position[name] for name in group] for group in groups])
    return result
