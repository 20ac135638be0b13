"""Secrets in text: where they stand, never what they are."""

from __future__ import annotations

import re
from collections.abc import Collection

_PATTERNS = (
    # A whole value that is a ${VARIABLE} is no secret: it stands in the environment.
    ("a password or token", re.compile(
        r"(?i)(?P<before>\b[\w-]*(?:password|passwd|pwd|secret|token|api_?key|access_?key|account_?key)\b[\"']?\s*[=:]\s*[\"']?)"
        r"(?P<value>(?!\$\{)[^\s\"'&;,)}]{3,})")),
    ("credentials in an address", re.compile(r"(?P<before>://)(?P<value>(?!\$\{)[^\s/@:\"']*:(?!\$\{)[^\s/@\"']+)(?=@)")),
    ("an AWS access key", re.compile(r"(?P<before>)\b(?P<value>(?:AKIA|ASIA)[0-9A-Z]{16})\b")),
    ("a token", re.compile(
        r"(?P<before>)\b(?P<value>gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
        r"|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|glpat-[\w-]{15,}"
        r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)")),
    ("a signed address", re.compile(
        r"(?i)(?P<before>[?&](?:sig|signature|x-amz-signature|x-amz-credential)=)(?P<value>[^\s&\"']+)")),
    ("a private key", re.compile(r"(?P<before>)(?P<value>-----BEGIN [A-Z ]*PRIVATE KEY-----)")),
)  # fmt: skip


def secrets_in(text: str) -> list[tuple[int, str]]:
    """The line (from 1) and kind of each secret that seems to stand in a text; not the secret."""
    found = set()
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            found.add((text.count("\n", 0, match.start("value")) + 1, kind))
    return sorted(found)


def secret_values(text: str) -> set[str]:
    """The values themselves, and the parts of credentials, to be kept out of what is shown."""
    found = {match["value"] for _, pattern in _PATTERNS for match in pattern.finditer(text)}
    parts = {part for value in found for part in value.split(":") if len(part) > 3}
    return found | parts


def redact(text: str, values: Collection[str] = ()) -> str:
    """The text with what looks like a secret, and each of `values`, replaced by `***`."""
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    for _, pattern in _PATTERNS:
        text = pattern.sub(lambda match: f"{match['before']}***", text)
    return text
