"""A shop with its own chat in PostgreSQL: tables, data, and an application that goes on writing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from collections.abc import Mapping as Mapped
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from tests.importing.scene import WORKSPACE, Scene
from tests.postgres_server import SERVER, PostgresServer, running_postgres
from tidings.ids import pair_room_id
from tidings.importing.postgres import PostgresImport, Source, looked_up
from tidings.importing.postgres_mapping import Mapping, read_mapping
from tidings.importing.quarantine import Quarantine
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, INBOXES

MAPPING = """
name = "shop"

[users]
table = "people"
id = "id"
name = "full_name"
email = "email"
role_column = "job"
roles = { agent = "manager" }
updated_at = "updated_at"

[chats]
table = "chats"
id = "id"
kind_column = "kind"
kinds = { pair = "direct" }
title = "title"
created_at = "created_at"
updated_at = "updated_at"

[participants]
table = "participants"
chat = "chat_id"
user = "person_id"
read_message = "last_read_id"
muted = "is_muted"
left_at = "left_at"
updated_at = "updated_at"

[messages]
table = "messages"
id = "id"
chat = "chat_id"
sender = "sender_id"
text = "body"
time = "sent_at"
order = "id"
reply_to = "reply_to_id"
edited_at = "edited_at"
deleted = "is_deleted"
updated_at = "updated_at"

[compare]
unread = '''
SELECT p.chat_id, p.person_id AS user_id, count(m.id) AS unread
FROM participants p LEFT JOIN messages m ON m.chat_id = p.chat_id AND m.sender_id <> p.person_id
 AND NOT m.is_deleted AND m.id > coalesce(p.last_read_id, 0)
GROUP BY 1, 2
'''
"""

TABLES = """
CREATE TABLE people (id text PRIMARY KEY, full_name text, email text, job text,
  updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE chats (id bigint PRIMARY KEY, kind text, title text,
  created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE participants (chat_id bigint, person_id text, last_read_id bigint,
  is_muted boolean NOT NULL DEFAULT false, left_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE messages (id bigserial PRIMARY KEY, chat_id bigint, sender_id text, body text,
  sent_at timestamptz DEFAULT clock_timestamp(), reply_to_id bigint, edited_at timestamptz,
  is_deleted boolean NOT NULL DEFAULT false, updated_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON messages (chat_id, id);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN new.updated_at := now(); RETURN new; END';
CREATE TRIGGER touched BEFORE UPDATE ON participants FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER touched BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION touch();
"""
KEYS = "ALTER TABLE participants ADD PRIMARY KEY (chat_id, person_id)"


class Shop:
    """One database of the server, filled on wish."""

    def __init__(self, server: PostgresServer, name: str, folder: Path) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)
        self.mapping_path = folder / "mapping.toml"
        self.mapping_path.write_text(MAPPING)
        self._folder = folder

    @property
    def mapping(self) -> Mapping:
        """As the file says."""
        return read_mapping(self.mapping_path)

    def map(self, old: str, new: str) -> None:
        """Write the mapping otherwise."""
        text = self.mapping_path.read_text()
        assert old in text
        self.mapping_path.write_text(text.replace(old, new))

    def execute(self, *statements: str) -> None:
        """Run statements."""
        self.server.execute(*statements, database=self.name)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()

    def create(self, *, has_keys: bool = True) -> None:
        """Make the database with its tables."""
        self.server.execute(f'CREATE DATABASE "{self.name}"')
        self.execute(TABLES, *([KEYS] if has_keys else []))

    def fill(self, chats: int, messages: int, *, seed: int = 0, people: int = 40) -> None:
        """So many chats, two thirds of them of pairs, with so many messages in all."""
        self.execute(
            f"SELECT setseed({seed / 100})",
            "INSERT INTO people SELECT 'p' || n, 'Person ' || n, 'p' || n || '@shop.example',"
            f" CASE WHEN n % 10 = 0 THEN 'agent' END FROM generate_series(0, {people - 1}) n",
            "INSERT INTO chats SELECT n, CASE WHEN n % 3 > 0 THEN 'pair' ELSE 'team' END,"
            f" 'Chat ' || n FROM generate_series(1, {chats}) n",
            # The people of a chat stand next to one another, those of the next chat elsewhere, and
            # pairs differ for long.
            "INSERT INTO participants (chat_id, person_id)"
            f" SELECT n, 'p' || ((n * 7919 + k * (1 + n / {people})) % {people})"
            f" FROM generate_series(1, {chats}) n, generate_series(0, 3) k"
            " WHERE k < CASE WHEN n % 3 > 0 THEN 2 ELSE 4 END ON CONFLICT DO NOTHING"
            if chats
            else "SELECT 1",
            "INSERT INTO messages (chat_id, sender_id, body, sent_at, edited_at, is_deleted,"
            " reply_to_id)"
            f" SELECT c, 'p' || ((c * 7919 + k * (1 + c / {people})) % {people}), 'text ' || n,"
            " '2024-01-01'::timestamptz + n * interval '1 second',"
            " CASE WHEN n % 50 = 0 THEN '2025-01-01'::timestamptz END, n % 40 = 0,"
            f" CASE WHEN n > {chats} AND n % 7 = 0 THEN n - {chats} END"
            f" FROM (SELECT n, 1 + n % {chats} AS c, n / {chats} % 2 AS k"
            f" FROM generate_series(1, {messages}) n) made",
            f"UPDATE participants SET last_read_id = {messages} * random()",
            "UPDATE participants p SET last_read_id = (SELECT max(m.id) FROM messages m"
            " WHERE m.chat_id = p.chat_id AND m.id < p.last_read_id)",
            "UPDATE participants SET is_muted = true WHERE chat_id % 11 = 0",
            "ANALYZE",
        )

    @asynccontextmanager
    async def importing(
        self, place: Scene, quarantine: Quarantine | None = None, connections: int = 2
    ) -> AsyncIterator[PostgresImport]:
        """An import of it."""
        source = Source(self.url)
        mapping = self.mapping
        catalogue = await looked_up(source, mapping)
        async with place.loading(quarantine) as loading:
            yield PostgresImport(
                source, mapping, catalogue, loading, place.store, WORKSPACE, connections=connections
            )

    async def require_same(self, place: Scene) -> None:
        """Every message that is not deleted is there once with its text, in the order of ids; and
        every unread count is the source's own."""
        await place.require_sound()
        entries = await place.items(ENTRIES)
        stored = {
            item["client_id"]: item.get("text")
            for item in entries
            if item["type"] == "text" and item.get("deleted_at") is None
        }
        rows = self.ask("SELECT id, body FROM messages WHERE NOT is_deleted")
        assert stored == {f"shop:{key}": text for key, text in rows}
        by_room: dict[str, list[int]] = {}
        for item in sorted(entries, key=lambda item: (item["room"], item["seq"])):
            if item["type"] == "text":
                by_room.setdefault(item["room"], []).append(int(item["client_id"][5:]))
        assert len({key for keys in by_room.values() for key in keys}) == sum(
            map(len, by_room.values())
        )
        counts = self.ask(
            f"SELECT c.person, sum(c.unread)::int FROM ({self.mapping.compare.unread}) AS"  # type: ignore[union-attr]
            " c(chat_id, person, unread) JOIN participants p"
            " ON p.chat_id = c.chat_id AND p.person_id = c.person AND p.left_at IS NULL"
            " WHERE NOT p.is_muted GROUP BY 1"
        )
        for person, unread in counts:
            assert (await place.badge(person))["unread"] == unread, person
        wanted = {
            (self.mapping.name, str(chat), person)
            for chat, person in self.ask(
                "SELECT chat_id, person_id FROM participants WHERE left_at IS NULL"
            )
        }
        present = [item for item in await place.items(INBOXES) if not item.get("is_left")]
        pairs = {
            pair_room_id(*people): str(chat)
            for chat, people in self.ask(
                "SELECT chat_id, array_agg(person_id) FROM participants p"
                " JOIN chats c ON c.id = p.chat_id AND c.kind = 'pair'"
                " GROUP BY 1 HAVING count(*) = 2"
            )
        }
        assert wanted == {
            (
                self.mapping.name,
                pairs.get(item["room_id"], item["room_id"]),
                item["user"].partition("#")[2],
            )
            for item in present
        }
        assert len(present) == len(wanted)


class Application:
    """The shop's own application: it posts, reads, edits, deletes, and makes chats and people."""

    def __init__(self, shop: Shop, seed: int = 1) -> None:
        self._url = shop.url
        self._chance = random.Random(seed)
        self.steps = 0

    async def run(self, steps: int) -> None:
        """Take so many steps."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            for _ in range(steps):
                await self._step(connection)
                self.steps += 1

    async def _step(self, connection: AsyncConnection[Any]) -> None:
        chance = self._chance
        found = await connection.execute(
            "SELECT chat_id, person_id FROM participants WHERE left_at IS NULL"
            " ORDER BY md5(chat_id::text || person_id || %s) LIMIT 1",
            (str(chance.random()),),
        )
        row = await found.fetchone()
        assert row is not None
        chat, person = row
        newest = "(SELECT max(id) FROM messages WHERE chat_id = %s)"
        match chance.choices(
            ("post", "read", "edit", "delete", "vanish", "chat", "leave", "mute"),
            (50, 25, 6, 4, 3, 3, 1, 2),
        )[0]:
            case "post":
                await connection.execute(
                    "INSERT INTO messages (chat_id, sender_id, body) VALUES (%s, %s, %s)",
                    (chat, person, f"it''s {chance.random()} [x]:'y'"),
                )
            case "read":
                await connection.execute(
                    f"UPDATE participants SET last_read_id = {newest}"
                    " WHERE chat_id = %s AND person_id = %s",
                    (chat, chat, person),
                )
            case "edit":
                await connection.execute(
                    "UPDATE messages SET body = body || '!', edited_at = now()"
                    f" WHERE id = {newest} AND NOT is_deleted",
                    (chat,),
                )
            case "delete":
                await connection.execute(
                    f"UPDATE messages SET is_deleted = true WHERE id = {newest}", (chat,)
                )
            case "vanish":
                await connection.execute(f"DELETE FROM messages WHERE id = {newest}", (chat,))
            case "chat":
                number = chance.randrange(10_000, 10_000_000)
                await connection.execute("INSERT INTO people VALUES (%s, 'New')", (f"n{number}",))
                await connection.execute("INSERT INTO chats VALUES (%s, 'pair', NULL)", (number,))
                await connection.execute(
                    "INSERT INTO participants (chat_id, person_id) VALUES (%s, %s), (%s, %s)",
                    (number, f"n{number}", number, person),
                )
                await connection.execute(
                    "INSERT INTO messages (chat_id, sender_id, body) VALUES (%s, %s, 'hello')",
                    (number, person),
                )
            case "leave":
                await connection.execute(
                    "DELETE FROM participants WHERE chat_id = %s AND person_id = %s"
                    " AND chat_id IN (SELECT id FROM chats WHERE kind = 'team')",
                    (chat, person),
                )
            case "mute":
                await connection.execute(
                    "UPDATE participants SET is_muted = NOT is_muted"
                    " WHERE chat_id = %s AND person_id = %s",
                    (chat, person),
                )


@asynccontextmanager
async def shop_in_postgres(folder: Path) -> AsyncIterator[Mapped[str, str]]:
    """A database with an application at work, which stops when the file `stopped` is made; at the
    end every message is there as the application left it."""
    if SERVER is None:
        pytest.skip("PostgreSQL is not installed")
    with running_postgres() as server:
        shop = Shop(server, "shop", folder)
        shop.create()
        shop.fill(60, 600)
        application = Application(shop)
        stopped = folder / "stopped"

        async def work() -> None:
            while not stopped.exists():
                await application.run(1)
                await asyncio.sleep(0.02)

        working = asyncio.create_task(work())
        try:
            yield {
                "SOURCE": shop.url,
                "STORE": f"sqlite:///{folder}/tidings.db",
                "STOP": f"touch {stopped}",
            }
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        moved = json.loads((folder / "moved.json").read_text())
        assert moved["counts"]["differing"] == 0 < moved["counts"]["compared"]
        async with SqliteStore.open(folder / "tidings.db") as store:
            entries = await Scene(store).items(ENTRIES)
        there = {
            item["client_id"]: item["text"]
            for item in entries
            if item["type"] == "text" and item.get("deleted_at") is None
        }
        wanted = shop.ask("SELECT id, body FROM messages WHERE NOT is_deleted")
        assert there == {f"shop:{key}": text for key, text in wanted}
        assert application.steps > 20
