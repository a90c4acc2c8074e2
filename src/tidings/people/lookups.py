"""Short-lived lookups of what changes rarely: bounded, one load at a time, forgotten at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from tidings.clock import Clock

Value = TypeVar("Value")


class Lookups(Generic[Value]):
    """Remembers what `load` found, absence too, for `ttl_ms`; at most `size_max` keys.

    Of many tasks that ask for a key at the same time one loads it and the others wait for that
    load. After `forget` no task gets, and nothing keeps, a value whose load began before. When it
    is full the value that would expire first goes. `load` gets keys and returns values in their
    order; what it raises goes to everybody who waits for that load.
    """

    def __init__(
        self,
        load: Callable[[Sequence[str]], Awaitable[Sequence[Value]]],
        clock: Clock,
        *,
        ttl_ms: int,
        size_max: int,
    ) -> None:
        self._load = load
        self._clock = clock
        self._ttl_ms = ttl_ms
        self._size_max = size_max
        self._known: dict[str, tuple[int, Value]] = {}
        """When the load began and what it found, in that order."""
        self._loading: dict[str, asyncio.Future[Value]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, key: str) -> Value:
        """The value, at most `ttl_ms` old."""
        known = self._known.get(key)
        if known is not None and 0 <= self._clock() - known[0] < self._ttl_ms:
            return known[1]
        return (await self.get_many((key,)))[key]

    async def get_many(self, keys: Sequence[str]) -> dict[str, Value]:
        """The values of all keys, each at most `ttl_ms` old."""
        found: dict[str, Value] = {}
        missing = dict.fromkeys(keys)
        while missing:
            now = self._clock()
            for key in tuple(missing):
                known = self._known.get(key)
                if known is not None and 0 <= now - known[0] < self._ttl_ms:
                    found[key] = known[1]
                    del missing[key]
            own = [key for key in missing if key not in self._loading]
            if own:
                found.update(await self._fetch(own))
                for key in own:
                    del missing[key]
            elif missing:
                key = next(iter(missing))
                loading = self._loading[key]
                await asyncio.wait((loading,))
                if not loading.cancelled():
                    found[key] = loading.result()
                    del missing[key]
        return found

    def forget(self, key: str) -> None:
        """The value changed: whoever asks from now on gets what is stored now."""
        self._known.pop(key, None)
        self._loading.pop(key, None)

    async def _fetch(self, keys: Sequence[str]) -> dict[str, Value]:
        began = self._clock()
        waiters = {key: asyncio.get_running_loop().create_future() for key in keys}
        self._loading.update(waiters)
        try:
            values = dict(zip(keys, await self._load(keys), strict=True))
        except BaseException as error:
            for key, waiter in waiters.items():
                if self._loading.get(key) is waiter:
                    del self._loading[key]
                if isinstance(error, Exception):
                    waiter.set_exception(error)
                    waiter.exception()  # nobody has to be waiting
                else:
                    waiter.cancel()  # whoever waits loads it themselves
            raise
        for key, waiter in waiters.items():
            waiter.set_result(values[key])
            if self._loading.get(key) is waiter:
                del self._loading[key]
                self._keep(key, began, values[key])
        return values

    def _keep(self, key: str, began: int, value: Value) -> None:
        self._known.pop(key, None)
        while len(self._known) >= self._size_max:
            del self._known[next(iter(self._known))]
        self._known[key] = (began, value)
