"""Settings: read once at the start from options and the environment, frozen afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

LOCAL_BUS = "local:"
"""The bus of a node that is alone."""
ENVIRONMENT_PREFIX = "TIDINGS_"
PREFIX_DEFAULT = "tidings"
"""Begins the names of DynamoDB tables."""
AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
"""How the names of AWS's hosts end, those of private endpoints too."""

_REGION = re.compile(r"[a-z0-9-]{1,40}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")

LogForm = Literal["auto", "json", "console", "off"]


class SettingRefused(ValueError):
    """A setting that this version can't work with; the text says which one and why."""


class SqliteAddress(msgspec.Struct, frozen=True):
    """The file of the embedded store."""

    path: Path

    @property
    def url(self) -> str:
        """The address as `--store` takes it, the same from every folder."""
        return f"sqlite:///{quote(str(self.path.absolute()))}"


class DynamoAddress(msgspec.Struct, frozen=True):
    """Where the tables of one service are: DynamoDB of a region, or what speaks its API."""

    region: str
    prefix: str = PREFIX_DEFAULT
    """What the names of the tables begin with, before a full stop."""
    endpoint: str | None = None
    """None for AWS itself, by the region's own name."""

    @property
    def is_aws(self) -> bool:
        """Whether AWS itself is there: it checks signatures, tells what it consumed, and costs."""
        if self.endpoint is None:
            return True
        return (urlsplit(self.endpoint).hostname or "").endswith(AWS_HOSTS)

    @property
    def url(self) -> str:
        """The address as `--store` takes it."""
        options = [] if self.prefix == PREFIX_DEFAULT else [f"prefix={self.prefix}"]
        if self.endpoint is not None:
            options.append(f"endpoint={self.endpoint}")
        return f"dynamodb://{self.region}{'?' if options else ''}{'&'.join(options)}"


StoreAddress: TypeAlias = SqliteAddress | DynamoAddress


class FilesAddress(msgspec.Struct, frozen=True):
    """The folder of files that entries link to; one that all nodes reach."""

    folder: Path


class S3Address(msgspec.Struct, frozen=True):
    """A bucket of S3, or of what speaks its API."""

    bucket: str
    region: str = "us-east-1"
    endpoint: str | None = None
    """None for AWS itself, by the region's own name."""

    @property
    def is_aws(self) -> bool:
        """Whether AWS itself is there."""
        host = urlsplit(self.endpoint or "").hostname or ""
        return self.endpoint is None or host.endswith(AWS_HOSTS)


BlobsAddress: TypeAlias = FilesAddress | S3Address
PushTargets = Literal["public", "loopback", "off"]


class Settings(msgspec.Struct, frozen=True):
    """What one service needs to know. Each comes from an option or from `TIDINGS_<NAME>`."""

    store: str = "sqlite:///tidings.db"
    bus: str = LOCAL_BUS
    blobs: str = "file:tidings-blobs"
    push: PushTargets = "public"
    """Where web push may go: to public addresses by HTTPS; for tests to this machine as well."""
    push_contact: str = "mailto:operator@example.com"
    """Where push services may write to those who run this one: a mailto: or https: address."""
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8080
    """0 picks a free one."""
    rate_limit: str = "50/second"
    """Requests and frames of each session, or `off`."""
    faults: str | None = None
    """The profile of faults that the store shows on purpose: a name or a file."""
    log: LogForm = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""

    def __post_init__(self) -> None:
        self.store_address  # noqa: B018  # refused here, before anything is opened
        if urlsplit(self.bus).scheme not in ("local", "redis", "rediss"):
            raise SettingRefused(
                f"bus: {_scheme(self.bus)} is not available; use local: or redis://host:port"
            )
        self.blobs_address  # noqa: B018  # likewise
        if not self.push_contact.startswith(("mailto:", "https://")):
            raise SettingRefused("push_contact: write mailto:address or https://host")

    @property
    def store_address(self) -> StoreAddress:
        """The store: `sqlite:///a.db` is a relative file, `sqlite:////a.db` an absolute one;
        `dynamodb://REGION?prefix=tidings&endpoint=URL`, both parts optional, is DynamoDB.
        """
        match urlsplit(self.store).scheme:
            case "sqlite":
                return _sqlite_address(self.store)
            case "dynamodb":
                return _dynamo_address(self.store)
            case _:
                raise SettingRefused(
                    f"store: {_scheme(self.store)} is not available; "
                    "use sqlite:///path.db or dynamodb://REGION"
                )

    @property
    def blobs_address(self) -> BlobsAddress:
        """The files: `file:///dir` is an absolute folder (RFC 8089), `file:dir` a relative one;
        `s3://bucket?region=REGION&endpoint=URL`, both parts optional, is S3.
        """
        match urlsplit(self.blobs).scheme:
            case "file":
                return _files_address(self.blobs)
            case "s3":
                return _s3_address(self.blobs)
            case _:
                raise SettingRefused(
                    f"blobs: {_scheme(self.blobs)} is not available; use file:///dir or s3://bucket"
                )


def _files_address(url: str) -> FilesAddress:
    address = urlsplit(url)
    path = unquote(address.path)
    if address.netloc or address.query or address.fragment or not path.strip("/"):
        raise SettingRefused("blobs: write file:///dir, or file:dir for a relative path")
    return FilesAddress(Path(path))


def _s3_address(url: str) -> S3Address:
    address = urlsplit(url)
    try:
        parts = parse_qsl(address.query, keep_blank_values=True, strict_parsing=bool(address.query))
    except ValueError:
        parts = [("", "")]
    options = dict(parts)
    region, endpoint = options.pop("region", "us-east-1"), options.pop("endpoint", None)
    if (
        options
        or address.path not in ("", "/")
        or not _BUCKET.fullmatch(address.netloc)
        or not _REGION.fullmatch(region)
        or not (endpoint is None or _is_endpoint(endpoint))
    ):
        raise SettingRefused("blobs: write s3://bucket?region=REGION&endpoint=https://host")
    return S3Address(address.netloc, region, endpoint)


def _is_endpoint(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)


def _sqlite_address(url: str) -> SqliteAddress:
    address = urlsplit(url)
    path = unquote(address.path)[1:]
    if address.netloc or address.query or address.fragment or not path:
        raise SettingRefused(
            "store: write sqlite:///path.db, or sqlite:////path.db for an absolute path"
        )
    return SqliteAddress(Path(path))


def _dynamo_address(url: str) -> DynamoAddress:
    address = urlsplit(url)
    try:
        parts = parse_qsl(address.query, keep_blank_values=True, strict_parsing=bool(address.query))
    except ValueError:
        parts = [("", "")]
    options = dict(parts)
    prefix, endpoint = options.pop("prefix", PREFIX_DEFAULT), options.pop("endpoint", None)
    if (
        options
        or address.path not in ("", "/")
        or not _REGION.fullmatch(address.netloc)
        or not _PREFIX.fullmatch(prefix)
        or not (endpoint is None or _is_endpoint(endpoint))
    ):
        raise SettingRefused(
            "store: write dynamodb://REGION?prefix=tidings&endpoint=https://host, "
            "with a prefix of 1 to 40 letters, digits, _ or -"
        )
    return DynamoAddress(address.netloc, prefix, endpoint)


def _scheme(url: str) -> str:
    """The kind of an address, without what it may hold of secrets."""
    return f"{urlsplit(url).scheme}:" if urlsplit(url).scheme else "an address without a scheme"


def read_settings(options: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Settings from options, where given and not None, else the environment, else the defaults.

    Raises SettingRefused, whose text names the setting.
    """
    chosen: dict[str, object] = {}
    for name in Settings.__struct_fields__:
        value = options.get(name)
        if value is None:
            value = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if value is not None:
            chosen[name] = value
    try:
        return msgspec.convert(chosen, Settings, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, SettingRefused):
            raise error.__cause__ from None
        detail, _, path = str(error).partition(" - at `$.")
        raise SettingRefused(f"{path.rstrip('`')}: {detail}") from None
