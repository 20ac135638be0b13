"""Keeping credentials out of what is shown: every error's text goes through here."""

from __future__ import annotations

import re

# A password may hold anything but what ends an address; the last @ before a slash divides it from the host.
_USER = re.compile(r"://([^\s/'\"]*)@")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:sig|token|secret|password|passwd|pwd|credential|api_?key|access_?key)[\w.-]*=)[^\s&;'\")\]>]+",
    re.IGNORECASE,
)


def redacted(text: str, address: str = "") -> str:
    """A text without the credentials of addresses in it: user and password, and signed or secret parameters.

    Args:
        text: What would be shown.
        address: An address whose user and password are taken out also where they stand without it.

    >>> redacted("s3://key:secret@host/a?X-Amz-Signature=5f&part=1")
    's3://***@host/a?X-Amz-Signature=***&part=1'
    """
    text = _PARAMETER.sub(r"\1***", _USER.sub("://***@", text))
    for user in _USER.findall(address):
        password = user.partition(":")[2]
        for part in (user, password) if len(password) > 3 else (user,):
            text = text.replace(part, "***")
    return text


def cause(error: BaseException, address: str = "") -> BaseException | None:
    """An error to name as another's cause; None when its own text would show credentials."""
    return error if redacted(str(error), address) == str(error) else None
