"""Settings: from options, the environment or defaults; what this version can not do is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.app import open_app
from tidings.config import (
    BlobsAddress,
    DynamoAddress,
    FilesAddress,
    S3Address,
    SettingRefused,
    Settings,
    SqliteAddress,
    read_settings,
)


def test_an_option_goes_before_the_environment_before_the_default() -> None:
    environment = {"TIDINGS_PORT": "9000", "TIDINGS_HOST": "::1", "PORT": "1"}
    settings = read_settings({"port": 9001, "host": None}, environment)
    assert (settings.port, settings.host, settings.bus) == (9001, "::1", "local:")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///tidings.db", Path("tidings.db")),
        ("sqlite:///data/a%20b.db", Path("data/a b.db")),
        ("sqlite:////var/lib/tidings.db", Path("/var/lib/tidings.db")),
    ],
)
def test_a_store_is_relative_or_absolute(url: str, path: Path) -> None:
    assert Settings(store=url).store_address == SqliteAddress(path)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("dynamodb://eu-west-1", DynamoAddress("eu-west-1")),
        ("dynamodb://eu-west-1/?prefix=blue", DynamoAddress("eu-west-1", "blue")),
        (
            "dynamodb://local?prefix=a-b&endpoint=http://127.0.0.1:8006",
            DynamoAddress("local", "a-b", "http://127.0.0.1:8006"),
        ),
    ],
)
def test_a_store_is_a_region_with_a_prefix(url: str, address: DynamoAddress) -> None:
    assert Settings(store=url).store_address == address
    assert Settings(store=address.url).store_address == address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("file:///var/files", FilesAddress(Path("/var/files"))),
        ("file:my%20files", FilesAddress(Path("my files"))),
        ("s3://my.bucket", S3Address("my.bucket")),
        (
            "s3://bucket?region=eu-west-1&endpoint=http://127.0.0.1:9000",
            S3Address("bucket", "eu-west-1", "http://127.0.0.1:9000"),
        ),
    ],
)
def test_files_are_in_a_folder_or_a_bucket(url: str, address: BlobsAddress) -> None:
    assert Settings(blobs=url).blobs_address == address


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", "dynamodb://"),
        ("store", "dynamodb://eu-west-1/table"),
        ("store", "dynamodb://key:sesame@eu-west-1"),
        ("store", "dynamodb://eu-west-1?prefix="),
        ("store", "dynamodb://eu-west-1?prefix=a.b"),
        ("store", "dynamodb://eu-west-1?table=a"),
        ("store", "dynamodb://eu-west-1?endpoint=sesame"),
        ("store", "postgres://user:sesame@host/db"),
        ("store", "tidings.db"),
        ("store", "sqlite://tidings.db"),
        ("store", "sqlite:///"),
        ("store", "sqlite:///a.db?mode=ro"),
        ("bus", "amqp://:sesame@host"),
        ("blobs", "gs://sesame"),
        ("blobs", "file://sesame/folder"),
        ("blobs", "file:"),
        ("blobs", "s3://"),
        ("blobs", "s3://bucket/folder"),
        ("blobs", "s3://key:sesame@bucket"),
        ("blobs", "s3://bucket?endpoint=sesame"),
        ("blobs", "s3://bucket?prefix=sesame"),
        ("push", "loud"),
        ("port", "high"),
        ("port", "65536"),
        ("log", "loud"),
    ],
)
def test_what_can_not_be_kept_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingRefused) as refused:
        read_settings({name: value}, {})
    assert str(refused.value).startswith(f"{name}: ")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("limit", ["fast", "0/second", "-1/second", ""])
async def test_a_wrong_limit_is_refused_before_anything_opens(tmp_path: Path, limit: str) -> None:
    settings = Settings(store=f"sqlite:///{tmp_path}/a.db", rate_limit=limit)
    with pytest.raises(SettingRefused, match="rate_limit: "):
        async with open_app(settings):
            pass
    assert not list(tmp_path.iterdir())
