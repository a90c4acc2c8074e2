"""The calls of the HTTP API, typed: one method each."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from tidings import wire
from tidings.client.backoff import Backoff
from tidings.client.problems import Problem, Unreachable, problem_of_reply

if TYPE_CHECKING:
    from tidings.client.device import Device, Way

T = TypeVar("T")

DEADLINE_S = 10.0
"""For one call, all its attempts and waits included; a call may name another."""
ATTEMPTS_MAX = 4
"""Of a call that may safely be made again."""
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
POLL_MARGIN_S = 10.0
"""How much longer than the service's own wait a poll waits for its answer."""

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _decoded(raw: bytes, kind: type[T] | None) -> T:
    """The reply; None where none is asked for (the type says otherwise, to spare all others
    a cast)."""
    return None if kind is None else _decoder(kind).decode(raw)  # type: ignore


def new_client_id() -> str:
    """A `client_id` that nobody else makes: 128 random bits."""
    return secrets.token_hex(16)


class Client:
    """One credential's view of a service: an API key's or a session's.

    Every call has a deadline (`deadline_s`, all attempts together). A call that failed on the way
    or that the service could not answer just now is made again, at most ATTEMPTS_MAX times with
    full jitter, if that can do no harm: it changes nothing when made twice, or carries a
    `client_id`, or was refused before anything was done. Raises `Problem` where the service
    answered with one, and `Unreachable` where no answer came.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.url = URL(url.rstrip("/"))
        self.token = token
        self._deadline_s = deadline_s
        self._session = session
        self._is_own_session = session is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that the client opened itself."""
        if self._session is not None and self._is_own_session:
            await self._session.close()
        self._session = None

    def as_session(self, token: str) -> Client:
        """The same service seen by another credential, over the same connections."""
        return Client(str(self.url), token, deadline_s=self._deadline_s, session=self.connections())

    def connections(self) -> aiohttp.ClientSession:
        """The pool of connections, opened when it is first needed."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=True
            )
        return self._session

    def headers(self) -> dict[str, str]:
        """The headers that say who is calling."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def live(
        self,
        *,
        way: Way = "websocket",
        since: str | None = None,
        inbox_rooms_max: int = 100,
    ) -> Device:
        """A device of this session: see `tidings.client.device.Device`."""
        from tidings.client.device import Device

        return Device(self, way=way, since=since, inbox_rooms_max=inbox_rooms_max)

    # Who is calling

    async def me(self) -> wire.Me:
        """The caller with their totals."""
        return await self._call("GET", "/v1/me", wire.Me)

    async def badge(self) -> wire.Badge:
        """The caller's totals."""
        return await self._call("GET", "/v1/badge", wire.Badge)

    async def queue(self) -> wire.Queue:
        """For managers: how many support rooms wait unassigned."""
        return await self._call("GET", "/v1/queue", wire.Queue)

    async def create_session(
        self,
        user_id: str | None = None,
        *,
        jwt: str | None = None,
        publishable_key: str | None = None,
        device: wire.Device | None = None,
    ) -> wire.NewSession:
        """A session with its token. Not retried: each call makes another one."""
        body = wire.CreateSession(user_id, jwt, publishable_key, device or wire.Device())
        return await self._call("POST", "/v1/sessions", wire.NewSession, body, is_repeatable=False)

    async def sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> wire.SessionList:
        """The caller's devices."""
        query = {"limit": limit, "cursor": cursor}
        return await self._call("GET", "/v1/sessions", wire.SessionList, query=query)

    async def revoke_session(self, session_id: str) -> None:
        """Sign a device out; its connections close."""
        await self._call("DELETE", f"/v1/sessions/{session_id}", None)

    # People

    async def create_user(
        self,
        name: str,
        role: wire.Role,
        *,
        user_id: str | None = None,
        email: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> wire.User:
        """A user; with the id of one that exists, that one unchanged."""
        body = wire.CreateUser(role, name, user_id, email, dict(attributes or {}))
        return await self._call(
            "POST", "/v1/users", wire.User, body, is_repeatable=user_id is not None
        )

    async def user(self, user_id: str) -> wire.User:
        """A user, as far as the caller may know them."""
        return await self._call("GET", f"/v1/users/{user_id}", wire.User)

    async def patch_user(self, user_id: str, changes: wire.PatchUser) -> wire.User:
        """Change what `changes` names."""
        return await self._call("PATCH", f"/v1/users/{user_id}", wire.User, changes)

    async def delete_user(self, user_id: str, *, erase: bool = False) -> None:
        """Deactivate a user; with `erase` take away everything personal as well."""
        query = {"erase": "true" if erase else None}
        await self._call("DELETE", f"/v1/users/{user_id}", None, query=query)

    async def users(
        self,
        *,
        role: wire.Role | None = None,
        online: bool | None = None,
        q: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> wire.UserList:
        """A page of users."""
        query = {"role": role, "online": online, "q": q, "limit": limit, "cursor": cursor}
        return await self._call("GET", "/v1/users", wire.UserList, query=query)

    # Rooms

    async def create_room(
        self,
        kind: wire.RoomKind,
        *,
        members: Sequence[str] = (),
        title: str | None = None,
        room_id: str | None = None,
        scope: wire.Scope | None = None,
        history: wire.History = "full",
        about: str | None = None,
    ) -> wire.Room:
        """A room. A direct room, or one of a given id, that exists already is the answer."""
        body = wire.CreateRoom(kind, room_id, title, scope, history, about, list(members))
        is_repeatable = kind == "direct" or room_id is not None
        return await self._call("POST", "/v1/rooms", wire.Room, body, is_repeatable=is_repeatable)

    async def rooms(
        self,
        *,
        kind: wire.RoomKind,
        status: wire.Status | None = None,
        assignee_id: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> wire.RoomList:
        """For managers: support conversations, or the public team rooms."""
        query = {
            "kind": kind,
            "status": status,
            "assignee_id": assignee_id,
            "tag": tag,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._call("GET", "/v1/rooms", wire.RoomList, query=query)

    async def room(self, room_id: str) -> wire.Room:
        """A room that the caller may see."""
        return await self._call("GET", f"/v1/rooms/{room_id}", wire.Room)

    async def patch_room(self, room_id: str, changes: wire.PatchRoom) -> wire.Room:
        """Change what `changes` names."""
        return await self._call("PATCH", f"/v1/rooms/{room_id}", wire.Room, changes)

    async def members(
        self, room_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> wire.MemberList:
        """A page of a room's members."""
        query = {"limit": limit, "cursor": cursor}
        return await self._call("GET", f"/v1/rooms/{room_id}/members", wire.MemberList, query=query)

    async def add_members(self, room_id: str, *user_ids: str) -> wire.MemberList:
        """Make users members; those who are already stay so."""
        one = user_ids[0] if len(user_ids) == 1 else None
        body = wire.AddMember(one, [] if one else list(user_ids))
        return await self._call("POST", f"/v1/rooms/{room_id}/members", wire.MemberList, body)

    async def remove_member(self, room_id: str, user_id: str) -> None:
        """End a membership, one's own included. Not retried: the second time there is none."""
        await self._call(
            "DELETE", f"/v1/rooms/{room_id}/members/{user_id}", None, is_repeatable=False
        )

    async def inbox(
        self,
        *,
        status: wire.Status | None = None,
        kind: wire.RoomKind | None = None,
        unread: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> wire.InboxList:
        """A page of the caller's rooms, newest activity first."""
        query = {
            "status": status,
            "kind": kind,
            "unread": "true" if unread else None,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._call("GET", "/v1/inbox", wire.InboxList, query=query)

    async def inbox_items(self, *, items_max: int = 10_000) -> AsyncIterator[wire.InboxItem]:
        """The caller's rooms, newest activity first, page by page."""
        cursor: str | None = None
        left = items_max
        while left > 0:
            page = await self.inbox(limit=min(left, wire.LIST_LIMIT_MAX), cursor=cursor)
            for item in page.items:
                yield item
            left -= len(page.items)
            cursor = page.next
            if cursor is None:
                return

    async def inbox_row(self, room_id: str) -> wire.InboxItem:
        """The caller's own row of a room, hidden or not."""
        return await self._call("GET", f"/v1/rooms/{room_id}/inbox", wire.InboxItem)

    async def mute(self, room_id: str, *, muted: bool) -> wire.InboxItem:
        """Leave a room out of the caller's total, or take it in again."""
        return await self._call(
            "PUT", f"/v1/rooms/{room_id}/mute", wire.InboxItem, wire.Mute(muted)
        )

    async def hide(self, room_id: str, *, hidden: bool = True) -> wire.InboxItem:
        """Take a room off the caller's list until something new comes, or put it back."""
        return await self._call(
            "PUT", f"/v1/rooms/{room_id}/hide", wire.InboxItem, wire.Hide(hidden)
        )

    # The log

    async def post_message(
        self,
        room_id: str,
        text: str | None = None,
        *,
        client_id: str | None = None,
        blobs: Sequence[str] = (),
        reply_to: int | None = None,
        mentions: Sequence[str] = (),
        as_user: str | None = None,
        deadline_s: float | None = None,
    ) -> wire.Entry:
        """Post a message exactly once; without a `client_id` this call makes one."""
        body = wire.PostMessage(
            client_id or new_client_id(), text, list(blobs), reply_to, list(mentions), as_user
        )
        return await self.post(room_id, body, deadline_s=deadline_s)

    async def post(
        self, room_id: str, body: wire.PostMessage, *, deadline_s: float | None = None
    ) -> wire.Entry:
        """Post a message as it is; it needs its `client_id`."""
        path = f"/v1/rooms/{room_id}/messages"
        return await self._call("POST", path, wire.Entry, body, deadline_s=deadline_s)

    async def messages(
        self,
        room_id: str,
        *,
        before: int | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> wire.EntryList:
        """Entries by sequence, ascending; without bounds the newest."""
        query = {"before": before, "after": after, "limit": limit}
        return await self._call("GET", f"/v1/rooms/{room_id}/messages", wire.EntryList, query=query)

    async def missing_messages(
        self, room_id: str, have: str, *, limit: int | None = None
    ) -> wire.EntryList:
        """The entries that are not among those one has, such as `1-97,105`, ascending."""
        query = {"have": have, "limit": limit}
        return await self._call("GET", f"/v1/rooms/{room_id}/messages", wire.EntryList, query=query)

    async def edit_message(self, room_id: str, seq: int, text: str) -> wire.Entry:
        """Give one's own message another text. Not retried: each time leaves an entry."""
        return await self._call(
            "PATCH",
            f"/v1/rooms/{room_id}/messages/{seq}",
            wire.Entry,
            wire.EditMessage(text),
            is_repeatable=False,
        )

    async def delete_message(self, room_id: str, seq: int) -> wire.Entry:
        """Delete a message."""
        return await self._call("DELETE", f"/v1/rooms/{room_id}/messages/{seq}", wire.Entry)

    async def react(self, room_id: str, seq: int, emoji: str) -> wire.Entry:
        """Give a reaction; a second time changes nothing."""
        path = f"/v1/rooms/{room_id}/messages/{seq}/reactions/{quote(emoji, safe='')}"
        return await self._call("PUT", path, wire.Entry)

    async def take_reaction_back(self, room_id: str, seq: int, emoji: str) -> wire.Entry:
        """Take a reaction back."""
        path = f"/v1/rooms/{room_id}/messages/{seq}/reactions/{quote(emoji, safe='')}"
        return await self._call("DELETE", path, wire.Entry)

    async def read(self, room_id: str, seq: int) -> wire.ReadReply:
        """Move the caller's read mark forward to that sequence."""
        return await self._call(
            "PUT", f"/v1/rooms/{room_id}/read", wire.ReadReply, wire.MarkRead(seq)
        )

    async def readers(self, room_id: str) -> wire.ReaderList:
        """How far the others in a small room have read; to customers they are one reader."""
        return await self._call("GET", f"/v1/rooms/{room_id}/readers", wire.ReaderList)

    async def typing(self, room_id: str) -> None:
        """Tell those who are looking that the caller types. Never retried."""
        await self._call("POST", f"/v1/rooms/{room_id}/typing", None, is_repeatable=False)

    # Files and pushes

    async def create_blob(self, name: str, media_type: str, size: int) -> wire.NewBlob:
        """Begin to send a file; `tidings.client.upload` does the rest, too."""
        body = wire.CreateBlob(name, media_type, size)
        return await self._call("POST", "/v1/blobs", wire.NewBlob, body)

    async def blob_link(
        self, blob_id: str, *, room_id: str | None = None, thumbnail: bool = False
    ) -> wire.BlobLink:
        """A link to a file that needs no credential, for some minutes."""
        query = {"room_id": room_id, "thumbnail": thumbnail}
        return await self._call("GET", f"/v1/blobs/{blob_id}/link", wire.BlobLink, query=query)

    async def push_key(self) -> str:
        """The public key that browsers subscribe to pushes with."""
        return (await self._call("GET", "/v1/push", wire.PushKey)).public_key

    async def subscribe(self, session_id: str, subscription: wire.PushSubscription) -> None:
        """Let one of the caller's devices be pushed to while it is not connected."""
        await self._call("PUT", f"/v1/sessions/{session_id}/push", None, subscription)

    async def unsubscribe(self, session_id: str) -> None:
        """Push to a device no more."""
        await self._call("DELETE", f"/v1/sessions/{session_id}/push", None)

    # Updates

    async def sync(
        self,
        since: str | None = None,
        *,
        have: Mapping[str, str] | None = None,
        wait_s: float = 0,
        limit: int = wire.LIST_LIMIT_MAX,
    ) -> wire.SyncReply:
        """What happened since the cursor; naming one acknowledges everything before it."""
        body = wire.SyncRequest(since, dict(have or {}), wait_s, limit)
        deadline_s = self._deadline_s if wait_s == 0 else wait_s + POLL_MARGIN_S
        return await self._call("POST", "/v1/sync", wire.SyncReply, body, deadline_s=deadline_s)

    async def is_healthy(self) -> bool:
        """Whether the service answers at all."""
        try:
            await self._call("GET", "/healthz", None, is_repeatable=False)
        except (Problem, Unreachable):
            return False
        return True

    # How a call is made

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[T] | None,
        body: msgspec.Struct | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        is_repeatable: bool = True,
        deadline_s: float | None = None,
    ) -> T:
        url = self._address(path, query)
        data = None if body is None else _encode(body)
        backoff = Backoff(first_s=RETRY_FIRST_S, most_s=RETRY_MOST_S, random_0_1=random.random)
        failure: Problem | Unreachable = Unreachable(f"{method} {path}: no answer in time")
        try:
            async with asyncio.timeout(deadline_s or self._deadline_s) as deadline:
                for attempt in range(1, ATTEMPTS_MAX + 1):
                    try:
                        raw = await self._attempt(method, url, data)
                        return _decoded(raw, reply)
                    except Problem as problem:
                        failure = problem
                        is_harmless = is_repeatable or problem.problem_code == "rate_limited"
                        if not (problem.is_passing and is_harmless):
                            raise
                        wait_s = backoff.next_s(at_least_s=problem.retry_after_s or 0)
                    except aiohttp.ClientError as error:
                        failure = Unreachable(f"{method} {path}: {error}")
                        failure.__cause__ = error
                        if not is_repeatable:
                            break
                        wait_s = backoff.next_s()
                    ends_at = deadline.when()
                    now = asyncio.get_running_loop().time()
                    if attempt == ATTEMPTS_MAX or ends_at is None or now + wait_s >= ends_at:
                        break
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            if isinstance(failure, Problem):
                raise failure from None
            raise failure from failure.__cause__
        raise failure

    async def _attempt(self, method: str, url: URL, data: bytes | None) -> bytes:
        headers = self.headers()
        if data is not None:
            headers["Content-Type"] = "application/json"
        async with self.connections().request(
            method,
            url,
            data=data,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            raw = await response.read()
            if response.status >= 300:
                raise problem_of_reply(response.status, raw, response.headers.get("Retry-After"))
            return raw

    def _address(self, path: str, query: Mapping[str, Any] | None) -> URL:
        named = {
            name: ("true" if value else "false") if isinstance(value, bool) else str(value)
            for name, value in (query or {}).items()
            if value is not None
        }
        return URL(f"{self.url}{path}", encoded=True).with_query(named)
