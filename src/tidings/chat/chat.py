"""The chat, composed: rooms, messages and inboxes over one place where rooms change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tidings.chat.attachments import Attachable, no_blobs
from tidings.chat.commits import Commits
from tidings.chat.erasures import Erasures
from tidings.chat.inboxes import Inboxes
from tidings.chat.messages import Messages
from tidings.chat.readers import Readers
from tidings.chat.rooms import Rooms, all_are_stored
from tidings.chat.updates import Publish, Signal, SignalApart
from tidings.chat.waiting import SignalRole, Waiting
from tidings.clock import Clock
from tidings.cluster.cluster import Cluster
from tidings.cursors import Cursors
from tidings.ids import IdMaker
from tidings.people.callers import Caller
from tidings.people.users import Users
from tidings.storage.interface import Store


class Chat:
    """Makes and holds everything of rooms. What the other parts do comes as callables.

    `publish(workspace, updates)` tells what a commit changed, `signal(workspace, users, frame)`
    sends what is not stored, `signal_role(workspace, roles, frame)` the same to users by role, and
    `signal_apart(workspace, users, frame, customers_frame)` something less to customers;
    `ensure_stored(caller)` stores an anonymous customer who opens a room (async), `attachable`
    looks up the blobs that a message links to. `cluster` is this node among others, started and
    stopped by whoever made it; where it is left out, one of its own that the others don't see.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        cursors: Cursors,
        users: Users,
        publish: Publish,
        signal: Signal,
        *,
        cluster: Cluster | None = None,
        signal_role: SignalRole | None = None,
        signal_apart: SignalApart | None = None,
        ensure_stored: Callable[[Caller], Awaitable[None]] = all_are_stored,
        attachable: Attachable = no_blobs,
    ) -> None:
        self.cluster = cluster = cluster or Cluster(store, clock, ids)
        self.commits = Commits(store, clock, publish, cluster.nodes)
        self.inboxes = Inboxes(store, cursors, users)
        self.waiting = Waiting(store, clock, ids, self.commits, cluster.schedule, signal_role)
        self.commits.on_room_changed = self.waiting.on_room_changed
        self.readers = Readers(store, self.commits, signal_apart)
        self.messages = Messages(
            store, clock, ids, users, self.commits, attachable, self.readers.on_read
        )
        self.erasures = Erasures(store, clock, users, self.commits, cluster.leases)
        self.rooms = Rooms(
            store,
            clock,
            ids,
            cursors,
            users,
            self.commits,
            self.inboxes,
            self.waiting,
            signal,
            ensure_stored,
        )

    async def start(self) -> None:
        """Go on with what a crash or a stop left open."""
        await self.commits.start()
        self.erasures.start()

    async def stop(self) -> None:
        """Take nothing new and finish what waits. Also where nothing was started."""
        self.readers.stop()
        await self.erasures.stop()
        await self.waiting.stop()
        await self.commits.stop()

    async def shares_room(self, workspace: str, user_id: str, other_id: str) -> bool:
        """Whether two users are members of one room."""
        return await self.inboxes.shares_room(workspace, user_id, other_id)

    async def erase(self, workspace: str, user_id: str) -> None:
        """Start to erase what a user who was marked left in rooms."""
        await self.erasures.begin(workspace, user_id)
