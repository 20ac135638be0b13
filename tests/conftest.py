"""Fixtures that all tests share: one small loop that has turned once, copies of it, and an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import treadle
from wheel import FIRST, Wheel, copy_of, new_wheel


@pytest.fixture(scope="session", autouse=True)
def jobs_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs on local pools leave their files where the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREADLE_JOBS", str(tmp_path_factory.mktemp("jobs")))
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
    """The address of an S3 server on the loopback with one bucket, `treadle`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket="treadle")
    client.close()
    yield address
    server.stop()


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return s3
