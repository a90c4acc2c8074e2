"""Settings: read once at the start from options and the environment, frozen afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import msgspec

ENVIRONMENT_PREFIX = "TIDINGS_"

LogForm = Literal["auto", "json", "console", "off"]


class SettingRefused(ValueError):
    """A setting that this version can't work with; the text says which one and why."""


class Settings(msgspec.Struct, frozen=True):
    """What one service needs to know. Each comes from an option or from `TIDINGS_<NAME>`."""

    store: str = "sqlite:///tidings.db"
    bus: str = "local:"
    blobs: str = "file:///tidings-blobs"
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8080
    """0 picks a free one."""
    rate_limit: str = "50/second"
    """Requests and frames of each session, or `off`."""
    log: LogForm = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""

    def __post_init__(self) -> None:
        self.store_path  # noqa: B018  # refused here, before anything is opened
        if urlsplit(self.bus).scheme != "local":
            raise SettingRefused(
                f"bus: {_scheme(self.bus)} is not available in this version; use local:"
            )
        if urlsplit(self.blobs).scheme != "file":
            raise SettingRefused(
                f"blobs: {_scheme(self.blobs)} is not available in this version; use file:///dir"
            )

    @property
    def store_path(self) -> Path:
        """The file of the embedded store: `sqlite:///a.db` is relative, `sqlite:////a.db` not."""
        address = urlsplit(self.store)
        if address.scheme != "sqlite":
            raise SettingRefused(
                f"store: {_scheme(self.store)} is not available in this version; "
                "use sqlite:///path.db"
            )
        path = unquote(address.path)[1:]
        if address.netloc or address.query or address.fragment or not path:
            raise SettingRefused(
                "store: write sqlite:///path.db, or sqlite:////path.db for an absolute path"
            )
        return Path(path)


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
