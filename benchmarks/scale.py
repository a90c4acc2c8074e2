"""The tables of `docs/scale.md`: what the load of the published systems asks of DynamoDB.

`python -m benchmarks.scale` prints them; nothing here is measured, and all of it is made again to
the letter. Units of single operations are those of `docs/costs.md`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from benchmarks.model import (
    ITEM_S,
    KEY_UNITS_PER_S,
    ROUND_TRIP_S,
    SENDERS,
    TRANSACTION_S,
    Manager,
    Outcome,
    Plain,
    Room,
    World,
)
from tidings.cli.bills import BYTES_PER_GB
from tidings.storage.interface import WRITE_ITEMS_MAX, Item
from tidings.storage.prices import latest_prices
from tidings.storage.sizes import item_bytes

MESSAGES_PER_MONTH = 400_000_000
REQUESTS_PER_S = 5_000
INBOX_ROWS = 240_000_000
COMPANIES = 150_000
MONTH_S = 30 * 86_400
PEAK_TIMES = 5
"""ASSUMED: how far the busiest minute is above the average."""
ITEM_OVERHEAD_BYTES = 100
"""What storage is charged for besides each item, and each entry of an index."""
NEW_TABLE_UNITS_PER_S = 4_000
"""Write units that a new on-demand table takes at once."""
MEMBERS_INLINE_MAX = 24
ROOMS_TOGETHER = 16
"""Rooms of two that share a member, in one transaction."""
GROUP_COMMIT_MESSAGES = 20_000
SEED = 20261123


class Line(msgspec.Struct, frozen=True):
    """An operation of the load: how often, and its units with index writes once and doubled."""

    what: str
    per_month: float
    write_units: float = 0
    write_units_doubled: float = 0
    read_units: float = 0


REQUESTS = REQUESTS_PER_S * MONTH_S
_READS = REQUESTS - 1.5 * MESSAGES_PER_MONTH
LOAD = (
    Line("messages in rooms of two", MESSAGES_PER_MONTH, 18, 22),
    Line("… half of them the first in their room and minute", MESSAGES_PER_MONTH / 2, 2, 4),
    Line("a read mark for every second message", MESSAGES_PER_MONTH / 2, 6, 8),
    Line("pages of an inbox, a tenth of the other requests", _READS * 0.1, read_units=28),
    Line("pages of 25 entries, a tenth", _READS * 0.1, read_units=4),
    Line("badges, two tenths", _READS * 0.2, read_units=1),
    Line("polls with nothing new, six tenths", _READS * 0.6, read_units=2),
    Line("who calls, at most", REQUESTS, read_units=2),
)


INBOX_ROW: Item = {
    "user": "acme#usr_01JD0000000000000000000000",
    "room_id": "room_01JD0000000000000000000000",
    "kind": "support",
    "unread": 3,
    "mentions": 0,
    "read_seq": 120,
    "counted_seq": 123,
    "joined_seq": 1,
    "preview": "x" * 90,
    "preview_seq": 123,
    "active_at": 1_767_225_612_345,
    "feed": 45_678,
    "unread_feed": 45_671,
    "marks": " ".join(["45671:11234"] * 24),
}
"""One with as many marks as a row ever has."""
ENTRY: Item = {
    "room": "acme#room_01JD0000000000000000000000",
    "seq": 123,
    "id": "ent_01JD0000000000000000000000",
    "type": "text",
    "sender_id": "usr_01JD0000000000000000000000",
    "client_id": "01JD0000-0000-0000-0000-000000000000",
    "text": "x" * 180,
    "created_at": 1_767_225_612_345,
}
RECEIPT: Item = {
    "room": ENTRY["room"],
    "receipt": f"{ENTRY['sender_id']}#{ENTRY['client_id']}",
    "seq": 123,
    "body_hash": "0" * 32,
    "expires_at": 1_769_817_612,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, whose columns are right-aligned but for the first."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prices() -> str:
    """What the load costs in a month."""
    known = latest_prices()
    rows, sums = [], [0.0, 0.0]
    for line in LOAD:
        reads = line.per_month * line.read_units / 1e6 * known.read_units_per_million
        costs = [
            reads + line.per_month * units / 1e6 * known.write_units_per_million
            for units in (line.write_units, line.write_units_doubled)
        ]
        sums = [total + cost for total, cost in zip(sums, costs, strict=True)]
        writes = f"{line.write_units:g} · {line.write_units_doubled:g}" if line.write_units else ""
        rows.append(
            [
                line.what,
                f"{line.per_month / 1e6:,.0f}",
                writes,
                f"{line.read_units:g}" if line.read_units else "",
                _dollars(costs),
            ]
        )
    rows.append(["**together**", "", "", "", f"**{_dollars(sums)}**"])
    head = ["on demand", "millions a month", "write units each", "read units each", "$ a month"]
    return table(head, rows)


def _dollars(costs: Sequence[float]) -> str:
    one, doubled = (f"{cost:,.0f}" for cost in costs)
    return one if one == doubled else f"{one} · {doubled}"


def storage() -> str:
    """What is stored, and what that costs in a month."""
    found = (
        (f"{INBOX_ROWS / 1e6:.0f} million inbox rows", INBOX_ROWS, item_bytes(INBOX_ROW)),
        ("… and each again in `by_feed`", INBOX_ROWS, item_bytes(INBOX_ROW)),
        ("entries, for each month that they are kept", MESSAGES_PER_MONTH, item_bytes(ENTRY)),
        ("receipts of the last 30 days", MESSAGES_PER_MONTH, item_bytes(RECEIPT)),
    )
    rows = []
    for what, number, size_bytes in found:
        gigabytes = number * (size_bytes + ITEM_OVERHEAD_BYTES) / BYTES_PER_GB
        cost = gigabytes * latest_prices().storage_gb_per_month
        rows.append([what, f"{size_bytes}", f"{gigabytes:,.0f}", f"{cost:,.0f}"])
    return table(["stored", "bytes each", "GB", "$ a month"], rows)


def tables() -> str:
    """How many write units each table takes, on average and in the busiest minute."""
    average = MESSAGES_PER_MONTH / MONTH_S
    spent = (
        ("`inboxes`, with its local indexes", 8, 12),
        ("`badges`", 4, 4),
        ("`entries`", 2, 2),
        ("`receipts`", 2, 2),
        ("`rooms`", 2, 2),
    )
    rows = []
    for name, units, doubled in spent:
        peak = [average * PEAK_TIMES * each for each in (units, doubled)]
        rows.append(
            [
                name,
                _range(units, doubled),
                _range(average * units, average * doubled),
                _range(*peak),
                f"{peak[1] / NEW_TABLE_UNITS_PER_S:.1f}",
            ]
        )
    head = [
        f"{average:,.0f} messages/s, {average * PEAK_TIMES:,.0f} at the peak",
        "units a message",
        "units/s",
        "at the peak",
        "of what a new table takes",
    ]
    return table(head, rows)


def _range(low: float, high: float) -> str:
    return f"{low:,.0f}" if low == high else f"{low:,.0f} · {high:,.0f}"


def shares() -> str:
    """What the busiest key of each kind gets, if activity is distributed as Zipf found."""
    peak = MESSAGES_PER_MONTH / MONTH_S * PEAK_TIMES
    found = (
        ("a room, of 10 million", 10_000_000, 2, 2, "`entries`"),
        ("a manager, of 750,000", 750_000, 4, 6, "`inboxes`"),
        ("a bot in all rooms of a company, of 150,000", COMPANIES, 4, 6, "`inboxes`"),
        ("a bot in every room, if all is one workspace", 1, 4, 6, "`inboxes`"),
    )
    rows = []
    for who, number, units, doubled, name in found:
        share = 1 / harmonic(number)
        rate = peak * share
        rows.append(
            [
                who,
                f"{share:.1%}",
                f"{rate:,.0f}",
                name,
                _range(rate * units, rate * doubled),
                f"{max(1, rate * doubled / KEY_UNITS_PER_S):.1f} ×"
                if rate * doubled > KEY_UNITS_PER_S
                else f"{rate * doubled / KEY_UNITS_PER_S:.0%}",
            ]
        )
    head = ["the busiest of its kind", "of all", "messages/s at the peak", "its key in"]
    return table([*head, "units/s", "of a key's limit"], rows)


def harmonic(number: int) -> float:
    """1 + 1/2 + … + 1/number: what Zipf's shares are divided by."""
    return sum(1 / rank for rank in range(1, number + 1))


def group_commits() -> str:
    """What messages to one room cost as they come faster, if they come by chance."""
    rows = []
    for members, rates in ((2, (1, 20, 100, 300, 500)), (MEMBERS_INLINE_MAX, (1, 20, 100, 300))):
        most = (WRITE_ITEMS_MAX - 1 - 2 * members) // 2
        for rate in rates:
            batch, delay_s = _group_commit(members, rate, most)
            fixed = 2 + 4 * members
            units = [4 + (fixed + index * members) / batch for index in (2, 4)]
            rows.append(
                [
                    f"{members}",
                    f"{rate:,}",
                    f"{batch:.1f}",
                    f"{1 / batch:.2f}",
                    _range(*units),
                    f"{delay_s * 1000:.0f}",
                ]
            )
    head = ["members", "messages/s", "in a commit", "requests each", "write units each"]
    return table([*head, "ms until durable"], rows)


def _group_commit(members: int, rate: float, most: int) -> tuple[float, float]:
    """(messages in a commit, mean seconds until one is durable) in a room of that rate."""
    chance = random.Random(SEED)
    arrivals: list[float] = []
    at = 0.0
    for _ in range(GROUP_COMMIT_MESSAGES):
        at += chance.expovariate(rate)
        arrivals.append(at)
    free_at, taken, commits, delays = 0.0, 0, 0, 0.0
    while taken < len(arrivals):
        start = max(free_at, arrivals[taken])
        batch = 0
        while batch < most and taken + batch < len(arrivals) and arrivals[taken + batch] <= start:
            batch += 1
        items = 1 + 2 * members + 2 * batch
        free_at = start + ROUND_TRIP_S + TRANSACTION_S + ITEM_S * items
        delays += sum(free_at - arrival for arrival in arrivals[taken : taken + batch])
        taken += batch
        commits += 1
    return taken / commits, delays / taken


def hot_spots() -> str:
    """The scenes of the benchmark on the model of DynamoDB."""
    crowd = [f"m{number}" for number in range(50)]
    senders = [f"m{number % 50} {number}" for number in range(SENDERS)]
    rows: list[tuple[str, Outcome]] = []

    def others(sender: str) -> Sequence[str]:
        return [member for member in crowd if member != sender.split()[0]]

    rows.append(("room of 50: the plain way", Plain(World(SEED), senders, others).outcome()))
    rows.append(("room of 50: Tidings", Room(World(SEED), 50).outcome()))
    rows.append(
        (
            "room of 50: Tidings, were a key not limited",
            Room(World(SEED, has_key_limit=False), 50).outcome(),
        )
    )
    customers = [f"c{number}" for number in range(SENDERS)]
    plain = Plain(World(SEED), customers, lambda _: ["manager"])
    rows.append(("manager in 200 rooms: the plain way", plain.outcome()))
    for name, units in (("counted once", 4), ("doubled", 6)):
        outcome = Manager(World(SEED), ROOMS_TOGETHER, units).outcome()
        rows.append((f"manager in 200 rooms: Tidings, index writes {name}", outcome))
    outcome = Manager(World(SEED, has_key_limit=False), ROOMS_TOGETHER, 4).outcome()
    rows.append(("manager in 200 rooms: Tidings, were a key not limited", outcome))
    head = ["200 sends in flight", "messages/s", "requests each", "conflicts each"]
    return table(
        [*head, "throttled each"],
        [
            [
                name,
                f"{found.messages_per_s:,.0f}",
                f"{found.requests:.2f}",
                f"{found.conflicts:.2f}",
                f"{found.throttled:.2f}",
            ]
            for name, found in rows
        ],
    )


def provisioned_share() -> float:
    """Price of a write unit of provisioned capacity that is used fully, to one on demand."""
    known = latest_prices()
    return known.write_capacity_per_hour / 3_600 * 1e6 / known.write_units_per_million


TABLES = (prices, storage, tables, shares, group_commits, hot_spots)

if __name__ == "__main__":
    print("\n\n".join(each() for each in TABLES))
    print(f"\nprovisioned, fully used: {provisioned_share():.2f} of the price on demand")
