"""Keys from the places where AWS users have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from tidings.clock import rfc3339
from tidings.errors import Unavailable
from tidings.storage.credentials import LOCAL_KEYS, LOOK_INTERVAL_S, Credentials, Keys


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where AWS's files are looked for; nothing else of this machine takes part."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def now_s() -> list[float]:
    """A clock that stands still; its first item is the time."""
    return [0.0]


@pytest.fixture
async def credentials(now_s: list[float]) -> AsyncIterator[Credentials]:
    made = Credentials(monotonic=lambda: now_s[0])
    yield made
    made.close()


async def test_the_environment(credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert await credentials.keys() == Keys("id", "secret", "token")


async def test_a_profile(
    credentials: Credentials, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "credentials").write_text(
        "[work]\naws_access_key_id = id\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert await credentials.keys() == Keys("id", "secret")


async def test_a_profile_that_is_not_there(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    with pytest.raises(Unavailable, match="can't be read"):
        await credentials.keys()


async def test_none_at_all(credentials: Credentials) -> None:
    with pytest.raises(Unavailable, match="no AWS credentials: set them"):
        await credentials.keys()


async def test_an_engine_that_is_not_aws_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # The instance's keys would be asked for over the network.
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    credentials = Credentials(is_local=True)
    assert await credentials.keys() == LOCAL_KEYS
    credentials.close()


@asynccontextmanager
async def container(life: Callable[[], timedelta]) -> AsyncIterator[str]:
    """What gives the keys of a container's role: new ones each time, good for that long."""
    given = 0

    async def give(_: web.Request) -> web.Response:
        nonlocal given
        given += 1
        expires_at = datetime.now(UTC) + life()
        return web.json_response(
            {
                "AccessKeyId": f"id-{given}",
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": rfc3339(int(expires_at.timestamp() * 1000)),
            }
        )

    application = web.Application()
    application.router.add_get("/role", give)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/role"
    finally:
        await runner.cleanup()


async def test_a_containers_role_is_renewed_before_it_expires(
    credentials: Credentials, now_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with container(lambda: timedelta(minutes=5)) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        first = await credentials.keys()
        assert await credentials.keys() == first
        now_s[0] += LOOK_INTERVAL_S + 1
        async with asyncio.timeout(60):
            while await credentials.keys() == first:
                await asyncio.sleep(0.01)


async def test_a_role_that_lasts_is_asked_for_once(
    credentials: Credentials, now_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with container(lambda: timedelta(hours=6)) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        found = await asyncio.gather(*(credentials.keys() for _ in range(10)))
        assert {keys.access_key for keys in found} == {"id-1"}
        now_s[0] += LOOK_INTERVAL_S + 1
        assert await credentials.renew(Keys("those", "before"))
        assert (await credentials.keys()).access_key == "id-1"


async def test_refused_keys_are_looked_for_anew(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    old = await credentials.keys()
    assert not await credentials.renew(old)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
    renewed = await asyncio.gather(*(credentials.renew(old) for _ in range(10)))
    assert all(renewed)
    assert (await credentials.keys()).access_key == "new"
