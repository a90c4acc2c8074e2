"""Items and writes as SQL: the schema of a table, and one statement for each write.

A statement's text depends on the write's shape alone (its kind, its field names and types, its
conditions' fields), so it is made once a shape; what a write then costs is its bindings.
"""

# ruff: noqa: S608  # names come from the declarations and are quoted; values are always bound

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from tidings.storage.interface import (
    Absent,
    Condition,
    Delete,
    Equals,
    Index,
    Item,
    Key,
    LessThan,
    Position,
    Put,
    Table,
    Update,
    Write,
)
from tidings.storage.refusals import (
    check_changes,
    check_comparison,
    check_has_key,
    check_key,
    check_limit,
    check_segment,
    check_type,
    declared_index,
)

SHAPES_MAX = 512
"""Shapes remembered for a table; past it all are forgotten, which costs only time."""
CONSTANT_BYTES = 64
"""More than any field's name and number weigh together, for a bound on an item's size."""
CHARACTER_BYTES = 4
"""More than one character of a text, or of its JSON, weighs anywhere."""

_COLUMN_TYPES = {
    str: "TEXT",
    int: "INTEGER",
    float: "REAL",
    bool: "INTEGER",
    bytes: "BLOB",
    list: "TEXT",
    dict: "TEXT",
}
_Comparison = (Equals, LessThan)
_encode_json = msgspec.json.Encoder(order="sorted").encode  # equal values are equal texts
_decode_json = msgspec.json.Decoder().decode


class Shape(msgspec.Struct, frozen=True):
    """What all writes of one form share."""

    sql: str
    is_select: bool = False
    """Whether the effect to look at is a row returned, and not a row changed."""
    is_exact: bool = True
    """Whether the write holds only if it had exactly one effect."""
    jsons: tuple[int, ...] = ()
    """Which bindings are to be written as JSON."""
    texts: tuple[int, ...] = ()
    """Which bindings have a length, those of JSON included."""
    constant_bytes: int = 0
    """More than everything else of the item weighs."""


class Statement(msgspec.Struct, frozen=True):
    """One write, ready to run."""

    shape: Shape
    bindings: Sequence[Any]
    bytes_bound: int
    """The item, or what the write changes of it, weighs at most this."""


class Select(NamedTuple):
    """A page's query, ready to run; it asks for one row more than the page may hold."""

    sql: str
    bindings: Sequence[Any]
    columns: tuple[str, ...]
    """What the rows hold."""
    order: tuple[str, ...]
    """The columns whose values of a page's last row are its position."""


def prefix_end(prefix: str) -> str | None:
    """The least text above every text with the prefix; None if there is none."""
    for length in range(len(prefix), 0, -1):
        code = ord(prefix[length - 1]) + 1
        if code <= 0x10FFFF:
            # Surrogates are no characters: after U+D7FF comes U+E000.
            return prefix[: length - 1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return None


class TableStatements:
    """One table's SQL. Raises ValueError for fields, types and conditions that don't fit it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key_fields = table.key_fields
        self.columns = (
            *self.key_fields,
            *(field for field in table.fields if field not in self.key_fields),
        )
        self._name = _quoted(table.name)
        self._key_types: set[tuple[type, ...]] = set()
        self._decoders = tuple(
            (field, bool if kind is bool else _decode_json)
            for field, kind in table.fields.items()
            if kind in (bool, list, dict)
        )
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._selects: dict[tuple[Any, ...], tuple[str, tuple[str, ...], tuple[str, ...]]] = {}
        self._where_key = " AND ".join(f"{_quoted(field)} = ?" for field in self.key_fields)
        self._alive = (
            "" if table.expires is None else f" AND ifnull({_quoted(table.expires)} > ?, TRUE)"
        )
        self.is_expiring = table.expires is not None
        self.get_sql = f"SELECT {_listed(self.columns)} FROM {self._name} WHERE {self._where_key}"
        self.get_alive_sql = self.get_sql + self._alive

    # -- schema

    def create_table(self) -> str:
        """The statement that makes the table."""
        columns = [
            self.column(field) + (" NOT NULL" if field in self.key_fields else "")
            for field in self.columns
        ]
        return (
            f"CREATE TABLE {self._name} ({', '.join(columns)},"
            f" PRIMARY KEY ({_listed(self.key_fields)})) STRICT, WITHOUT ROWID"
        )

    def column(self, field: str) -> str:
        """A column's name and type, as `ALTER TABLE … ADD COLUMN` takes it."""
        return f"{_quoted(field)} {self.column_type(field)}"

    def column_type(self, field: str) -> str:
        """The SQL type of a field."""
        return _COLUMN_TYPES[self.table.fields[field]]

    def create_indexes(self) -> Iterator[tuple[str, str]]:
        """The name of each index, and the statement that makes it."""
        for index in self.table.indexes:
            name = self._index_name(index)
            columns = (index.partition, *self.table.order(index))
            yield (
                name,
                f"CREATE INDEX {_quoted(name)} ON {self._name} ({_listed(columns)})"
                f" WHERE {_quoted(index.partition)} IS NOT NULL"
                f" AND {_quoted(index.sort)} IS NOT NULL",
            )

    def _index_name(self, index: Index) -> str:
        return f"{self.table.name}_{index.name}"

    # -- rows

    def decode(self, columns: Sequence[str], row: Sequence[Any]) -> Item:
        """A row of those columns as an item."""
        # Rows have their columns' length; to say so, even by `strict`, takes a fifth of the time.
        item = {field: value for field, value in zip(columns, row) if value is not None}  # noqa: B905
        for field, decode in self._decoders:
            if field in item:
                item[field] = decode(item[field])
        return item

    # -- writes

    def compile(self, write: Write) -> Statement:
        """The statement that does the write, or has no effect where a condition fails.

        Bindings come in the order in which the write names its values; the statement's text,
        whose parameters are numbered, puts them where they belong.
        """
        form: list[Any] = [type(write)]
        bindings: list[Any]
        if isinstance(write, Put):
            form += write.item
            bindings = [*write.item.values()]
        elif isinstance(write, Update):
            bindings = [*write.key, *write.set.values(), *write.add.values()]
            form += (*write.set, len(write.set), *write.add, write.remove)
        else:
            bindings = [*write.key]
        form.append(None)
        for condition in write.when:
            form.append(type(condition))
            if isinstance(condition, _Comparison):
                form.append(condition.field)
                bindings.append(condition.value)
        form += map(type, bindings)
        shape_key = tuple(form)
        shape = self._shapes.get(shape_key)
        if shape is None:
            shape = self._shape(write, bindings)
            _remember(self._shapes, shape_key, shape)
        for position in shape.jsons:
            bindings[position] = _encode_json(bindings[position]).decode()
        characters = 0
        for position in shape.texts:
            characters += len(bindings[position])
        return Statement(shape, bindings, shape.constant_bytes + CHARACTER_BYTES * characters)

    def _shape(self, write: Write, bindings: Sequence[Any]) -> Shape:
        if isinstance(write, Put):
            fields = [*write.item]
            sql, is_select, is_exact = self._put(write)
        else:
            self.check_key(write.key)
            fields = [*self.key_fields]
            if isinstance(write, Update):
                fields += (*write.set, *write.add)
                sql, is_select, is_exact = self._update(write)
            elif isinstance(write, Delete) and not _is_absent(write.when):
                sql = f"DELETE FROM {self._name} WHERE {self._holding(fields, write.when)}"
                is_select, is_exact = False, bool(write.when)
            else:
                sql, is_select, is_exact = self._check(write.when)
        for field, value in zip(fields, bindings, strict=False):
            check_type(self.table, field, type(value), is_optional=field not in self.key_fields)
        written = range(len(bindings))
        return Shape(
            sql,
            is_select,
            is_exact,
            jsons=tuple(n for n in written if isinstance(bindings[n], list | dict)),
            texts=tuple(n for n in written if isinstance(bindings[n], str | bytes | list | dict)),
            constant_bytes=CONSTANT_BYTES * (len(bindings) + 1),
        )

    def _put(self, write: Put) -> tuple[str, bool, bool]:
        fields = [*write.item]
        check_has_key(self.table, write.item)
        into = f"INTO {self._name} ({_listed(fields)}) VALUES ({_parameters(len(fields))})"
        if not write.when:
            return f"REPLACE {into}", False, True
        if _is_absent(write.when):
            return f"INSERT {into} ON CONFLICT DO NOTHING", False, True
        changes = [
            f"{_quoted(field)} = {f'?{fields.index(field) + 1}' if field in fields else 'NULL'}"
            for field in self.columns
        ]
        holding = self._holding(fields, write.when)
        return f"UPDATE {self._name} SET {', '.join(changes)} WHERE {holding}", False, True

    def _update(self, write: Update) -> tuple[str, bool, bool]:
        check_changes(write)
        fields = [*self.key_fields, *write.set, *write.add]
        parameters = {field: f"?{number}" for number, field in enumerate(fields, 1)}
        # A write that only tests still has to have its one effect.
        changes = [f"{_quoted(self.key_fields[0])} = {self._name}.{_quoted(self.key_fields[0])}"]
        changes += [f"{_quoted(field)} = {parameters[field]}" for field in write.set]
        changes += [
            f"{_quoted(field)} = ifnull({self._name}.{_quoted(field)}, 0) + {parameters[field]}"
            for field in write.add
        ]
        changes += [f"{_quoted(field)} = NULL" for field in write.remove]
        assignments = ", ".join(changes[1:] or changes)
        if write.when and not _is_absent(write.when):
            holding = self._holding(fields, write.when)
            return f"UPDATE {self._name} SET {assignments} WHERE {holding}", False, True
        insert = f"INSERT INTO {self._name} ({_listed(fields)}) VALUES ({_parameters(len(fields))})"
        if write.when:
            return f"{insert} ON CONFLICT DO NOTHING", False, True
        return f"{insert} ON CONFLICT DO UPDATE SET {assignments}", False, True

    def _check(self, when: Sequence[Condition]) -> tuple[str, bool, bool]:
        if _is_absent(when):
            found = f"SELECT 1 FROM {self._name} WHERE {self._where_key}"
            return f"SELECT 1 WHERE NOT EXISTS ({found})", True, True
        holding = self._holding(self.key_fields, when)
        return f"SELECT 1 FROM {self._name} WHERE {holding}", True, bool(when)

    def _holding(self, fields: Sequence[str], when: Sequence[Condition]) -> str:
        """What selects the item if it is there and the conditions hold.

        `fields`, the key's among them, are those of the bindings before the conditions' own.
        """
        terms = [f"{_quoted(field)} = ?{fields.index(field) + 1}" for field in self.key_fields]
        number = len(fields)
        for condition in when:
            if isinstance(condition, Absent):
                terms.append("FALSE")
            elif isinstance(condition, Equals):
                number += 1
                check_type(self.table, condition.field, type(condition.value), is_optional=True)
                terms.append(f"{_quoted(condition.field)} IS ?{number}")
            elif isinstance(condition, LessThan):
                number += 1
                check_comparison(self.table, condition.field, type(condition.value))
                terms.append(f"{_quoted(condition.field)} < ?{number}")
        return " AND ".join(terms)

    def check_key(self, key: Key) -> None:
        """Raises ValueError if the key's length or types are not the table's."""
        types = tuple(map(type, key))
        if types not in self._key_types:
            check_key(self.table, key)
            self._key_types.add(types)

    def holds(self, when: Sequence[Condition], item: Item | None) -> bool:
        """Whether the conditions hold for the item that is physically there."""
        for condition in when:
            if isinstance(condition, Absent):
                if item is not None:
                    return False
            elif item is None:
                return False
            elif isinstance(condition, Equals):
                if _bound(item.get(condition.field)) != _bound(condition.value):
                    return False
            elif isinstance(condition, LessThan):
                value = item.get(condition.field)
                if value is None or not value < condition.value:
                    return False
        return True

    def expired(self, *, limit: int, after: Position | None, now_s: int) -> Select:
        """The query of the keys of some expired items."""
        where, bindings = f"{_quoted(str(self.table.expires))} <= ?", [now_s]
        if after is not None:
            where += " AND " + self._after(self.key_fields, after, reverse=False)
            bindings += after
        keys = _listed(self.key_fields)
        sql = f"SELECT {keys} FROM {self._name} WHERE {where} ORDER BY {keys} LIMIT ?"
        return Select(sql, [*bindings, limit], self.key_fields, self.key_fields)

    def delete_expired(self, key: Key, now_s: int) -> Statement:
        """Deletes the item if it is still expired."""
        sql = (
            f"DELETE FROM {self._name}"
            f" WHERE {self._where_key} AND {_quoted(str(self.table.expires))} <= ?"
        )
        return Statement(Shape(sql, is_exact=False), (*key, now_s), 0)

    # -- pages

    def query(
        self,
        partition: Any,
        *,
        index: str | None,
        low: Any,
        high: Any,
        prefix: str | None,
        reverse: bool,
        limit: int,
        after: Position | None,
        now_s: int,
    ) -> Select:
        """The query of a page of one partition, of the table or of an index."""
        check_limit(limit)
        shape_key = (
            "query",
            index,
            type(partition),
            type(low),
            type(high),
            type(prefix),
            reverse,
            None if after is None else tuple(map(type, after)),
        )
        shape = self._selects.get(shape_key)
        if shape is None:
            shape = self._query_shape(
                partition, index=index, low=low, high=high, prefix=prefix, reverse=reverse,
                after=after,
            )  # fmt: skip
            _remember(self._selects, shape_key, shape)
        bindings = [partition]
        if low is not None:
            bindings.append(low)
        if high is not None:
            bindings.append(high)
        if prefix is not None:
            bindings += (prefix, prefix_end(prefix) or b"")  # SQLite puts blobs after all texts
        if after is not None:
            bindings += after
        if self.is_expiring:
            bindings.append(now_s)
        bindings.append(limit + 1)
        return Select(shape[0], bindings, shape[1], shape[2])

    def _query_shape(
        self,
        partition: Any,
        *,
        index: str | None,
        low: Any,
        high: Any,
        prefix: str | None,
        reverse: bool,
        after: Position | None,
    ) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        source = self._name
        columns = self.columns
        partition_field: str = self.table.partition
        order: tuple[str, ...] = self.key_fields[1:]
        where = []
        if index is not None:
            declared = declared_index(self.table, index)
            partition_field, order = declared.partition, self.table.order(declared)
            source += f" INDEXED BY {_quoted(self._index_name(declared))}"
            where.append(f"{_quoted(declared.sort)} IS NOT NULL")
            if declared.projected is not None:
                kept = {*self.key_fields, partition_field, declared.sort, *declared.projected}
                columns = tuple(field for field in self.columns if field in kept)
        check_type(self.table, partition_field, type(partition))
        where.insert(0, f"{_quoted(partition_field)} = ?")
        if not order and (low, high, prefix) != (None, None, None):
            raise ValueError(f"{self.table.name} has no sort key")
        for bound, comparison in ((low, ">="), (high, "<=")):
            if bound is not None:
                check_type(self.table, order[0], type(bound))
                where.append(f"{_quoted(order[0])} {comparison} ?")
        if prefix is not None:
            if low is not None or high is not None or self.table.fields[order[0]] is not str:
                raise ValueError("a prefix goes with strings, and without other bounds")
            where.append(f"{_quoted(order[0])} >= ? AND {_quoted(order[0])} < ?")
        if after is not None:
            where.append(self._after(order, after, reverse=reverse))
        sql = f"SELECT {_listed(columns)} FROM {source} WHERE {' AND '.join(where)}{self._alive}"
        if order:
            sql += f" ORDER BY {_listed(order, ' DESC' if reverse else '')}"
        return f"{sql} LIMIT ?", columns, order

    def scan(
        self, *, segment: int, segments: int, limit: int, after: Position | None, now_s: int
    ) -> Select:
        """The query of a page of one segment of the table."""
        check_limit(limit)
        check_segment(segment, segments)
        where, bindings = ["TRUE"], []
        if segments > 1:
            where.append(f"{self._segment()} % ? = ?")
            bindings += [segments, segment]
        if after is not None:
            where.append(self._after(self.key_fields, after, reverse=False))
            bindings += after
        if self.is_expiring:
            bindings.append(now_s)
        sql = (
            f"SELECT {_listed(self.columns)} FROM {self._name}"
            f" WHERE {' AND '.join(where)}{self._alive}"
            f" ORDER BY {_listed(self.key_fields)} LIMIT ?"
        )
        return Select(sql, [*bindings, limit + 1], self.columns, self.key_fields)

    def between(self, *, upto: Key | None, limit: int, after: Key | None, now_s: int) -> Select:
        """The query of a page in the order of keys, from after one to up to another."""
        where = ["TRUE"]
        bindings: list[Any] = []
        if after is not None:
            where.append(self._after(self.key_fields, after, reverse=False))
            bindings += after
        if upto is not None:
            self.check_key(upto)
            where.append(f"({_listed(self.key_fields)}) <= ({_parameters(len(upto))})")
            bindings += upto
        if self.is_expiring:
            bindings.append(now_s)
        sql = (
            f"SELECT {_listed(self.columns)} FROM {self._name}"
            f" WHERE {' AND '.join(where)}{self._alive}"
            f" ORDER BY {_listed(self.key_fields)} LIMIT ?"
        )
        return Select(sql, [*bindings, limit + 1], self.columns, self.key_fields)

    def every(self, count: int) -> str:
        """The query of each key that many items after the one before, with `count` bound."""
        keys = _listed(self.key_fields)
        return (
            f"SELECT {keys} FROM (SELECT {keys}, row_number() OVER (ORDER BY {keys}) AS place"
            f" FROM {self._name}) WHERE place % {int(count)} = 0"
        )

    def _segment(self) -> str:
        """A number from the end of the partition, which is the random part of most ids."""
        field = _quoted(self.table.partition)
        if self.table.fields[self.table.partition] is not str:
            return f"abs({field})"
        last, second = f"unicode(substr({field}, -1))", f"unicode(substr({field}, -2))"
        return f"ifnull({last} + 31 * {second}, 0)"

    def _after(self, order: Sequence[str], after: Position, *, reverse: bool) -> str:
        if not order or len(order) != len(after):
            raise ValueError("a position is valid for the same query")
        for field, value in zip(order, after, strict=True):
            check_type(self.table, field, type(value))
        return f"({_listed(order)}) {'<' if reverse else '>'} ({_parameters(len(order))})"


def _quoted(name: str) -> str:
    if '"' in name:
        raise ValueError("a name holds no quotation mark")
    return f'"{name}"'


def _listed(names: Iterable[str], suffix: str = "") -> str:
    return ", ".join(_quoted(name) + suffix for name in names)


def _parameters(count: int) -> str:
    return ", ".join("?" * count)


def _is_absent(when: Sequence[Condition]) -> bool:
    return bool(when) and all(type(condition) is Absent for condition in when)


def _bound(value: Any) -> Any:
    return _encode_json(value).decode() if isinstance(value, list | dict) else value


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= SHAPES_MAX:
        known.clear()
    known[key] = value
