"""What DynamoDB itself says that a call consumed, charged to the meter of the context.

The shapes are those of `ConsumedCapacity` in the Amazon DynamoDB API Reference, asked for with
`ReturnConsumedCapacity: INDEXES`. Only the transaction calls tell read units from write units: a
TransactWriteItems that was sent twice reports the second time as reads. The others report plain
units, and the call says which kind they are. A call that was refused reports nothing, though
refused writes are charged: a price that names consumed units leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from tidings.storage.metered import Meter, Place

Consumed: TypeAlias = Mapping[str, Any]
"""One `ConsumedCapacity` structure: a table's units, those of its indexes beside them."""
Kind: TypeAlias = Literal["read", "write"]

RETURN_CONSUMED = "INDEXES"
"""The value of `ReturnConsumedCapacity` that `charge_consumed` understands all of."""

_INDEX_KINDS = ("LocalSecondaryIndexes", "GlobalSecondaryIndexes")


def charge_consumed(
    meter: Meter | None,
    consumed: Consumed | Sequence[Consumed] | None,
    *,
    kind: Kind,
    prefix: str = "",
) -> None:
    """Charge one answered request with its `ConsumedCapacity`, one structure or a list of them.

    `kind` is what the action does: "read" for GetItem, BatchGetItem, Query and Scan, "write" for
    the others. `prefix` is what the names of the tables begin with and is left out of `Place`.
    An engine that reported nothing has None. Does nothing without a meter.
    """
    if meter is None:
        return
    meter.requests += 1
    for each in (consumed,) if isinstance(consumed, Mapping) else consumed or ():
        table = each["TableName"].removeprefix(prefix)
        _charge(meter, Place(table, None), each.get("Table", each), kind)
        for index_kind in _INDEX_KINDS:
            for index, capacity in (each.get(index_kind) or {}).items():
                _charge(meter, Place(table, index), capacity, kind)


def _charge(meter: Meter, place: Place, capacity: Consumed, kind: Kind) -> None:
    units = meter.places[place]
    if "ReadCapacityUnits" in capacity or "WriteCapacityUnits" in capacity:
        units.read += capacity.get("ReadCapacityUnits", 0.0)
        units.write += capacity.get("WriteCapacityUnits", 0.0)
    elif kind == "read":
        units.read += capacity.get("CapacityUnits", 0.0)
    else:
        units.write += capacity.get("CapacityUnits", 0.0)
