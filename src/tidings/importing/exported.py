"""The format of an exported workspace: a folder of JSON lines, and a manifest that proves it whole.

One file for each kind of row, in the order of its keys, each line a JSON object with its names in
order and without what is empty: the same workspace is the same bytes, from whichever engine. Names
are those of the tables, with `room_id` and `user_id` in place of their keys; times are milliseconds
since 1970. `manifest.json` is written last, so a folder without one is no export.

What is not in it: sessions, API keys and every token hash, shared secrets of identity tokens, what
only lives while a service runs (presence, nodes, leases), what follows from the rest (listings, the
schedule), and bytes of files: those stay on the shelf that `--blobs` names. A receipt has no end in
an export, and none where it is imported: who sends a message again after the move has sent it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import msgspec

from tidings.chat.attachments import ABOUT
from tidings.chat.rows import room_from_item, room_to_item
from tidings.errors import NotFound, ValidationFailed
from tidings.ids import is_id
from tidings.storage.interface import Item, Table
from tidings.storage.tables import (
    BADGES,
    BLOBS,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    USERS,
    WORKSPACES,
)

FORMAT = "tidings-export"
VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 * 1024
LINE_BYTES_MAX = 4 * 1024 * 1024
"""A longer line is damage: an item has 400 KB, and JSON writes a byte in six at most."""
SHARED_SECRET_ALGORITHMS = frozenset({"HS256"})
"""Algorithms of identity tokens whose key is a secret; of the others it is the public half."""

Line = dict[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """One file of an export: rows of a table, and which of their fields stay behind."""

    name: str
    table: Table
    left_out: frozenset[str] = frozenset()
    order: tuple[str, ...] = ("room_id",)
    """What its lines ascend by, each once."""

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f"{self.name}.jsonl"

    @property
    def _owner(self) -> str | None:
        """The key field that begins with the workspace, and is exported as an id without it."""
        owner = self.table.partition
        return owner if owner in ("room", "user", "blob") else None

    def to_line(self, item: Mapping[str, Any]) -> Line:
        """The stored row as it is exported."""
        line = {
            name: value
            for name, value in item.items()
            if name not in self.left_out and value is not None and value not in ([], {})
        }
        if self._owner is not None:
            line[f"{self._owner}_id"] = line.pop(self._owner).partition("#")[2]
        return line

    def to_item(self, line: Line, workspace: str) -> Item:
        """The row to be stored. Raises ValueError for what is no row of this kind."""
        owner, fields = self._owner, self.table.fields
        for name, value in line.items():
            if name == f"{owner}_id":
                kind: type = str
            elif name not in fields or name in self.left_out or name == owner:
                raise ValueError(f"unknown field {name}")
            else:
                kind = fields[name]
            if type(value) is not kind:
                raise ValueError(f"{name} is no {kind.__name__}")
            if name in ("room_id", "user_id", "blob_id") and not is_id(str(value)):
                raise ValueError(f"{name} is no id")
        is_about = self.table is BLOBS and line.get("place") == ABOUT
        for name in _NEEDED["blob"] if is_about else _NEEDED[self.name]:
            if name not in line:
                raise ValueError(f"no {name}")
        item = dict(line)
        if owner is not None:
            name = f"{owner}_id"
            owner_id = item[name] if name in fields else item.pop(name)
            item[owner] = f"{workspace}#{owner_id}"
        if self.table is USERS:
            item["workspace"] = workspace
            if item.get("erasing", workspace) != workspace:
                raise ValueError("erasing in another workspace")
        return room_to_item(room_from_item(item)) if self.table is ROOMS else item


_NEEDED = {
    "workspace": ("workspace", "name", "publishable_key", "created_at"),
    "users": ("user_id", "role", "name", "created_at", "updated_at"),
    "rooms": ("room_id", "kind", "created_at", "head", "epoch", "member_count"),
    "members": ("room_id", "user_id", "role", "joined_seq"),
    "entries": ("room_id", "seq", "id", "type", "created_at"),
    "receipts": ("room_id", "receipt", "seq", "body_hash"),
    "inboxes": (
        "user_id",
        "room_id",
        "kind",
        "unread",
        "mentions",
        "read_seq",
        "counted_seq",
        "joined_seq",
        "feed",
    ),
    "badges": ("user_id", "unread", "mentions", "version"),
    "fanouts": ("room_id", "founding"),
    "blobs": ("blob_id", "place"),
    "blob": ("blob_id", "state", "name", "type", "size", "attached", "created_at"),
}
"""Fields without which a row can't even be audited."""

WORKSPACE = Kind("workspace", WORKSPACES, order=("workspace",))
USER = Kind("users", USERS, frozenset({"workspace"}), ("user_id",))
ROOM = Kind("rooms", ROOMS, frozenset({"listing", "waiting"}))
MEMBER = Kind("members", MEMBERS, order=("room_id", "user_id"))
ENTRY = Kind("entries", ENTRIES, order=("room_id", "seq"))
RECEIPT = Kind("receipts", RECEIPTS, frozenset({"expires_at"}), ("room_id", "receipt"))
INBOX = Kind("inboxes", INBOXES, order=("room_id", "user_id"))
BADGE = Kind("badges", BADGES, order=("user_id",))
FANOUT = Kind("fanouts", FANOUTS, frozenset({"node_id", "fence"}))
"""Of large rooms that are being made: who is still to join. Any other is at its end here."""
BLOB = Kind("blobs", BLOBS, order=("blob_id", "place"))
"""What a blob is, then which entries hold it. Its bytes stay on the shelf that it is on."""

KINDS = (WORKSPACE, USER, ROOM, MEMBER, ENTRY, RECEIPT, INBOX, BADGE, FANOUT, BLOB)
LEFT_OUT = {
    "secrets": "belong to the service",
    "sessions": "devices sign in anew",
    "tokens": "hashes of secrets; the publishable key's is made anew from it",
    "nodes": "live only while a service runs",
    "leases": "live only while a service runs",
    "presence": "lives only while a service runs",
    "pushes": "belong to devices, which sign in anew",
    "schedule": "follows from the rooms",
    "moves": "the books of moves between stores",
}
"""Tables that are in no export, and why."""
BYTES_LEFT_OUT = {"bytes of files": "stay on the shelf that --blobs names"}


class Portion(msgspec.Struct, frozen=True):
    """What the manifest says of one file."""

    file: str
    lines: int
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an export holds; `sha256` is that of all else in it, and names the export."""

    workspace: str
    files: dict[str, Portion]
    sha256: str = ""
    left_out: dict[str, str] = {}
    """For people: what is not in it, and why."""
    format: str = FORMAT
    version: int = VERSION

    def sealed(self) -> Manifest:
        """With the hash that belongs to it."""
        blank = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(self, sha256=sha256(encode(blank)).hexdigest())


_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: Any) -> bytes:
    """The one form in which a value is written."""
    return _encoder.encode(value)


class Writing:
    """One file while it is written, or only reckoned where there is none."""

    def __init__(self, kind: Kind, file: IO[bytes] | None = None) -> None:
        self.kind = kind
        self.lines = 0
        self._bytes = 0
        self._hash = sha256()
        self._file = file

    def add(self, item: Mapping[str, Any]) -> None:
        """Write a stored row."""
        self.add_encoded(encode(self.kind.to_line(item)))

    def add_encoded(self, line: bytes) -> None:
        """Write a line that was encoded before."""
        whole = line + b"\n"
        self.lines += 1
        self._bytes += len(whole)
        self._hash.update(whole)
        if self._file is not None:
            self._file.write(whole)

    @property
    def portion(self) -> Portion:
        """What the manifest says of it."""
        return Portion(self.kind.file, self.lines, self._bytes, self._hash.hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export. Raises NotFound, and ValidationFailed for one that is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(f"There is no export in {folder}: it has no {MANIFEST}.")
    with path.open("rb") as file:
        text = file.read(MANIFEST_BYTES_MAX)
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ValidationFailed(f"{path} is damaged: {error}") from error
    if manifest.format != FORMAT or manifest.version != VERSION:
        raise ValidationFailed(
            f"{path} is of format {manifest.format} {manifest.version}, not {FORMAT} {VERSION}."
        )
    wanted = {kind.name: kind.file for kind in KINDS}
    is_whole = {name: each.file for name, each in manifest.files.items()} == wanted
    if manifest.sealed() != manifest or not is_whole or not is_id(manifest.workspace):
        raise ValidationFailed(f"{path} is damaged: it does not have its own hash.")
    return manifest


def read_rows(folder: Path, manifest: Manifest, kind: Kind) -> Iterator[Item]:
    """The rows of one file, ready to be stored; one line at a time is held.

    Raises ValidationFailed that names file and line: at once for a line that is no row, and after
    the last one where the file as a whole is not what the manifest says.
    """
    path = folder / kind.file
    seen = Writing(kind)
    last: tuple[Any, ...] = ()
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ValidationFailed(f"{path} is missing.") from error
    with file:
        while whole := file.readline(LINE_BYTES_MAX):
            number = seen.lines + 1
            if not whole.endswith(b"\n"):
                raise ValidationFailed(f"{path} is damaged: line {number} has no end.")
            seen.add_encoded(whole[:-1])
            try:
                line = msgspec.json.decode(whole, type=Line)
                item = kind.to_item(line, manifest.workspace)
                place = tuple(line[name] for name in kind.order)
                if place <= last:
                    raise ValueError("it is not after the one before")
                last = place
            except (ValueError, KeyError) as error:
                raise ValidationFailed(f"{path} is damaged: line {number}: {error}") from error
            yield item
    if seen.portion != manifest.files[kind.name]:
        raise ValidationFailed(f"{path} is damaged: it is not the file that the manifest names.")
