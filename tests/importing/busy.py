"""A workspace in which everything that is stored has happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.chat.company import ADA, CARL, CLEO, KEY, MAX, MIA, Company
from tests.people.clocks import FakeClock
from tidings import wire
from tidings.chat.attachments import ABOUT, STORED, plan_holding
from tidings.clock import rfc3339
from tidings.storage.interface import Put, Store
from tidings.storage.tables import BLOBS, blob_key

CROWD = 30
"""Members of the large room besides those that it is made with: more than go along inline."""


@asynccontextmanager
async def working(store: Store, clock: FakeClock) -> AsyncIterator[Company]:
    """A company over a store that holds its workspace, or none yet."""
    made = Company(store, clock)
    try:
        yield made
    finally:
        await made.chat.stop()


async def live_through(acme: Company) -> None:
    """Make every kind of room, entry, mark and leave."""
    await acme.people.workspaces.update(
        "acme", allowed_origins=["https://acme.example"], jwt=("HS256", "s" * 64)
    )
    crowd = [f"crowd{number:02}" for number in range(CROWD)]
    await acme.add_users(dict.fromkeys(crowd, "manager"))
    await acme.people.users.patch(
        KEY, "cleo", wire.PatchUser(attributes={"plan": "pro", "seats": 2.0, "nested": {"b": [1]}})
    )
    direct = (await acme.open("direct", "max", "mia")).id
    asked, _ = await acme.rooms.create(CLEO, wire.CreateRoom(kind="support", title="Help"))
    support = asked.id
    town = (await acme.open("group", "ada", "max", "mia", *crowd, id="town", scope="public")).id
    small = (await acme.open("group", "ada", "max", "mia", id="small", title="Zürich ☃")).id
    for number in range(7):
        acme.clock.forward(1)
        await acme.say(MAX, direct, f'Line {number}\n\t"quoted" é')
        await acme.say(ADA, town, f"News {number}", mentions=["max"])
    first = await acme.say(CLEO, support, "My parcel?")
    await acme.say(MIA, support, "Let me see", reply_to=first.seq)
    await acme.rooms.patch(
        ADA, support, wire.PatchRoom(snoozed_until=rfc3339(acme.clock() + 86_400_000))
    )
    said = [await acme.say(MAX, small, f"Number {number}", mentions=["mia"]) for number in range(9)]
    await acme.messages.edit(MAX, small, said[2].seq, wire.EditMessage(text="Number two"))
    await acme.messages.delete(MAX, small, said[8].seq)
    await acme.messages.react(MIA, small, said[3].seq, "👍", is_given=True)
    await acme.messages.react(ADA, small, said[3].seq, "👍", is_given=True)
    await acme.messages.read(MIA, small, said[4].seq)
    await acme.messages.read(MAX, town, 3)
    await acme.rooms.mute(ADA, small, muted=True)
    await acme.rooms.remove_member(MAX, town, "max")
    await acme.rooms.add_members(KEY, town, wire.AddMember(user_id="max"))
    await acme.rooms.remove_member(MIA, small, "mia")
    await acme.rooms.add_members(KEY, town, wire.AddMember(user_id="robo"))
    await acme.open("direct", "ada", "mia")
    await acme.rooms.create(CARL, wire.CreateRoom(kind="support"))
    await _keep_files(acme)
    await acme.chat.commits.settle()


async def _keep_files(acme: Company) -> None:
    """Rows of a file that an entry holds, of one that waits for an entry, and for its bytes."""
    about = {"place": ABOUT, "uploader_id": "max", "name": "plan.pdf", "type": "application/pdf",
             "size": 7, "created_at": acme.clock()}  # fmt: skip
    kinds = {"held": (STORED, 1), "free": (STORED, 0), "none": ("waiting", 0)}
    for blob_id, (state, attached) in kinds.items():
        key = blob_key("acme", blob_id)
        await acme.store.write(
            Put(BLOBS, about | {"blob": key, "state": state, "attached": attached})
        )
    await acme.store.write(plan_holding("acme", "small", 1, "held"))
