"""The shapes on the wire, shared by service, client and OpenAPI: requests, replies and frames.

Names and shapes are the public contract. Times are RFC 3339 texts, sequences start at 1, counts
are never negative.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from tidings.ids import Id

TEXT_CHARACTERS_MAX = 8_000
PREVIEW_CHARACTERS_MAX = 120
NAME_CHARACTERS_MAX = 200
MENTIONS_MAX = 50
BLOBS_MAX = 20
ENDPOINT_CHARACTERS_MAX = 1_024
REACTIONS_MAX = 50
"""Different emoji on one entry."""
REACTION_USERS_MAX = 500
"""Users under one emoji of one entry that are named; more are refused."""
FOUNDERS_MAX = 1_000
"""Members named when a room is made, or added in one call."""
HAVE_RANGES_MAX = 500
HAVE_ROOMS_MAX = 500
LIST_LIMIT_MAX = 500
LIST_LIMIT_DEFAULT = 25
WAIT_S_MAX = 60
SEQ_MAX = 2**53 - 1

Role = Literal["admin", "manager", "customer", "bot"]
RoomKind = Literal["direct", "group", "support"]
Scope = Literal["public", "private"]
History = Literal["full", "since_join"]
Status = Literal["open", "snoozed", "closed"]
EntryType = Literal[
    "text",
    "audio",
    "joined",
    "left",
    "edited",
    "deleted",
    "reaction",
    "status",
    "timer",
    "campaign",
]
COUNTABLE_TYPES = frozenset({"text", "audio", "campaign"})
"""Types that count as unread, never for their sender."""

MEDIA_TYPE_PATTERN = r"^[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*(?!\n)$"
"""Type and subtype in small letters, without parameters (RFC 6838)."""

Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Email = Annotated[str, Meta(min_length=3, max_length=320, pattern=r"^[^@\s]+@[^@\s]+(?!\n)$")]
Timestamp = Annotated[str, Meta(description="RFC 3339, UTC, milliseconds")]
Count = Annotated[int, Meta(ge=0)]

# --- replies -----------------------------------------------------------------------------------


class Attachment(Struct, frozen=True):
    """A file that an entry links to. The links need the reader's credential, as all calls do."""

    blob_id: str
    name: str
    type: str
    """As its uploader said; what is not a known picture, sound or film comes as a download."""
    size: Count
    """Bytes."""
    url: str
    """Redirects to the bytes for a short time; relative to the service."""
    width: int | None = None
    """Of a picture, in pixels, upright."""
    height: int | None = None
    thumbnail_url: str | None = None
    """There for pictures: at most 480 pixels wide and high."""


class Entry(Struct, frozen=True):
    """One entry of a room's log."""

    room_id: str
    seq: int
    id: str
    type: EntryType
    sender_id: str | None
    created_at: Timestamp
    client_id: str | None = None
    text: str | None = None
    blobs: list[Attachment] = []
    reply_to: int | None = None
    mentions: list[str] = []
    reactions: dict[str, list[str]] = {}
    """Emoji to the ids of the users who gave it."""
    edited_at: Timestamp | None = None
    deleted_at: Timestamp | None = None
    data: dict[str, Any] = {}
    """What a typed entry is about, such as `{"seq": 7}` in `edited` and `deleted`."""


class Total(Struct, frozen=True):
    """A user's counts over all rooms that are not muted; `version` orders everything."""

    unread: Count
    mentions: Count
    version: Count


class Badge(Total, frozen=True):
    """The answer of `GET /v1/badge`."""


class ReadReply(Struct, frozen=True):
    """Where the read mark is now, and the counts after it."""

    read_seq: Count
    unread: Count
    mentions: Count
    total: Total


class User(Struct, frozen=True, omit_defaults=True):
    """A person or a program; what a customer may not know of others is left out."""

    id: str
    name: str
    role: Role | UnsetType = UNSET
    email: str | None | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    is_deactivated: bool | UnsetType = UNSET
    is_online: bool | UnsetType = UNSET
    created_at: Timestamp | UnsetType = UNSET


class Me(User, frozen=True, omit_defaults=True, kw_only=True):
    """The caller, with totals."""

    unread: Count
    mentions: Count
    version: Count


class Room(Struct, frozen=True):
    """A room as one of its readers sees it."""

    id: str
    kind: RoomKind
    title: str | None
    head: Count
    epoch: Count
    created_at: Timestamp
    created_by: str | None
    member_count: Count
    scope: Scope | None = None
    history: History = "full"
    about: str | None = None
    status: Status | None = None
    assignee_id: str | None = None
    customer_id: str | None = None
    snoozed_until: Timestamp | None = None
    tags: list[str] = []


class ListedRoom(Room, frozen=True, kw_only=True):
    """A room in a list, with its last activity, to the minute where no message is known.

    A conversation is with its customer, and has the beginning of its last message as `preview`."""

    with_: list[User] = msgspec.field(name="with")
    updated_at: Timestamp
    preview: str | None = None


class Member(Struct, frozen=True):
    """Who is in a room, and since when: `joined_seq` is the head at the moment of joining."""

    user_id: str
    name: str
    role: str
    joined_seq: Count


class Reader(Struct, frozen=True):
    """How far another member has read; `user_id` is null for all others together."""

    user_id: str | None
    read_seq: Count


class InboxItem(Struct, frozen=True, omit_defaults=False):
    """One row of an inbox."""

    room_id: str
    kind: RoomKind
    title: str | None
    with_: list[User] = msgspec.field(name="with")
    unread: Count
    mentions: Count
    read_seq: Count
    head: Count
    updated_at: Timestamp
    preview: str | None
    muted: bool = False
    left: bool = False
    hidden: bool = False
    """Its owner took it off the list, and nothing came since."""
    status: Status | None = None
    assignee_id: str | None = None


class EntryList(Struct, frozen=True):
    """Entries in ascending order, and the room's head."""

    items: list[Entry]
    head: Count


class UserList(Struct, frozen=True):
    """A page of users."""

    items: list[User]
    next: str | None


class RoomList(Struct, frozen=True):
    """A page of rooms."""

    items: list[ListedRoom]
    next: str | None


class MemberList(Struct, frozen=True):
    """A page of members."""

    items: list[Member]
    next: str | None


class ReaderList(Struct, frozen=True):
    """The other members of a small room, by how far they have read."""

    items: list[Reader]
    next: str | None = None


class InboxList(Struct, frozen=True):
    """A page of an inbox, newest activity first."""

    items: list[InboxItem]
    next: str | None


class Device(Struct, frozen=True):
    """What a client says of the device it runs on."""

    name: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None
    platform: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None


class Session(Struct, frozen=True):
    """One of the caller's devices."""

    session_id: str
    device: Device
    created_at: Timestamp
    expires_at: Timestamp
    is_current: bool
    is_online: bool


class SessionList(Struct, frozen=True):
    """A page of sessions."""

    items: list[Session]
    next: str | None


class NewSession(Struct, frozen=True):
    """A session with its token, shown this once."""

    session_id: str
    token: str
    user: User
    expires_at: Timestamp


class Queue(Struct, frozen=True):
    """Support rooms that wait unassigned, by status; `is_capped` where there are more."""

    open: Count
    snoozed: Count
    is_capped: bool = False


class Node(Struct, frozen=True):
    """A live instance of the service."""

    id: str
    address: str
    """Host and port; empty before it listens."""
    version: str
    started_at: Timestamp
    is_draining: bool
    """It is being stopped and takes nobody new."""
    silent_s: float
    """For how long it was not heard of; one that is silent for too long is no longer listed."""


class Figures(Struct, frozen=True):
    """What one node did since it started; all but `connections` only grow."""

    messages: float
    """Entries appended to logs."""
    deliveries: float
    """Updates handed to connections."""
    connections: float
    """Open now."""
    commits: list[float]
    """How many took how long: for each of `commit_bounds_ms` up to it, and those above the last."""
    retries: float
    """Calls to the store that were made again, whatever for."""
    throttles: float
    """Of those, because it had no units left."""
    errors: float
    """Failures that nobody foresaw."""
    read_units: float
    """Of calls and commits, in DynamoDB's units. On the embedded store, commits of sockets are
    sampled."""
    write_units: float


class NodeFigures(Struct, frozen=True):
    """A live node, and what it did up to its last beat."""

    node: Node
    figures: Figures | None
    """None where it has told none yet."""


class UnitPrices(Struct, frozen=True):
    """What a million units cost on demand."""

    currency: str
    region: str
    as_of: str
    """The day of the price list."""
    read_units_per_million: float
    write_units_per_million: float


class Operations(Struct, frozen=True):
    """How the service is doing, node by node, for pages that draw rates from two of these."""

    at: Timestamp
    nodes: list[NodeFigures]
    commit_bounds_ms: list[float]
    cost_source: Literal["consumed", "metered"]
    """Whether the store told its units, or they are what the same would take on DynamoDB."""
    prices: UnitPrices


class NodeList(Struct, frozen=True):
    """The live instances, oldest first."""

    items: list[Node]
    next: str | None = None


class MigrationWorker(Struct, frozen=True):
    """A process that works at a move."""

    id: str
    doing: str
    trouble: str
    """Why nothing goes on just now; empty while it does."""
    items_per_s: float
    units_per_s: float
    heard_at: Timestamp
    is_alive: bool
    """It was heard of a moment ago."""


class MigrationCheck(Struct, frozen=True):
    """How the last comparison of both stores ended."""

    checked_at: Timestamp
    items: int
    mended: int
    """Items that differed and were copied again."""
    left: int
    """Items that differ still."""
    sample: list[str]
    """Some of those that differed."""


class MigrationShadow(Struct, frozen=True):
    """Reads of the service that both stores were asked since the move began."""

    share: float
    """Of the reads of keys and ranges, from 0 to 1."""
    reads: int
    differences: int
    """Reads whose answers differed, also after changes had been given time to arrive."""


class Migration(Struct, frozen=True):
    """A move of the whole service from one store to another."""

    id: str
    source: str
    target: str
    stage: str
    """preparing, copying, following, sealed, switched, settled, finished or rolled_back."""
    decides: str
    """Which store is the truth now: source or target."""
    wanted: str
    """What was asked for and is not done yet; empty for nothing."""
    started_at: Timestamp
    items_total: int
    """About how many items the source held at the start."""
    items: int
    """Copied so far, by the first copy; what changes later is not counted."""
    share: float
    """Of the first copy that is done, from 0 to 1."""
    bytes: int
    units: float
    """Write units that the copies took so far."""
    price: float
    """Of those units, on demand."""
    currency: str
    items_per_s: float
    units_per_s: float
    budget: float | None
    """Units a second that all workers may use together; null for no limit."""
    ends_at: Timestamp | None
    """When the first copy is expected to be done."""
    lag: int
    """Changed items that are not copied yet, as the leading worker last saw it."""
    check: MigrationCheck | None
    shadow: MigrationShadow | None
    """Null where no reads are compared."""
    workers: list[MigrationWorker]


class MigrationReply(Struct, frozen=True):
    """The move that is under way or was the last one; null where there was none."""

    migration: Migration | None


class SyncRoom(Struct, frozen=True):
    """What changed in one room since the cursor."""

    room_id: str
    head: Count
    read_seq: Count
    unread: Count
    mentions: Count
    entries: list[Entry] = msgspec.field(default_factory=list)
    left: bool | UnsetType = UNSET
    """There, and true, where the user is no longer a member."""


class UnreadRoom(Struct, frozen=True):
    """A room with something unread."""

    room_id: str
    read_seq: Count
    unread: Count
    mentions: Count


class SyncReply(Struct, frozen=True):
    """Everything since the cursor, or a window of it with `more`."""

    cursor: str
    version: Count
    total: Total
    rooms: list[SyncRoom]
    more: bool
    unread_rooms: list[UnreadRoom] | UnsetType = UNSET
    """There when read marks moved: the whole list; a room that is not in it is read."""


class Upload(Struct, frozen=True):
    """Where and how the bytes are to be sent, all at once."""

    method: str
    url: str
    headers: dict[str, str]


class PushKey(Struct, frozen=True):
    """What browsers name as `applicationServerKey`: a point on P-256 as base64url."""

    public_key: str


class NewBlob(Struct, frozen=True):
    """A blob that waits for its bytes."""

    blob_id: str
    upload: Upload


class BlobLink(Struct, frozen=True):
    """A link that works without a credential, for a short time."""

    url: str
    expires_at: Timestamp


# --- requests ----------------------------------------------------------------------------------


class PostMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message to post. With the same `client_id` again it is the same message."""

    client_id: Id | None = None
    text: Text | None = None
    blobs: Annotated[list[Id], Meta(max_length=BLOBS_MAX)] = []
    reply_to: Seq | None = None
    mentions: Annotated[list[Id], Meta(max_length=MENTIONS_MAX)] = []
    as_user: Id | None = None


class CreateBlob(Struct, frozen=True, forbid_unknown_fields=True):
    """A file to upload: its name, its media type, and how many bytes it has."""

    name: Name
    type: Annotated[str, Meta(max_length=127, pattern=MEDIA_TYPE_PATTERN)]
    size: Annotated[int, Meta(ge=1)]


class EditMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """The new text of one's own message."""

    text: Text


class MarkRead(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything up to this sequence was read."""

    seq: Annotated[int, Meta(ge=0, le=SEQ_MAX)]


class Mute(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the room is left out of the caller's total."""

    muted: bool


class Hide(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the room is off one's list, until something new comes."""

    hidden: bool


class CreateRoom(Struct, frozen=True, forbid_unknown_fields=True):
    """A room to make."""

    kind: RoomKind
    id: Id | None = None
    title: Name | None = None
    scope: Scope | None = None
    history: History = "full"
    about: Id | None = None
    member_ids: Annotated[list[Id], Meta(max_length=FOUNDERS_MAX)] = []


class PatchRoom(Struct, frozen=True, forbid_unknown_fields=True):
    """JSON Merge Patch of a room: what is not named stays, null removes."""

    title: Name | None | UnsetType = UNSET
    scope: Scope | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    assignee_id: Id | None | UnsetType = UNSET
    snoozed_until: str | None | UnsetType = UNSET


class AddMember(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is to join: one user, or many at once."""

    user_id: Id | None = None
    user_ids: Annotated[list[Id], Meta(max_length=FOUNDERS_MAX)] = []
    role: Literal["member", "owner"] = "member"


class CreateUser(Struct, frozen=True, forbid_unknown_fields=True):
    """A user to make; with the id of one that exists, that one is the answer."""

    role: Role
    name: Name
    id: Id | None = None
    email: Email | None = None
    attributes: dict[str, Any] = {}


class PatchUser(Struct, frozen=True, forbid_unknown_fields=True):
    """JSON Merge Patch of a user: what is not named stays, null removes."""

    role: Role | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    email: Email | None | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    is_deactivated: bool | UnsetType = UNSET


class CreateSession(Struct, frozen=True, forbid_unknown_fields=True):
    """Who wants a session: a user named by an API key, a JWT, or nobody known."""

    user_id: Id | None = None
    jwt: Annotated[str, Meta(max_length=8_192)] | None = None
    publishable_key: Annotated[str, Meta(max_length=128)] | None = None
    device: Device = Device()


class PushKeys(Struct, frozen=True, forbid_unknown_fields=True):
    """What pushes to a device are encrypted with, as base64url."""

    p256dh: Annotated[str, Meta(min_length=1, max_length=128)]
    auth: Annotated[str, Meta(min_length=1, max_length=64)]


class PushSubscription(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a device is reached that is not connected."""

    endpoint: Annotated[str, Meta(min_length=1, max_length=ENDPOINT_CHARACTERS_MAX)]
    keys: PushKeys
    kind: Literal["web"] = "web"
    expiration_time: float | None = msgspec.field(name="expirationTime", default=None)
    """What browsers say as well; subscriptions that are gone are noticed anyway."""


HaveText = Annotated[str, Meta(max_length=8_192)]


class SyncRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the device is: its cursor, and what it has of each room."""

    since: Annotated[str, Meta(max_length=8_192)] | None = None
    have: Annotated[dict[Id, HaveText], Meta(max_length=HAVE_ROOMS_MAX)] = {}
    wait: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0
    limit: Annotated[int, Meta(ge=1, le=LIST_LIMIT_MAX)] = 100


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error as RFC 9457 wants it."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    errors: list[dict[str, str]] = []
