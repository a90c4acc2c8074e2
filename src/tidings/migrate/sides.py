"""The two stores of a move, opened bare: not as those open them who follow the move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from tidings.config import DynamoAddress, Settings, SqliteAddress, StoreAddress
from tidings.engines import open_engine
from tidings.errors import NotFound, TidingsError
from tidings.migrate.captures import Capture
from tidings.migrate.sqlite_captures import SqliteCapture
from tidings.storage import moves
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Store
from tidings.storage.moves import Move, Pair, Side
from tidings.storage.retries import Kind

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sides:
    """Both stores of a move, and where they are."""

    pair: Pair
    source: StoreAddress
    target: StoreAddress

    def open_capture(self, side: Side, move: Move) -> Capture:
        """What captures the changes of one of the two, for that move.

        Raises Unavailable for one out of reach.
        """
        match self.source if side == "source" else self.target:
            case SqliteAddress(path):
                return SqliteCapture(path, move=move)
            case DynamoAddress() as address:
                from tidings.migrate.stream_captures import StreamCapture

                store = self.pair.at(side)
                assert isinstance(store, DynamoStore)
                return StreamCapture(store, address)


@asynccontextmanager
async def open_sides(
    source: StoreAddress,
    target: StoreAddress,
    *,
    on_retry: Callable[[Kind], None] | None = None,
    makes_target: bool = False,
    needs_both: bool = True,
) -> AsyncIterator[Sides]:
    """Both stores, closed on leaving; unless it `needs_both`, one of them may be out of reach.

    With `makes_target`, the target is made where that costs nothing. Raises what opening raises.
    """
    async with AsyncExitStack() as stack:
        stores: list[Store | None] = []
        for address in (source, target):
            is_made = makes_target and address is target
            opening = open_engine(address, must_exist=not is_made, on_retry=on_retry)
            try:
                stores.append(await stack.enter_async_context(opening))
            except TidingsError as error:
                if needs_both or stores == [None]:
                    raise
                _log.warning("store_out_of_reach", store=address.url, detail=error.detail)
                stores.append(None)
        yield Sides(Pair(*stores), source, target)


async def find_move(store: StoreAddress) -> Move:
    """The move that the store at the address has to do with, or had. Raises NotFound."""
    async with open_engine(store, must_exist=True) as engine:
        move = await moves.read_row(engine)
    if move is None:
        raise NotFound(f"No move was begun at {store.url}: see `tidings migrate plan`.")
    return move


@asynccontextmanager
async def open_move(
    store: StoreAddress,
    *,
    on_retry: Callable[[Kind], None] | None = None,
    needs_both: bool = True,
) -> AsyncIterator[tuple[Sides, Move]]:
    """Both stores of the move that the store at the address has to do with, and its record.

    Raises NotFound where there is none, and what `open_sides` raises.
    """
    found = await find_move(store)
    source, target = (Settings(store=url).store_address for url in (found.source, found.target))
    async with open_sides(source, target, on_retry=on_retry, needs_both=needs_both) as sides:
        yield sides, await moves.read(sides.pair) or found
