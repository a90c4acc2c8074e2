"""People, composed: workspaces, users, and the credentials by which they call."""

from __future__ import annotations

from tidings.clock import Clock
from tidings.cursors import Cursors
from tidings.ids import IdMaker
from tidings.people.credentials import (
    Credentials,
    FirstCursor,
    OnlineSessions,
    OnRevoked,
    no_device_connected,
    no_first_cursor,
    nobody_to_tell,
)
from tidings.people.directory import Directory
from tidings.people.limits import DEFAULT_POLICY, Policy, RateLimits
from tidings.people.users import (
    Erase,
    SharesRoom,
    Users,
    WhoIsOnline,
    leave_to_others,
    nobody_online,
    shares_no_room,
)
from tidings.people.workspaces import Workspaces
from tidings.storage.interface import Store


class People:
    """Makes and holds everything of people. What the other parts know comes as callables, which
    are called only while a request is answered, so they may name parts that are made later.

    `shares_room(workspace, a, b)`: whether two users are members of one room (async);
    `who_is_online(workspace, users)` and `online_sessions(workspace, user)`: connected now (async);
    `erase(workspace, user)`: start to erase what a user left in rooms (async);
    `on_revoked(workspace, user, session | None)`: close the connections of a session or a user;
    `first_cursor(workspace, user)`: where the queue of a new session starts (async).
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        cursors: Cursors,
        *,
        policy: Policy | None = DEFAULT_POLICY,
        shares_room: SharesRoom = shares_no_room,
        who_is_online: WhoIsOnline = nobody_online,
        online_sessions: OnlineSessions = no_device_connected,
        erase: Erase = leave_to_others,
        on_revoked: OnRevoked = nobody_to_tell,
        first_cursor: FirstCursor = no_first_cursor,
    ) -> None:
        self.limits = RateLimits(policy)
        self.workspaces = Workspaces(store, clock, ids)
        directory = Directory(store, clock)
        self.credentials = Credentials(
            store,
            clock,
            ids,
            cursors,
            self.workspaces,
            directory,
            self.limits,
            on_revoked=on_revoked,
            first_cursor=first_cursor,
            online_sessions=online_sessions,
        )
        self.users = Users(
            store,
            clock,
            ids,
            cursors,
            directory,
            self.credentials,
            shares_room=shares_room,
            who_is_online=who_is_online,
            erase=erase,
        )
