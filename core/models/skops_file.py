"""scikit-learn objects in skops' format, which loads without executing code; equal objects give equal bytes.

skops names what it writes by memory address and the time, so its own bytes never come twice.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from treadle.errors import MissingPackage, UserError

# Harmless, but not on skops' own list: the trees because scikit-learn follows their indices unchecked, which
# `_check_trees` checks; a partial adds arguments to a function that must be trusted itself.
_REVIEWED = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def dump(estimator: Any) -> bytes:
    """The estimator in skops' format.

    Raises:
        TypeError: It holds something that skops can't write.
    """
    with warnings.catch_warnings():
        # skops looks for functions in every module that is loaded; what these warn of is not about the estimator.
        warnings.simplefilter("ignore")
        data = _skops().dumps(estimator)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        schema = json.loads(archive.read("schema.json"))
        files: dict[str, str] = {}
        _number(schema, {}, files)
        members = {new: archive.read(old) for old, new in files.items()}
    members["schema.json"] = json.dumps(schema).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            archive.writestr(info, content)
    return buffer.getvalue()


def untrusted(data: bytes) -> list[str]:
    """The types in a file that can't be loaded without trust, such as classes of the loop's own."""
    return sorted(set(_skops().get_untrusted_types(data=data)) - set(_REVIEWED))


def load(data: bytes) -> Any:
    """The estimator that `dump` wrote; only types of scikit-learn, NumPy and SciPy that skops trusts.

    Raises:
        UserError: The file is damaged, or holds other types.
    """
    others = _untrusted_or_damaged(data)
    if others:
        raise UserError(
            f"the estimator's file holds {', '.join(others)}, which can't be loaded without executing code"
        )
    try:
        estimator = _skops().loads(data, trusted=list(_REVIEWED))
    except Exception as error:
        raise UserError(f"the estimator's file can't be read: {error}. Fetch it again.") from error
    _check_trees(estimator)
    return estimator


def _untrusted_or_damaged(data: bytes) -> list[str]:
    try:
        return untrusted(data)
    except Exception as error:
        raise UserError(f"the estimator's file is damaged: {error}. Fetch it again.") from error


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise MissingPackage("skops", "save and load estimators", "stages") from error
    return skops.io


def _number(node: Any, numbers: dict[str, int], files: dict[str, str]) -> None:
    """Replaces addresses and file names in a skops schema by running numbers, in the order of appearance."""
    if isinstance(node, list):
        for item in node:
            _number(item, numbers, files)
        return
    if not isinstance(node, dict):
        return
    if "__id__" in node:
        # Python may or may not keep one copy of equal strings and numbers; content tells.
        address = node["content"] if node.get("is_json") else f"@{node['__id__']}"
        node["__id__"] = numbers.setdefault(address, len(numbers) + 1)
    if node.get("__loader__") == "SetNode":
        node["content"].sort(key=lambda item: json.dumps([item.get("__class__"), item.get("content")]))
    if isinstance(node.get("file"), str):
        old = node["file"]
        node["file"] = files.setdefault(old, f"{len(files):05d}.{old.rpartition('.')[2]}")
    for item in list(node.values()):
        _number(item, numbers, files)


def forget_threads(estimator: Any) -> None:
    """Sets the thread count that histogram trees keep from their fit, and never use again, to 1."""
    for _, part in _parts(estimator):
        if type(part).__name__ == "_BinMapper":
            part.n_threads = 1


def _check_trees(estimator: Any) -> None:
    """Raises UserError where a tree's indices lead out of the tree, its inputs or its bit sets."""
    for features, part in _parts(estimator):
        kind = type(part).__name__
        if kind == "TreePredictor":
            nodes, inner = part.nodes, ~part.nodes["is_leaf"].astype(bool)
            split = nodes[inner]
            sides, used = (split["left"], split["right"]), split["feature_idx"]
            by_category = split["bitset_idx"][split["is_categorical"].astype(bool)]
            sound = bool((by_category < len(part.raw_left_cat_bitsets)).all())
        elif kind == "Tree":
            nodes, inner = part.children_left, part.children_left != -1
            sides = (part.children_left[inner], part.children_right[inner])
            used, sound = part.feature[inner], part.n_features <= features
        else:
            continue
        # A node stands before its children, so no walk goes in circles.
        own = inner.nonzero()[0]
        sound = sound and len(nodes) > 0 and all(((side > own) & (side < len(nodes))).all() for side in sides)
        if not sound or not ((used >= 0) & (used < features)).all():
            raise UserError("the estimator's file holds a tree that leads nowhere: it was altered")


def _parts(value: Any) -> Iterator[tuple[int, Any]]:
    """Each object within an object, with how many columns the estimator that holds it is given at least."""
    waiting, seen = [(0, False, value)], set()
    while waiting:
        features, in_ensemble, item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(item))
        yield features, item
        if hasattr(item, "n_features_in_"):
            # An ensemble hands its own rows on to its members unchecked.
            features = min(features, item.n_features_in_) if in_ensemble else item.n_features_in_
            in_ensemble = any(kind.__name__ == "BaseEnsemble" for kind in type(item).__mro__)
        if isinstance(item, dict):
            inner = list(item.values())
        elif isinstance(item, (list, tuple, set)):
            inner = list(item)
        elif getattr(getattr(item, "dtype", None), "kind", "") == "O":
            inner = list(item.ravel())
        else:
            inner = list(getattr(item, "__dict__", {}).values())
        waiting += [(features, in_ensemble, part) for part in inner]
