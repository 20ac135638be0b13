"""Whether what serves a model is what it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from treadle.records import Candidate, Compiled


def versions_that_differ(candidate: Candidate) -> list[str]:
    """A line for each library that is here in another version than where the candidate was trained.

    Only what entered the candidate's key is compared: its flavour's libraries, and those that the loop's own training
    files import. One that is not here at all is left out: a model that loads without it does not need it.
    """
    return [
        f"{candidate} was trained with {name} {trained} and is served with {name} {here}: it may predict"
        " differently from what was judged. Serve from the image that it was trained in."
        for name, trained, here in _other_versions(_trained_with(candidate))
    ]


def compilers_that_differ(candidate: Candidate, compiled: Compiled) -> list[str]:
    """Likewise for what compiled it: what it was trained with made no part of that."""
    return [
        f"{candidate} was compiled with {name} {made} and is served with {name} {here}: it may predict differently"
        " from what was compared. Serve from the image that it was compiled in."
        for name, made, here in _other_versions(compiled.versions)
    ]


def _other_versions(made_with: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name, made in sorted(made_with.items()):
        try:
            here = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
        if here != made.partition("+")[0]:
            yield name, made, here


def _trained_with(candidate: Candidate) -> dict[str, str]:
    """Version by distribution. A flavour of several libraries names them in one text: `torch 2.13.0, onnx 1.23.0`."""
    found: dict[str, str] = {}
    for name, text in candidate.key.get("library", {}).items():
        for part in str(text).split(", "):
            library, space, number = part.partition(" ")
            found[library if space else name] = number if space else part
    return found
