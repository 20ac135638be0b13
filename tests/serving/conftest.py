"""Servers for the serving tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from serving_models import Logistic, variant_of
from treadle.serving.app import build_app
from treadle.serving.router import Router, Variant
from treadle.serving.server import run_in_thread

Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve_app() -> Iterator[Serve]:
    """Starts a real server for an app's arguments, and gives a client to it."""
    with ExitStack() as stack:

        def start(*variants: Variant, **arguments: Any) -> httpx.Client:
            router = arguments.pop("router", None) or Router("flights", *variants)
            url = stack.enter_context(run_in_thread(build_app(router, **arguments)))
            return stack.enter_context(httpx.Client(base_url=url, timeout=20))

        yield start


@pytest.fixture
def client(serve_app: Serve) -> httpx.Client:
    """A client of a server with one model."""
    return serve_app(variant_of(Logistic()))
