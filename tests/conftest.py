"""Fixtures that all tests share: one small loop that has turned once, copies of it, and an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
import treadle
from wheel import FIRST, Wheel, copy_of, new_wheel


@pytest.fixture(scope="session", autouse=True)
def jobs_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs on local pools leave their files where the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREADLE_JOBS", str(tmp_path_factory.mktemp("jobs")))
        patch.setenv("COLUMNS", "120")  # whatever terminal the tests are started from
        yield


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheel, treadle.Run]:
    wheel = new_wheel(tmp_path_factory.mktemp("wheel"))
    return wheel, wheel.run(FIRST)


@pytest.fixture
def wheel(turned: tuple[Wheel, treadle.Run], tmp_path: Path) -> Wheel:
    return copy_of(turned[0], tmp_path)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server on the loopback with one bucket, `treadle`.

    One request at a time: unlike S3, moto alone now and then lets two conditional writes at once both succeed.
    """
    import boto3
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    application, turn = DomainDispatcherApplication(create_backend_app), Lock()

    def in_turn(environ: Any, start_response: Any) -> Any:
        with turn:
            return application(environ, start_response)

    server = make_server("127.0.0.1", 0, in_turn, threaded=True, request_handler=MotoRequestHandler)
    serving = Thread(target=server.serve_forever, daemon=True)
    serving.start()
    address = f"http://127.0.0.1:{server.server_port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket="treadle")
    client.close()
    yield address
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from s3fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # one that is kept knows the address of its first use
    yield s3
    S3FileSystem.clear_instance_cache()
