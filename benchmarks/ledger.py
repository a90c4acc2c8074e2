"""What write requests would cost on AWS, worked out from the requests themselves.

The ledger keeps a copy of every item that went through it, applies each request to it as the
engine did, and charges by the rules of `tidings.storage.metered`. It asks no engine for anything,
so that counting adds no request to what is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tidings.storage.attributes import Attributes
from tidings.storage.effects import after_write
from tidings.storage.interface import Check, Delete, Item, Key, Put, Table, Update, Write
from tidings.storage.metered import index_write_units, write_units
from tidings.storage.sizes import item_bytes

_CLAUSE = re.compile(r"\b(SET|REMOVE|ADD)\b")
_KINDS = ("Put", "Update", "Delete", "ConditionCheck")
_PLAIN = {"PutItem": "Put", "UpdateItem": "Update", "DeleteItem": "Delete"}


class Tables:
    """The declared tables by the names that requests use: `prefix.name`."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = {table.name: Attributes(table) for table in tables}

    def named(self, name: str) -> Attributes:
        """A table's declaration and attributes. Raises KeyError."""
        return self._tables[name.rpartition(".")[2]]

    def parts(self, action: str, payload: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The writes of a request as (kind, its part of the payload); none for other requests."""
        if action == "TransactWriteItems":
            return [
                (kind, part[kind])
                for part in payload["TransactItems"]
                for kind in _KINDS
                if kind in part
            ]
        if action in _PLAIN:
            return [(_PLAIN[action], dict(payload))]
        if action == "BatchWriteItem":
            return [
                ("Put", {"TableName": name, **request["PutRequest"]})
                for name, requests in payload["RequestItems"].items()
                for request in requests
            ]
        return []

    def key(self, kind: str, part: Mapping[str, Any]) -> tuple[str, Key]:
        """Which item a part of a request is about, as (table name, key)."""
        attributes = self.named(part["TableName"])
        values = part["Item"] if kind == "Put" else part["Key"]
        return part["TableName"], attributes.fields(attributes.table.key_fields, values)

    def write(self, kind: str, part: Mapping[str, Any]) -> Write:
        """A part of a request as a write of the storage interface, without its conditions."""
        attributes = self.named(part["TableName"])
        _, key = self.key(kind, part)
        match kind:
            case "Put":
                return Put(attributes.table, attributes.read(part["Item"]))
            case "Delete":
                return Delete(attributes.table, key)
            case "Update":
                return _update(attributes, key, part)
            case _:
                return Check(attributes.table, key, ())


def _update(attributes: Attributes, key: Key, part: Mapping[str, Any]) -> Update:
    """An update whose expression sets, adds and removes whole fields, and no more than that."""
    names: Mapping[str, str] = part.get("ExpressionAttributeNames", {})
    values = part.get("ExpressionAttributeValues", {})
    _, *clauses = _CLAUSE.split(part.get("UpdateExpression", ""))
    fields: dict[str, Item] = {"SET": {}, "ADD": {}, "REMOVE": {}}
    for clause, text in zip(clauses[::2], clauses[1::2], strict=True):
        for action in text.split(","):
            name, *operand = action.replace("=", " ").split()
            field = names.get(name, name)
            written = attributes.read({field: values[operand[0]]}) if operand else {field: None}
            fields[clause] |= written
    return Update(
        attributes.table,
        key,
        set=fields["SET"],
        add=fields["ADD"],
        remove=tuple(fields["REMOVE"]),
    )


class Ledger:
    """Write units of everything that was applied, and of what was refused by its condition.

    Units of indexes are kept apart, counted once: whether a transaction doubles them is not
    published. What was refused for a conflict is not charged.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._items: dict[tuple[str, Key], Item] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here; what is stored stays."""
        self.table_units = 0
        self.index_units = 0
        self._partitions: Counter[str] = Counter()

    def hottest(self, count: int) -> list[tuple[str, float]]:
        """The partitions that took most units, with those of their local indexes."""
        return [(name, float(units)) for name, units in self._partitions.most_common(count)]

    def apply(self, action: str, payload: Mapping[str, Any], *, is_applied: bool) -> None:
        """Charge a request, and change the items unless a condition refused it."""
        is_transaction = action == "TransactWriteItems"
        for kind, part in self._tables.parts(action, payload):
            place = self._tables.key(kind, part)
            write = self._tables.write(kind, part)
            before = self._items.get(place)
            after = after_write(write, before)
            size_bytes = max(item_bytes(before or {}), item_bytes(after or {}))
            if kind == "ConditionCheck":
                size_bytes = 0
            units = write_units(size_bytes, transactional=is_transaction)
            self.table_units += units
            if is_applied:
                for index in write.table.indexes:
                    index_units = index_write_units(write.table, index, before, after)
                    self.index_units += index_units
                    units += index_units if index.local else 0
                if after is None:
                    self._items.pop(place, None)
                else:
                    self._items[place] = after
            name, key = place
            self._partitions[f"{name.rpartition('.')[2]} {key[0]}"] += units
