"""Writes and reads as requests to DynamoDB: their conditions, changes and ranges as expressions.

Every name goes through a placeholder of the same name (`#title`), since many are reserved words.
A field's new value is `:title`; what conditions compare with is numbered (`:1`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from tidings.storage.attributes import Attributes, Value, can_be_key
from tidings.storage.interface import (
    Absent,
    Check,
    Condition,
    Delete,
    Equals,
    Exists,
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
    check_limit,
    check_segment,
    check_type,
    declared_index,
)

Action: TypeAlias = Literal["Put", "Update", "Delete", "ConditionCheck"]
"""What a transaction calls it; the first three are calls of their own, as in PutItem."""
Payload: TypeAlias = dict[str, Any]

UNUSED = "unused"
"""An attribute that no item has, for an update that changes nothing."""


def is_transaction(writes: Sequence[Write]) -> bool:
    """Whether the writes go to DynamoDB as a transaction, whose token makes it safe to repeat.

    A single one does without where doing it twice is the same as doing it once: it adds nothing,
    and its conditions still hold after it.
    """
    return len(writes) != 1 or not _is_repeatable(writes[0])


def _is_repeatable(write: Write) -> bool:
    if isinstance(write, Check) or (isinstance(write, Update) and write.add):
        return False
    return all(_still_holds(condition, write) for condition in write.when)


def _still_holds(condition: Condition, write: Put | Update | Delete) -> bool:
    """Whether a condition that held before the write, which adds nothing, holds after it too."""
    if isinstance(write, Delete) or isinstance(condition, Absent):
        return isinstance(write, Delete) == isinstance(condition, Absent)
    if isinstance(condition, Exists):
        return True
    if isinstance(write, Put):
        after = write.item.get(condition.field)
    elif condition.field in write.set:
        after = write.set[condition.field]
    elif condition.field in write.remove:
        after = None
    else:
        return True
    if isinstance(condition, Equals):
        return bool(after == condition.value)
    return after is not None and bool(after < condition.value)


class _Expression:
    """The placeholders that one request's expressions share."""

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self.names: dict[str, str] = {}
        self.values: dict[str, Value] = {}

    def name(self, field: str) -> str:
        placeholder = f"#{field}"
        self.names[placeholder] = field
        return placeholder

    def value(self, field: str, value: Any) -> str:
        """The field's new value."""
        placeholder = f":{field}"
        self.values[placeholder] = self._attributes.value(field, value)
        return placeholder

    def compared(self, field: str, value: Any) -> str:
        """Something to compare the field with."""
        placeholder = f":{len(self.values)}"
        self.values[placeholder] = self._attributes.value(field, value)
        return placeholder

    def conditions(self, table: Table, when: Sequence[Condition]) -> str:
        """All of the conditions; those on a field hold only of an item that is there."""
        terms = []
        for condition in when:
            match condition:
                case Absent():
                    terms.append(f"attribute_not_exists({self.name(table.partition)})")
                case Exists():
                    terms.append(f"attribute_exists({self.name(table.partition)})")
                case Equals(field, None):
                    check_type(table, field, type(None), is_optional=True)
                    terms.append(f"attribute_exists({self.name(table.partition)})")
                    terms.append(f"attribute_not_exists({self.name(field)})")
                case Equals(field, value):
                    terms.append(f"{self.name(field)} = {self.compared(field, value)}")
                case LessThan(field, value):
                    check_comparison(table, field, type(value))
                    terms.append(f"{self.name(field)} < {self.compared(field, value)}")
        return " AND ".join(terms)

    def changes(self, write: Update) -> str:
        """What the update does."""
        check_changes(write)
        sets, removes = [], [self.name(field) for field in write.remove]
        for field, value in write.set.items():
            if value is None:
                removes.append(self.name(field))
            else:
                sets.append(f"{self.name(field)} = {self.value(field, value)}")
        adds = [f"{self.name(field)} {self.value(field, n)}" for field, n in write.add.items()]
        if not (sets or adds or removes):
            removes.append(self.name(UNUSED))
        clauses = (("SET", sets), ("ADD", adds), ("REMOVE", removes))
        return " ".join(f"{verb} {', '.join(parts)}" for verb, parts in clauses if parts)

    def into(self, payload: Payload) -> Payload:
        """The payload with the placeholders that its expressions use."""
        if self.names:
            payload["ExpressionAttributeNames"] = self.names
        if self.values:
            payload["ExpressionAttributeValues"] = self.values
        return payload


class TableRequests:
    """One table's requests. Raises ValueError for what does not fit the table's declaration."""

    def __init__(self, table: Table, prefix: str) -> None:
        self.table = table
        self.name = table_name(prefix, table)
        self.attributes = Attributes(table)

    def write(self, write: Write) -> tuple[Action, Payload]:
        """A write as one action of a transaction, or as the payload of a call of its own.

        A condition that fails is told with the item as it is.
        """
        expression = _Expression(self.attributes)
        payload: Payload = {"TableName": self.name}
        action: Action
        match write:
            case Put():
                action = "Put"
                payload["Item"] = self.attributes.item(write.item)
            case Update():
                action = "Update"
                payload["Key"] = self.attributes.key(write.key)
                payload["UpdateExpression"] = expression.changes(write)
            case Delete():
                action = "Delete"
                payload["Key"] = self.attributes.key(write.key)
            case Check():
                action = "ConditionCheck"
                payload["Key"] = self.attributes.key(write.key)
        conditions = expression.conditions(self.table, write.when)
        if action == "ConditionCheck" and not conditions:
            name = expression.name(self.table.partition)
            conditions = f"attribute_exists({name}) OR attribute_not_exists({name})"
        if conditions:
            payload["ConditionExpression"] = conditions
            payload["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        return action, expression.into(payload)

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
        consistent: bool,
    ) -> tuple[Payload | None, tuple[str, ...]]:
        """The call for a page of one partition, and the fields that a position in it names.

        It asks for one item more than the page may hold. The payload is None where no item could
        match: DynamoDB refuses empty ranges and keys.
        """
        check_limit(limit)
        declared = None if index is None else declared_index(self.table, index)
        order = self.table.order(declared)
        partition_field = self.table.partition if declared is None else declared.partition
        if consistent and declared is not None and not declared.local:
            raise ValueError("a global index is not strongly consistent")
        check_type(self.table, partition_field, type(partition))
        if not order and (low, high, prefix) != (None, None, None):
            raise ValueError(f"{self.table.name} has no sort key")
        for bound in (low, high):
            if bound is not None:
                check_type(self.table, order[0], type(bound))
        if prefix is not None and (
            low is not None or high is not None or self.table.fields[order[0]] is not str
        ):
            raise ValueError("a prefix goes with strings, and without other bounds")
        start = None if after is None else self._start(order, after)
        if start is not None:
            start[partition_field] = self.attributes.value(partition_field, partition)
        if not can_be_key((partition, prefix or None)) or high == "":
            return None, order
        low = None if low == "" else low
        if low is not None and high is not None and low > high:
            return None, order
        expression = _Expression(self.attributes)
        name, compared = expression.name, expression.compared
        terms = [f"{name(partition_field)} = {compared(partition_field, partition)}"]
        if prefix:
            terms.append(f"begins_with({name(order[0])}, {compared(order[0], prefix)})")
        elif low is not None and high is not None:
            bounds = f"{compared(order[0], low)} AND {compared(order[0], high)}"
            terms.append(f"{name(order[0])} BETWEEN {bounds}")
        elif low is not None:
            terms.append(f"{name(order[0])} >= {compared(order[0], low)}")
        elif high is not None:
            terms.append(f"{name(order[0])} <= {compared(order[0], high)}")
        payload: Payload = {
            "TableName": self.name,
            "KeyConditionExpression": " AND ".join(terms),
            "ScanIndexForward": not reverse,
            "Limit": limit + 1,
            "ConsistentRead": consistent,
        }
        if declared is not None:
            payload["IndexName"] = declared.name
        if start is not None:
            payload["ExclusiveStartKey"] = start
        return expression.into(payload), order

    def scan(
        self, *, segment: int, segments: int, limit: int, after: Position | None
    ) -> tuple[Payload, tuple[str, ...]]:
        """The call for a page of one segment, and the fields that a position in it names.

        It asks for one item more than the page may hold.
        """
        check_limit(limit)
        check_segment(segment, segments)
        order = self.table.key_fields
        payload: Payload = {"TableName": self.name, "Limit": limit + 1, "ConsistentRead": True}
        if segments > 1:
            payload |= {"Segment": segment, "TotalSegments": segments}
        if after is not None:
            payload["ExclusiveStartKey"] = self._start(order, after)
        return payload, order

    def _start(self, order: Sequence[str], after: Position) -> dict[str, Value]:
        if not order or len(order) != len(after):
            raise ValueError("a position is valid for the same query")
        return {
            field: self.attributes.value(field, value)
            for field, value in zip(order, after, strict=True)
        }


def table_name(prefix: str, table: Table) -> str:
    """What the table is called in DynamoDB."""
    return f"{prefix}.{table.name}"
