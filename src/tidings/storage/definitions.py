"""The declared tables as DynamoDB's own definitions: requests to make them, and Terraform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tidings.storage.attributes import KEY_TYPES
from tidings.storage.expressions import Payload, table_name
from tidings.storage.interface import Index, Table


class Throughput(msgspec.Struct, frozen=True):
    """Provisioned capacity of each table and of each global index, in units per second."""

    read_units: int
    write_units: int


def creation(table: Table, prefix: str, throughput: Throughput | None = None) -> Payload:
    """The payload of CreateTable. Without a throughput the table is paid for by request."""
    payload: Payload = {
        "TableName": table_name(prefix, table),
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": kind} for name, kind in key_types(table)
        ],
        "KeySchema": _key_schema(table.partition, table.sort),
        **_billing(throughput),
    }
    local = [_index(table, index) for index in table.indexes if index.local]
    if local:
        payload["LocalSecondaryIndexes"] = local
    others = [global_index(table, index, throughput) for index in table.indexes if not index.local]
    if others:
        payload["GlobalSecondaryIndexes"] = others
    return payload


def global_index(table: Table, index: Index, throughput: Throughput | None) -> Payload:
    """A global index as CreateTable and UpdateTable want it."""
    payload = _index(table, index)
    if throughput is not None:
        payload["ProvisionedThroughput"] = _provisioned(throughput)
    return payload


def time_to_live(table: Table, prefix: str) -> Payload | None:
    """The payload of UpdateTimeToLive, or None for a table whose items don't expire."""
    if table.expires is None:
        return None
    return {
        "TableName": table_name(prefix, table),
        "TimeToLiveSpecification": {"Enabled": True, "AttributeName": table.expires},
    }


def key_types(table: Table, indexes: Iterable[Index] | None = None) -> Iterator[tuple[str, str]]:
    """Every field that the table or an index has as a key, with DynamoDB's name of its type."""
    fields = dict.fromkeys(table.key_fields)
    for index in table.indexes if indexes is None else indexes:
        fields |= dict.fromkeys((index.partition, index.sort))
    for field in fields:
        yield field, KEY_TYPES[table.fields[field]]


def _index(table: Table, index: Index) -> Payload:
    return {
        "IndexName": index.name,
        "KeySchema": _key_schema(index.partition, index.sort),
        "Projection": _projection(table, index),
    }


def _projection(table: Table, index: Index) -> Payload:
    if index.projected is None:
        return {"ProjectionType": "ALL"}
    others = [name for name in index.projected if name not in table.key_fields]
    if not others:
        return {"ProjectionType": "KEYS_ONLY"}
    return {"ProjectionType": "INCLUDE", "NonKeyAttributes": others}


def _key_schema(partition: str, sort: str | None) -> list[Payload]:
    schema = [{"AttributeName": partition, "KeyType": "HASH"}]
    if sort is not None:
        schema.append({"AttributeName": sort, "KeyType": "RANGE"})
    return schema


def _billing(throughput: Throughput | None) -> Payload:
    if throughput is None:
        return {"BillingMode": "PAY_PER_REQUEST"}
    return {"BillingMode": "PROVISIONED", "ProvisionedThroughput": _provisioned(throughput)}


def _provisioned(throughput: Throughput) -> Payload:
    return {
        "ReadCapacityUnits": throughput.read_units,
        "WriteCapacityUnits": throughput.write_units,
    }


# -- Terraform


def terraform(tables: Sequence[Table], prefix: str, throughput: Throughput | None = None) -> str:
    """The tables as resources `aws_dynamodb_table` of Terraform's AWS provider.

    They are the tables that `tidings tables create` makes, and protected from deletion besides.
    """
    return "\n".join(_resource(table, prefix, throughput) for table in tables)


def _resource(table: Table, prefix: str, throughput: Throughput | None) -> str:
    name = table_name(prefix, table)
    blocks = [
        _block("attribute", {"name": field, "type": kind}) for field, kind in key_types(table)
    ]
    for index in table.indexes:
        projection = _projection(table, index)
        fields: dict[str, Any] = {"name": index.name}
        if not index.local:
            fields["hash_key"] = index.partition
        fields["range_key"] = index.sort
        fields["projection_type"] = projection["ProjectionType"]
        if "NonKeyAttributes" in projection:
            fields["non_key_attributes"] = projection["NonKeyAttributes"]
        if throughput is not None and not index.local:
            fields |= _terraform_units(throughput)
        kind = "local" if index.local else "global"
        blocks.append(_block(f"{kind}_secondary_index", fields))
    if table.expires is not None:
        blocks.append(_block("ttl", {"attribute_name": table.expires, "enabled": True}))
    fields = {
        "name": name,
        "billing_mode": "PAY_PER_REQUEST" if throughput is None else "PROVISIONED",
        **({} if throughput is None else _terraform_units(throughput)),
        "hash_key": table.partition,
        **({} if table.sort is None else {"range_key": table.sort}),
        "deletion_protection_enabled": True,
    }
    resource = name.replace(".", "_")
    return _block(f'resource "aws_dynamodb_table" "{resource}"', fields, blocks)


def _terraform_units(throughput: Throughput) -> dict[str, int]:
    return {"read_capacity": throughput.read_units, "write_capacity": throughput.write_units}


def _block(head: str, fields: Mapping[str, Any], blocks: Sequence[str] = ()) -> str:
    """A block as `terraform fmt` would write it."""
    width = max(map(len, fields))
    lines = [f"{name:<{width}} = {_terraform_value(value)}" for name, value in fields.items()]
    for block in blocks:
        lines += ["", *block.splitlines()]
    inner = "\n".join(f"  {line}" if line else "" for line in lines)
    return f"{head} {{\n{inner}\n}}\n"


def _terraform_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_terraform_value, value))}]"
    return msgspec.json.encode(value).decode()  # strings, numbers and booleans are the same
