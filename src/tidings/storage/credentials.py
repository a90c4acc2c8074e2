"""Keys to sign with, from every source that AWS users have.

botocore's chain finds them: environment, profile, SSO, web identity, process, container and
instance. It blocks, so it runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from tidings.errors import Unavailable

LOOK_INTERVAL_S = 60.0
"""How often the chain is asked whether its keys are still good. It renews those that expire within
15 minutes, so what is signed in between is never signed with expired ones."""

_log = structlog.get_logger(__name__)


class Keys(msgspec.Struct, frozen=True):
    """What a request is signed with."""

    access_key: str
    secret_key: str
    token: str | None = None


LOCAL_KEYS = Keys("local", "local")
"""For engines that ask for a signature and don't check it."""


class Credentials:
    """The keys of this process, renewed before they expire.

    With `is_local`, for an engine that is not AWS, the instance's own keys are not asked for, and
    without any keys in the chain LOCAL_KEYS serve.
    """

    def __init__(
        self, *, is_local: bool = False, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_local = is_local
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, "credentials")
        self._found: Any = None
        self._keys: Keys | None = None
        self._looked_at = 0.0
        self._looking: asyncio.Task[Keys] | None = None

    async def keys(self) -> Keys:
        """The present keys, at once unless they were never asked for.

        Raises Unavailable where there are none.
        """
        if self._keys is None:
            return await self._look()
        if self._monotonic() - self._looked_at > LOOK_INTERVAL_S:
            self._begin_to_look()
        return self._keys

    async def renew(self, refused: Keys) -> bool:
        """Go through the chain anew, since AWS refuses these keys; whether there are others now.

        Raises Unavailable where there are none.
        """
        if self._keys == refused:
            self._found = None
            await self._look()
        return self._keys != refused

    def close(self) -> None:
        """Let go of the thread."""
        if self._looking is not None:
            self._looking.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> Keys:
        self._begin_to_look()
        assert self._looking is not None
        # One look for all who wait; whoever stops waiting doesn't end it for the others.
        return await asyncio.shield(self._looking)

    def _begin_to_look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._ask())
            self._looking.add_done_callback(_retrieve)

    async def _ask(self) -> Keys:
        self._looked_at = self._monotonic()
        loop = asyncio.get_running_loop()
        try:
            self._found, keys = await loop.run_in_executor(
                self._thread, self._ask_chain, self._found
            )
        except (BotoCoreError, ClientError, RuntimeError) as error:
            _log.warning("credentials_failed", exc_info=error)
            raise Unavailable("The AWS credentials can't be read.") from error
        self._keys = keys
        return keys

    def _ask_chain(self, found: Any) -> tuple[Any, Keys]:
        if found is None:
            session = botocore.session.Session()
            if self._is_local:
                session.get_component("credential_provider").remove("iam-role")
            found = session.get_credentials()
        if found is not None:
            frozen = found.get_frozen_credentials()
            return found, Keys(frozen.access_key, frozen.secret_key, frozen.token)
        if self._is_local:
            return None, LOCAL_KEYS
        raise Unavailable(
            "There are no AWS credentials: set them in the environment, choose a profile "
            "(AWS_PROFILE), or give the machine or container a role."
        )


def _retrieve(task: asyncio.Task[Keys]) -> None:
    """A look that failed while nobody waited was logged; the next one may go better."""
    if not task.cancelled():
        task.exception()
