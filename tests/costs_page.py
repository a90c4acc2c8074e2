"""docs/costs.md from what `tests.costs` measures. `python -m tests.costs_page` writes it anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.costs import SIZES, Book, Figure, Line, Share, measure

PAGE = Path(__file__).parents[1] / "docs" / "costs.md"

HEAD = """\
# What every call costs

Measured, not estimated: `make costs` starts the service on a scratch store, makes every call of \
the API, and writes this page from the meter (`storage/metered.py`), which applies the rules that \
AWS publishes. A test compares the page with the meter, so no figure moves unseen. The same \
figures come with every reply, in `Tidings-Cost`; `Tidings-Cost-Source` says whether the store \
reported them (`consumed`, on AWS) or the meter worked them out (`metered`, everywhere else). \
`tidings cost` turns them into money.

A cell is **read units / write units / requests** to the store. AWS does not publish whether the \
writes of indexes count twice in a transaction, as those of items do. Write units have them \
counted once, and in brackets doubled where that differs. `Tidings-Cost` is the cautious one, \
doubled; which it is can be seen on AWS alone.

Rooms and their members' rows are in memory, as they are in a running service; the caller was \
seen a moment ago; everybody else was not seen for 1.5 s, and is read where needed. A \
message has 174 characters and nobody is mentioned.
"""

ONE_TO_ONE = """\
## A message between two: where each unit goes

An item in a transaction is two write units for each KB that is begun. The message itself, its \
receipt and the room's head are one item each; each of the two people has an inbox row and a \
badge. `by_feed` orders an inbox by newest activity, and each message makes its room the newest: \
the index entry goes in one place and comes in another. `by_unread` holds rooms with something \
unread, and changes when that begins and ends. `by_listing` orders the support rooms of a \
workspace, kept to the minute.
"""

NOTES = """\
*After a pause* is the dearest case: the other one had read everything, and in a support room a \
new minute has begun. A direct room is within 19 units always; a support room within 18, and 21 \
for a message that both begins a minute and is the first unread one. A sender who writes three \
messages in a row, or a room with more than one message a minute, comes near to 18.

Every inbox row, badge and room weighs less than 1 KB, which is what keeps each at two units: a \
row carries at most 24 marks of the reader's position (some 340 bytes in a long life) and a \
preview of 120 characters. A row with a full set of marks whose preview is 120 emoji is the one \
that goes beyond.

### What was done to lower it
- The index of support rooms holds a room's place and what lists are filtered by, not the room. \
It held the head, so each message rewrote the entry: one unit (two doubled) less for every \
message in a support room, and no partition of the listing is written more than once a minute for \
a room. A page of 25 rooms reads the rooms by key instead: 25 read units, the price of five \
write units.
- An inbox row carries its marks as one short text, so that it stays in its first KB.
- Messages that wait for a room go together: k messages are k entries and receipts, but one head \
and one row and badge for each member.

### What was not done
- **Keeping the order of a user's few first rooms in the badge**, which is written anyway, \
instead of in `by_feed`: two units less for each member with few rooms (14 for a message between \
two). The rows of these rooms would lag behind in the index, so inbox pages, catch-ups, the audit \
and its repairs would each have to merge two sources, and invariant 7 would rest on the order of \
two reads. It is the next step where the price of one-to-one chat decides.
- **Leaving the room's head to the log** (an entry that must be absent is a fence as well): two \
units less. But founders and erasures change the epoch without an entry, and a check of the epoch \
costs the same two units; every list would need a query a room to know its head.
- **Receipts inside entries**: the key of an entry is its sequence, and exactly-once needs a key \
that is made of the client's id.
- **Single writes instead of a transaction**: half the units, and no invariant.
- **Asking for the receipt before each message**: a repeated message is refused by the \
transaction, which is charged all the same. A read more for each message would pay from 1.4% \
repeated ones on.
- **An index `by_feed` of keys alone**: a read mark would cost one unit less, and each inbox page \
a read unit more for each row; that breaks even at five marks a page.
"""

BY_SIZE = """\
## Calls in a room, by its members

Up to 24 members everything goes in one transaction. In a larger room the message is durable and \
answered at the price in the table, and the members' rows and badges follow in chunks of 50; what \
they cost is in the lines *with all that follows*. One pass covers all messages that came \
meanwhile, so that in a busy room they share it.
"""

OTHERS = """\
## All other calls

Sockets, streams and polls read what a catch-up reads when they open, and nothing while they \
wait. A message sent over a socket costs what the call costs; so does a read mark.
"""

FOOT = """\
## How it is counted

- Reads: a unit for each 4 KB that is begun, half where an old answer will do; a query adds up \
its items first. Writes: a unit for each KB of the larger of before and after, two in a \
transaction; a single write is one of its own where sending it twice is the same as once. An \
index entry that comes, goes or changes is one write, one that changes its place \
two; its size is that of what the index holds.
- Requests are those that DynamoDB takes: 100 items in a transaction or a batch of reads, 25 in a \
batch of writes, 1 MB in a page.
- Refused writes are charged like the others, but for their indexes.
- The meter knows what a write replaces by remembering what was read and written through it, \
10,000 items at most; it asks the store only about an item that it does not know. On the embedded \
store, where asking is cheap, a write that nobody meters makes it forget. On a store over a \
network the price of a message costs no request. A figure can be off where another node changed an \
item since: by a KB that was begun or by an index entry that was there already. \
Commits read such items anew, since their conditions fail.
- On AWS the units are those that the answers report. A refused write reports none, so the price \
of a reply leaves it out there.
- The beats of nodes, leases, schedules and expired items are not part of any call.
"""


def render(book: Book) -> str:
    """The page."""
    by_size = _table(
        ["call", "", *(f"{size:,}" for size in SIZES)],
        (
            [f"`{line.call}`", line.what, *(_cell(line.figures.get(size)) for size in SIZES)]
            for line in book.by_size
        ),
    )
    others = _table(
        ["call", "", "reads / writes / requests"],
        ([_call(line), line.what, _cell(line.figures[0])] for line in book.others),
    )
    parts = [HEAD, ONE_TO_ONE, _shares(book.shares), NOTES, BY_SIZE, by_size, OTHERS, others, FOOT]
    return "\n".join(parts)


def _call(line: Line) -> str:
    return f"`{line.call}`" if "/" in line.call else line.call


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    writes = _writes(figure.writes, figure.writes_doubled)
    return f"{figure.reads:,g} / {writes} / {figure.requests}"


def _writes(once: float, doubled: float) -> str:
    return f"{once:,g}" if once == doubled else f"{once:,g} ({doubled:,g})"


def _shares(shares: Sequence[Share]) -> str:
    places = sorted({place for share in shares for place in share.places})
    rows = [
        [place, *(_writes(*share.places.get(place, (0, 0))) for share in shares)]
        for place in places
    ]
    rows.append(["**together**", *(f"**{_writes(*share.total)}**" for share in shares)])
    return _table(["write units", *(share.name for share in shares)], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measured_page() -> tuple[Book, str]:
    """Measure on a scratch store: the figures, and the page that tells them."""
    with TemporaryDirectory(prefix="tidings-costs-") as folder:
        book = asyncio.run(measure(Path(folder)))
    return book, render(book)


if __name__ == "__main__":
    PAGE.write_text(measured_page()[1])
