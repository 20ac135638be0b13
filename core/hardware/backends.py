"""The backends by the name that a pool gives: imported on use, so that none costs anything until it is named."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from treadle.errors import MissingPackage, UserError
from treadle.hardware.backend import Backend

# Name to class, and the extra of treadle that brings what it needs.
BACKENDS: dict[str, tuple[str, str]] = {
    "local": ("treadle.hardware.local:LocalBackend", ""),
    "ray": ("treadle.hardware.ray.backend:RayBackend", "ray"),
    "kubernetes": ("treadle.hardware.kubernetes.backend:KubernetesBackend", "kubernetes"),
    "sagemaker": ("treadle.hardware.sagemaker.backend:SageMakerBackend", "sagemaker"),
}


def get_backend(name: str) -> Backend:
    """The backend of a name of `BACKENDS`, or of your own class as `module:Class`, made without arguments.

    Raises:
        UserError: No such backend. MissingPackage: What it needs is not installed.
    """
    where, extra = BACKENDS.get(name, (name, ""))
    module_name, _, attribute = where.partition(":")
    if not attribute:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"there is no backend {name!r}; known are: {', '.join(sorted(BACKENDS))}.{hint}"
            " Your own is named as module:Class."
        )
    try:
        made: Backend = getattr(import_module(module_name), attribute)()
    except ImportError as error:
        if extra:
            raise MissingPackage(error.name or extra, f"run jobs on {name}", extra) from error
        raise UserError(f"the backend {name!r} can't be imported: {error}") from error
    except AttributeError:
        raise UserError(f"{module_name} has no backend {attribute!r}") from None
    return made
