"""Profiles of faults: which share of the calls to which table fails, and how."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from tidings.config import SettingRefused
from tidings.storage.tables import TABLES

Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""Of calls, from 0 to 1."""


class Fault(StrEnum):
    """What can happen to an attempt; see `retries.Kind` for what each one means."""

    THROTTLE = "throttle"
    CONFLICT = "conflict"
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    HANG = "hang"
    LOST_ANSWER = "lost_answer"
    SLOW = "slow"


_WRITES_ALONE = frozenset({Fault.CONFLICT, Fault.LOST_ANSWER})


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of attempts that each fault happens to; together at most 1.

    Conflicts and lost answers happen to writes alone.
    """

    throttle: Share = 0.0
    conflict: Share = 0.0
    server_error: Share = 0.0
    unreachable: Share = 0.0
    reset: Share = 0.0
    hang: Share = 0.0
    lost_answer: Share = 0.0
    slow: Share = 0.0
    slow_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5
    """A slow answer takes up to that much longer."""

    def __post_init__(self) -> None:
        if self.total > 1:
            raise ValueError("the shares of a table add up to more than 1")

    @property
    def total(self) -> float:
        """The share of attempts that anything happens to."""
        return sum(self.share(fault) for fault in Fault)

    def share(self, fault: Fault) -> float:
        """The share of attempts that this fault happens to."""
        share: float = getattr(self, fault)
        return share


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates of faults."""

    every_table: Rates = Rates()
    tables: dict[str, Rates] = {}
    """In place of those of every table."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tables) - {table.name for table in TABLES}):
            raise ValueError(f"there is no table {unknown[0]}")

    def rates(self, table: str) -> Rates:
        """The rates of one table."""
        return self.tables.get(table, self.every_table)

    def worst(self, tables: Collection[str]) -> str:
        """The table that a call to all of them fails by, and whose rates are the call's."""
        return max(sorted(tables), key=lambda table: self.rates(table).total)

    def draw(self, table: str, chance: float, *, is_write: bool) -> Fault | None:
        """What happens to an attempt; `chance` is drawn evenly from 0 to 1."""
        rates = self.rates(table)
        for fault in Fault:
            chance -= rates.share(fault)
            if chance < 0:
                return None if fault in _WRITES_ALONE and not is_write else fault
        return None


def builtin_profiles() -> Mapping[str, str]:
    """The profiles that come with the package, as the texts of their files."""
    folder = files("tidings").joinpath("faults")
    return {
        file.name.removesuffix(".toml"): file.read_text()
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def read_profile(name: str) -> Profile:
    """The profile of a name that is built in, or in a TOML file at that path.

    Raises SettingRefused, whose text says what is wrong with it.
    """
    profiles = builtin_profiles()
    try:
        text = profiles[name] if name in profiles else Path(name).read_text()
        return msgspec.toml.decode(text, type=Profile)
    except OSError as error:
        raise SettingRefused(
            f"faults: {name} is neither a file that can be read nor one of {', '.join(profiles)}"
        ) from error
    except ValueError as error:
        raise SettingRefused(f"faults: {name}: {error}") from error
