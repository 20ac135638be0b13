"""boto3's clients, made once each, and its errors in words of treadle."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from treadle.errors import MissingPackage, Transient, TreadleError, UserError

_MAY_PASS = re.compile(
    r"throttl|TooManyRequests|RequestLimitExceeded|Unavailable|Internal|SlowDown|Timeout", re.IGNORECASE
)
_WHO = {
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
# What botocore raises without an answer, by the names of its classes.
_NOT_REACHED = {
    "HTTPClientError",
    "ConnectionError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "IncompleteReadError",
    "ResponseParserError",  # what answered was no AWS: a proxy, perhaps on the way back
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "SSOError",
    "TokenRetrievalError",
    "LoginError",
}
_QUOTA = re.compile(
    r"is (\d+) Instances, with current utilization of (\d+) Instances and a request delta of (\d+)"
)


def client_for(service: str, region: str | None) -> Any:
    """boto3's client of a service; None: the region that AWS's own variables or the profile name.

    Raises:
        MissingPackage: boto3 is not installed. UserError: No region, or a profile that does not exist.
    """
    variables = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client(service, region, variables, os.getpid())


@lru_cache(maxsize=16)
def _client(service: str, region: str | None, variables: object, pid: int) -> Any:
    """Making one reads megabytes of JSON; it is good for as long as the variables that it was made from."""
    try:
        boto3: Any = import_module("boto3")
        config: Any = import_module("botocore.config")
    except ImportError as error:
        raise MissingPackage("boto3", "run jobs on sagemaker", "sagemaker") from error
    # A second try of the same request is safe: names are unique. Longer waits are the runner's.
    settings = config.Config(
        connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 2}
    )
    try:
        return boto3.session.Session().client(service, region_name=region, config=settings)
    except Exception as error:
        raise explained(error, f"can't use {service}") from error


def code_of(error: BaseException) -> str:
    """The code that AWS gave an error; empty for one that is not AWS's."""
    answer = getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def explained(error: Exception, what: str) -> TreadleError:
    """The error as treadle tells it: may a retry help, or must someone do something?"""
    if isinstance(error, TreadleError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    words = f"{what} on SageMaker: {error}"
    if names & _NO_CREDENTIALS:
        return UserError(
            f"{words.rstrip('.')}. No credentials of AWS were found: log in, or set AWS_PROFILE or the usual variables."
        )
    if "NoRegionError" in names:
        return UserError(f"{words} Say region in the pool, or set AWS_REGION.")
    if names & _NOT_REACHED:
        return Transient(f"{words} That says nothing about the job.")
    code = code_of(error)
    if code == "ResourceLimitExceeded":
        return _over_quota(str(error), words)
    if code in _WHO:
        return UserError(f"{words} Are these credentials the right ones, and may they do this?")
    status = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if _MAY_PASS.search(code) or status >= 500:
        return Transient(words)
    return UserError(words)


def _over_quota(told: str, words: str) -> TreadleError:
    """A quota that others use up now may be free later; one that is smaller than the job never is."""
    found = _QUOTA.search(told)
    if found and int(found[1]) < int(found[3]):
        return UserError(f"{words} Ask AWS for a larger quota, or name another instance type.")
    return Transient(f"{words} Other jobs use the quota up.")
