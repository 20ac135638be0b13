"""scikit-learn objects in skops' format, which loads without executing code; equal objects give equal bytes.

skops names what it writes by memory address and the time, so its own bytes never come twice.
"""

from __future__ import annotations

import io
import json
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
    "sklearn.utils.validation.check_array",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def dump(estimator: Any) -> bytes:
    """The estimator in skops' format.

    Raises:
        TypeError: It holds something that skops can't write.
    """
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
    """Raises UserError where a histogram tree's indices lead out of the tree, its inputs or its bit sets."""
    for owner, part in _parts(estimator):
        if type(part).__name__ == "TreePredictor" and not _is_sound(
            part, getattr(owner, "n_features_in_", 0)
        ):
            raise UserError("the estimator's file holds a tree that leads nowhere: it was altered")


def _is_sound(tree: Any, features: int) -> bool:
    nodes = tree.nodes
    inner = ~nodes["is_leaf"].astype(bool)
    position, split = inner.nonzero()[0], nodes[inner]
    by_category = split["bitset_idx"][split["is_categorical"].astype(bool)]
    checks = [len(nodes) > 0, (by_category < len(tree.raw_left_cat_bitsets)).all()]
    checks += [
        (split[side] > position).all() and (split[side] < len(nodes)).all() for side in ("left", "right")
    ]
    checks += [(split["feature_idx"] >= 0).all() and (split["feature_idx"] < features).all()]
    return all(checks)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object within an object, with the innermost estimator that holds it."""
    waiting, seen = [(None, value)], set()
    while waiting:
        owner, item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(item))
        yield owner, item
        if hasattr(item, "n_features_in_"):
            owner = item
        if isinstance(item, dict):
            waiting += [(owner, part) for part in item.values()]
        elif isinstance(item, (list, tuple, set)):
            waiting += [(owner, part) for part in item]
        elif getattr(getattr(item, "dtype", None), "kind", "") == "O":
            waiting += [(owner, part) for part in item.ravel()]
        else:
            waiting += [(owner, part) for part in getattr(item, "__dict__", {}).values()]
