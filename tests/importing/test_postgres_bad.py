"""What is wrong with a source is said clearly, and what can be taken is taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from tests.importing.scene import Scene, scene
from tests.importing.shop import TABLES, Application, Shop
from tests.postgres_server import PostgresServer, needs_postgres, running_postgres
from tidings.errors import Conflict, Unavailable, ValidationFailed
from tidings.importing import postgres, postgres_changes
from tidings.importing.postgres import Source, looked_up
from tidings.importing.postgres_changes import (
    Changes,
    Decodable,
    Decoded,
    Updated,
    note_change,
)
from tidings.importing.postgres_following import Following
from tidings.importing.quarantine import Quarantine
from tidings.storage.sqlite import SqliteStore

pytestmark = needs_postgres

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as made:
        yield made


@pytest.fixture
def shop(server: PostgresServer, tmp_path: Path) -> Shop:
    made = Shop(server, f"bad{next(_numbers)}", tmp_path)
    made.create(has_keys=False)
    return made


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene("sqlite", tmp_path) as made:
        yield made


async def test_a_mapping_that_does_not_fit_is_told_whole(shop: Shop) -> None:
    shop.map('text = "body"', 'text = "boddy"')
    shop.map('table = "chats"', 'table = "chat"')
    shop.map('time = "sent_at"', 'time = "sender_id"')
    with pytest.raises(ValidationFailed) as told:
        await looked_up(Source(shop.url), shop.mapping)
    assert "[messages] text: there is no column boddy; did you mean body?" in told.value.detail
    assert "[chats] there is no table chat " in told.value.detail
    assert "messages.sender_id is text, and no time" in told.value.detail


async def test_a_mapping_with_bad_sql_is_told(shop: Shop) -> None:
    shop.map('title = "title"', 'title = "title"\nwhere = "not archived"')
    with pytest.raises(ValidationFailed, match='where: column "archived" does not exist'):
        await looked_up(Source(shop.url), shop.mapping)
    shop.map('where = "not archived"', 'whare = "x"')
    with pytest.raises(ValidationFailed, match="whare"):
        _ = shop.mapping


async def test_a_source_that_is_not_there_is_told(shop: Shop) -> None:
    with pytest.raises(Unavailable, match="can't be reached"):
        await looked_up(Source(shop.server.url("nowhere")), shop.mapping)


async def test_odd_rows_are_set_aside_with_reasons(
    shop: Shop, place: Scene, tmp_path: Path
) -> None:
    shop.execute(
        "INSERT INTO people VALUES ('a', 'Ann', 'ann@x.example'), ('b', 'Ben', 'no address'),"
        " ('c d', 'Odd id', NULL), (repeat('x', 100), 'Long id', NULL)",
        "INSERT INTO chats VALUES (1, 'pair'), (2, 'pair'), (3, 'pair'), (4, 'team')",
        "INSERT INTO participants (chat_id, person_id) VALUES (1, 'a'), (1, 'b'), (1, 'b'),"
        " (2, 'b'), (2, 'a'), (3, 'a'), (4, 'c d'), (4, repeat('x', 100)), (4, 'nobody'),"
        " (9, 'a'), (NULL, 'a')",
        "ALTER TABLE messages DROP CONSTRAINT messages_pkey",
        "INSERT INTO messages (id, chat_id, sender_id, body, reply_to_id, sent_at) VALUES"
        " (1, 1, 'a', 'one', NULL, '2024-01-01'), (1, 1, 'a', 'again', NULL, '2024-01-01'),"
        " (2, 1, 'b', 'cycle', 3, '2024-01-01'), (3, 1, 'b', 'cycle', 2, '2024-01-01'),"
        " (4, 1, 'nobody', 'by nobody', NULL, '2024-01-01'), (5, 1, NULL, 'system', NULL, now()),"
        " (6, 7, 'a', 'of no chat', NULL, now()), (7, NULL, 'a', 'of none', NULL, now()),"
        " (8, 2, 'a', 'second chat', NULL, 'infinity'), (9, 3, 'a', 'future', NULL, '2200-01-01'),"
        " (10, 4, 'c d', repeat('long', 3000), NULL, NULL)",
    )
    path = tmp_path / "odd.jsonl"
    quarantine = Quarantine(path)
    async with shop.importing(place, quarantine) as importing:
        assert len(importing.catalogue.notes) == 1
        await importing.load()
    quarantine.close()
    await place.require_sound()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = {(line["kind"], line["key"], line["reason"].partition(",")[0]) for line in lines}
    assert told >= {
        ("user", "b", "an e-mail address that is none"),
        ("participant", "b", "a second one with this key"),
        ("participant", "nobody", "of no user"),
        ("participant", "a", "of no chat"),
        ("chat", "3", "direct"),
        ("message", "shop:1", "a second message with this key"),
        ("message", "shop:2", "replies to what is not before it"),
        ("message", "4", "by no user"),
        ("message", "5", "by no user"),
        ("message", "6", "of no chat"),
        ("message", "7", "of no chat"),
        ("message", "shop:8", "a time that is none"),
        ("message", "shop:9", "a time in the future"),
        ("message", "shop:10", "a text that is too long"),
    }
    second = "a second one of a pair: a private group"
    assert len(told & {("chat", "1", second), ("chat", "2", second)}) == 1, "whichever comes later"
    assert {item["kind"] for item in (await place.inbox("a")).values()} == {"direct", "group"}
    assert len(await place.inbox("a")) == 3


async def test_texts_of_no_known_encoding_are_read(
    server: PostgresServer, shop: Shop, place: Scene
) -> None:
    name = f"ascii{next(_numbers)}"
    server.execute(
        f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        " TEMPLATE template0"
    )
    old = Shop(server, name, shop.mapping_path.parent)
    old.execute(
        TABLES,
        "INSERT INTO people VALUES ('a', 'Ann')",
        "INSERT INTO chats VALUES (1, 'team')",
        "INSERT INTO participants (chat_id, person_id) VALUES (1, 'a')",
        "INSERT INTO messages (chat_id, sender_id, body) VALUES (1, 'a', 'plain')",
    )
    with psycopg.connect(old.url, autocommit=True) as connection:
        connection.execute(rb"INSERT INTO messages (chat_id, sender_id, body)"
                           rb" VALUES (1, 'a', E'gr\374n'), (1, 'a', E'gr\303\274n')")  # fmt: skip
    async with old.importing(place) as importing:
        assert "SQL_ASCII" in " ".join(importing.catalogue.notes)
        await importing.load()
    texts = [item["text"] for item in await place.log("1")]
    assert texts[1:] == ["grün", "grün"]
    assert ("message", "not UTF-8, read as Windows-1252") in importing.loading.quarantine.counts


async def test_a_source_that_dies_and_returns_is_awaited(
    server: PostgresServer, shop: Shop, place: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PAUSE_S", 0.1)
    shop.fill(60, 3_000)
    async with shop.importing(place) as importing:
        deaths = 0

        def progress(what: str, done: int, total: int) -> None:
            nonlocal deaths
            if what == "Messages" and done > 1_000 and not deaths:
                deaths += 1
                server.stop()
                server.start()

        importing._show = progress
        await importing.load()
    assert deaths == 1
    await shop.require_same(place)


async def test_a_source_that_stays_away_ends_the_import(
    server: PostgresServer, shop: Shop, place: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PAUSE_S", 0.01)
    monkeypatch.setattr(postgres, "RETURNS_AWAITED_MAX", 3)
    shop.fill(10, 50)
    async with shop.importing(place) as importing:
        server.stop()
        try:
            with pytest.raises(Unavailable, match="does not come back"):
                await importing.load()
        finally:
            server.start()
    async with shop.importing(place) as importing:
        await importing.load()
    await shop.require_same(place)


async def test_a_full_disk_stops_the_load_and_leaves_a_way_on(shop: Shop, place: Scene) -> None:
    shop.fill(60, 3_000)
    assert isinstance(place.store, SqliteStore)
    writer = place.store._writer
    writer.pragma("max_page_count", writer.pragma("page_count") + 60)
    with pytest.raises(Unavailable, match="full"):
        async with shop.importing(place) as importing:
            await importing.load()
    writer.pragma("max_page_count", 1 << 30)
    async with shop.importing(place) as importing:
        await importing.load()
    await shop.require_same(place)


async def test_updated_at_columns_do_where_nothing_else_is(shop: Shop, place: Scene) -> None:
    shop.fill(40, 400)
    async with shop.importing(place) as importing:
        watch = Updated(shop.mapping, importing.reading)
        assert Updated.hindrance(shop.mapping) is None
        async with importing.source.connected() as connection:
            await watch.begin(connection)
            # Somebody who began before and commits late, and a clock that was put back by a day.
            async with importing.source.connected() as late:
                await late.execute("BEGIN")
                await late.execute("INSERT INTO messages (chat_id, sender_id, body, updated_at)"
                                   " VALUES (1, 'p39', 'late', now())")  # fmt: skip
                await importing.load()
                following = Following(importing, watch)
                await following._round()
                await late.execute("COMMIT")
        shop.execute(
            "INSERT INTO messages (chat_id, sender_id, body) VALUES (2, 'p38', 'new')",
            "UPDATE messages SET body = 'edited' WHERE id = 7",
            "UPDATE messages SET is_deleted = true WHERE id = 8",
            "UPDATE participants p SET last_read_id = (SELECT max(id) FROM messages m"
            " WHERE m.chat_id = p.chat_id) WHERE chat_id = 4",
            "INSERT INTO messages (chat_id, sender_id, body, updated_at)"
            " VALUES (3, 'p37', 'from the future', now() + interval '2 days')",
        )
        await following.run(asyncio.Event(), is_ending=True)
    await shop.require_same(place)
    assert "deleted" in watch.blind_spots


async def test_a_clock_that_jumps_back_is_noticed(shop: Shop, place: Scene) -> None:
    shop.fill(10, 50)
    async with shop.importing(place) as importing:
        await importing.load()
        watch = Updated(shop.mapping, importing.reading)
        async with importing.source.connected() as connection:
            await watch.begin(connection)
        assert watch._last is not None
        ahead_ms = 24 * 3600 * 1000  # the last look was made by a clock that was a day ahead
        watch._last = watch._last[0] + ahead_ms, watch._last[1]
        watch._since_ms += ahead_ms
        shop.execute("INSERT INTO messages (chat_id, sender_id, body) VALUES (2, 'p38', 'new')")
        await Following(importing, watch).run(asyncio.Event(), is_ending=True)
    await shop.require_same(place)


async def test_an_emptied_table_is_loud(shop: Shop, place: Scene) -> None:
    shop.fill(10, 50)
    async with shop.importing(place) as importing:
        watch = Decoded(shop.mapping, importing.catalogue, "tidings_emptied")
        async with importing.source.connected() as connection:
            await watch.begin(connection)
            await importing.load()
            shop.execute("TRUNCATE messages")
            with pytest.raises(Conflict, match="TRUNCATE"):
                await Following(importing, watch).run(asyncio.Event(), is_ending=True)
            await watch.end(connection)


async def test_forgotten_slots_are_named(shop: Shop) -> None:
    catalogue = await looked_up(Source(shop.url), shop.mapping)
    async with Source(shop.url).connected() as connection:
        forgotten = Decoded(shop.mapping, catalogue, "tidings_forgotten")
        assert await forgotten.begin(connection)
        assert not await forgotten.begin(connection)
        other = Decoded(shop.mapping, catalogue, "tidings_other")
        warnings = await other.warnings(connection)
        assert any("tidings_forgotten is not in use" in line for line in warnings)
        await forgotten.end(connection)


async def test_a_slot_waits_for_nobody_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_changes, "SLOT_S", 0.3)
    catalogue = await looked_up(Source(shop.url), shop.mapping)
    watch = Decoded(shop.mapping, catalogue, "tidings_waiting")
    async with Source(shop.url).connected() as busy, Source(shop.url).connected() as connection:
        await busy.execute("BEGIN")
        await busy.execute("INSERT INTO people VALUES ('x')")
        with pytest.raises(Conflict, match="transactions are open"):
            await watch.begin(connection)
        await busy.execute("COMMIT")
    assert shop.ask("SELECT slot_name FROM pg_replication_slots") == []


async def test_without_the_right_there_is_no_slot(server: PostgresServer, shop: Shop) -> None:
    catalogue = await looked_up(Source(shop.url), shop.mapping)
    shop.execute(
        "CREATE ROLE reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"
    )
    async with Source(shop.url.replace("owner@", "reader@")).connected() as connection:
        hindrance = await Decoded.hindrance(connection, catalogue)
    assert hindrance is not None
    assert "REPLICATION" in hindrance


def test_lines_of_the_log_are_understood() -> None:
    tables = {
        "public.messages": Decodable("messages", {"id": "id", "chat": "chat", "sender": "Who"}),
        "Odd.part:s": Decodable("participants", {"chat": "c", "user": "u"}),
    }
    changes = Changes()
    for line in (
        "table public.messages: INSERT: id[bigint]:1 t[text]:'it''s ]: x' \"Who\"[text]:'a'"
        " n[integer[]]:'{1,2}' z[timestamp with time zone]:null b[bit(3)]:B'101'",
        "table public.messages: UPDATE: old-key: id[bigint]:2 new-tuple: id[bigint]:3 t[text]:null",
        "table public.messages: UPDATE: id[bigint]:4 t[text]:unchanged-toast-datum",
        "table public.messages: DELETE: id[bigint]:5",
        "table public.messages: DELETE: id[bigint]:6 t[text]:'x' chat[bigint]:9 \"Who\"[text]:'b'",
        "table public.messages: DELETE: (no-tuple-data)",
        "table public.others: INSERT: id[bigint]:7",
        "table \"Odd\".\"part:s\": DELETE: c[character varying]:'x y' u[uuid]:'u1'",
        "table public.messages: TRUNCATE: (no-flags)",
    ):
        note_change(line, tables, changes)
    assert changes.messages == {"1", "3", "4"}
    assert changes.gone_messages == {"2": None, "5": None, "6": ("9", "b")}
    assert changes.gone_participants == {("x y", "u1")}
    assert changes.emptied == {"messages"}


async def test_hard_deletions_are_placed_at_once_where_the_log_says_all(
    shop: Shop, place: Scene
) -> None:
    shop.fill(20, 100)
    shop.execute("ALTER TABLE messages REPLICA IDENTITY FULL",
                 "ALTER TABLE participants ADD PRIMARY KEY (chat_id, person_id)")  # fmt: skip
    async with shop.importing(place) as importing:
        watch = Decoded(shop.mapping, importing.catalogue, "tidings_full")
        async with importing.source.connected() as connection:
            await watch.begin(connection)
        await importing.load()
        await Application(shop, 3).run(60)
        shop.execute("DELETE FROM messages WHERE id IN (11, 12)")
        await Following(importing, watch).run(asyncio.Event(), is_ending=True)
    await shop.require_same(place)
