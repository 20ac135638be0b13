"""The backends by the name that a pool gives: imported on use, so that none costs anything until it is named."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec

from treadle.errors import MissingPackage, UserError
from treadle.hardware.backend import Backend

# Name to class, and the extra of treadle that brings what it needs.
BACKENDS: dict[str, tuple[str, str]] = {
    "local": ("treadle.hardware.local:LocalBackend", ""),
    "ray": ("treadle.hardware.ray.backend:RayBackend", "ray"),
    "kubernetes": ("treadle.hardware.kubernetes.backend:KubernetesBackend", "kubernetes"),
    "sagemaker": ("treadle.hardware.sagemaker.backend:SageMakerBackend", "sagemaker"),
}


# The package by which a backend asks its place; it is imported at the first question.
_ASKS_BY = {"kubernetes": "kubernetes", "sagemaker": "boto3"}
# What people write for a place by its service's name.
_MEANT = {
    "aws": "sagemaker",
    "eks": "kubernetes",
    "gke": "kubernetes",
    "k8s": "kubernetes",
    "kube": "kubernetes",
}


def unknown_backend(name: str) -> str:
    """What is wrong with a name that is neither of `BACKENDS` nor a class as `module:Class`, and what may be meant."""
    module, _, attribute = name.partition(":")
    if name in BACKENDS or (module and attribute):
        return ""
    near = [_MEANT[name]] if name in _MEANT else get_close_matches(name, BACKENDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"there is no backend {name!r}; known are: {', '.join(sorted(BACKENDS))}.{hint}"
        " A class of your own is written module:Class."
    )


def get_backend(name: str) -> Backend:
    """The backend of a name of `BACKENDS`, or of your own class as `module:Class`, made without arguments.

    Raises:
        UserError: No such backend. MissingPackage: What it needs is not installed.
    """
    where, extra = BACKENDS.get(name, (name, ""))
    if problem := unknown_backend(name):
        raise UserError(problem)
    module_name, _, attribute = where.partition(":")
    try:
        made: Backend = getattr(import_module(module_name), attribute)()
    except ImportError as error:
        if extra:
            raise MissingPackage(error.name or extra, f"run jobs on {name}", extra) from error
        raise UserError(f"the backend {name!r} can't be imported: {error}") from error
    except AttributeError:
        raise UserError(f"{module_name} has no backend {attribute!r}") from None
    return made


def refuse_missing_package(name: str) -> None:
    """Nothing, where what a backend needs for its first question is installed; imports nothing.

    Raises:
        MissingPackage: It is not.
    """
    package = _ASKS_BY.get(name)
    if package and find_spec(package) is None:
        raise MissingPackage(package, f"run jobs on {name}", BACKENDS[name][1])
