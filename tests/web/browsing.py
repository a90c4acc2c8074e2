"""A real browser on real services: pages of another origin, behind a network that can be broken."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.command_line import run_tidings
from tests.node_processes import Node, running_nodes
from tidings import wire
from tidings.cli.parts import open_parts
from tidings.client import Client
from tidings.web.assets import MEDIA_TYPES, assets, entrance

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DEADLINE_S = 60.0
HELD_S = 20.0
"""How long a middlebox waits for the end of a stream."""
JWT_SECRET = "a secret of the customer's own server"
FOLDER = Path(__file__).parent
CHUNK_BYTES = 65_536
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src http://127.0.0.1:* ws://127.0.0.1:*; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)

expect.set_options(timeout=DEADLINE_S * 1000)


class Network:
    """What lies between the pages and the service: can be cut, and can let some things not pass."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.mend()

    def mend(self) -> None:
        """Everything passes."""
        self.is_away = False
        self.has_sockets = True
        self.has_streams = True
        self.loses_answers = False

    def cut(self) -> None:
        """Reset all connections; what was on the way is lost."""
        for writer in self._writers:
            writer.transport.abort()

    def go_away(self) -> None:
        """Cut, and let nothing pass until `mend`."""
        self.is_away = True
        self.cut()

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if not self.has_sockets and b"upgrade: websocket" in chunk.lower():
                return
            if not self.has_streams and chunk.startswith(b"GET /v1/events"):
                await asyncio.sleep(HELD_S)  # as a middlebox that waits for the end does
                return
            writer.write(chunk)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if not self.loses_answers:
                writer.write(chunk)
                await writer.drain()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            writers.add(back)
            if self.is_away:
                return
            self._writers |= writers
            ways = (self._there(reader, back), self._back(there, writer))
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except ConnectionError:
            pass
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        try:
            await asyncio.wait((task,))
        finally:
            self._tasks.discard(task)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Network]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # for those who wait for them


class Tab:
    """One tab with the tests' page, and the library in it as `tidings`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def start(self, **options: Any) -> None:
        """Connect; the options are those of `connect`."""
        await self.page.evaluate("(options) => start(options)", options)

    async def see(self, expression: str, argument: Any = None) -> Any:
        """The value of an expression on the page."""
        return await self.page.evaluate(expression, argument)

    async def until(self, expression: str, argument: Any = None) -> None:
        """Return once it is true."""
        assert not expression.startswith("async"), "a promise counts as true"
        await self.page.wait_for_function(expression, arg=argument, timeout=DEADLINE_S * 1000)

    async def send(self, room_id: str, text: str) -> Any:
        """The entry, once it is durable."""
        return await self.see("([room, text]) => tidings.send(room, text)", [room_id, text])

    async def write(self, room_id: str, text: str) -> None:
        """Send without waiting."""
        await self.see("([room, text]) => void tidings.send(room, text)", [room_id, text])

    async def live(self) -> None:
        """Return once it is connected and nothing is missing."""
        await self.until("() => tidings.isSettled")

    async def texts(self) -> list[str]:
        """The texts that are shown of the room that is looked at."""
        shown: list[str] = await self.see(
            "() => [...document.querySelectorAll('#log li')].map((line) => line.textContent)"
        )
        return shown


class House:
    """A service, a network before it, and a host of pages, for one browser."""

    def __init__(
        self, browser: Browser, node: Node, network: Network, pages: str, server: Client
    ) -> None:
        self.browser = browser
        self.node = node
        self.network = network
        self.pages = pages
        self.server = server
        self.operator_key = ""
        self.publishable_key = ""

    async def person(self, user_id: str, role: wire.Role = "manager") -> Client:
        """A user with a session that no browser has."""
        await self.server.create_user(f"Person {user_id}", role, user_id=user_id)
        return self.server.as_session((await self.server.create_session(user_id)).token)

    async def token(self, user_id: str) -> str:
        """Of a new session."""
        return (await self.server.create_session(user_id)).token

    @asynccontextmanager
    async def context(self, **options: Any) -> AsyncIterator[BrowserContext]:
        """A browser of its own: nothing is shared with other contexts."""
        context = await self.browser.new_context(**options)
        try:
            yield context
        finally:
            await context.close()

    async def blank(self, context: BrowserContext) -> Tab:
        """A tab with the page, not connected yet."""
        tab = Tab(await context.new_page())
        await tab.page.goto(f"{self.pages}/")
        await tab.until("() => window.start !== undefined")
        return tab

    async def open(self, context: BrowserContext, **options: Any) -> Tab:
        """A tab that is connected; the session is the kept one unless there is a token."""
        tab = await self.blank(context)
        await tab.start(url=self.network.url, **options)
        return tab

    async def reload(self, tab: Tab, **options: Any) -> None:
        """Load the page anew and go on with the kept session."""
        await tab.page.reload()
        await tab.until("() => window.start !== undefined")
        await tab.start(url=self.network.url, **options)

    async def connections(self, way: str) -> int:
        """How many connections the service has of that way."""
        client = self.server.as_session(self.operator_key)
        async with client.connections().get(
            f"{self.server.url}/metrics", headers=client.headers()
        ) as reply:
            for line in (await reply.text()).splitlines():
                if line.startswith("tidings_connections{") and f'"{way}"' in line:
                    return int(float(line.rpartition(" ")[2]))
        return 0

    async def until_connections(self, way: str, count: int) -> None:
        """Return once there are so many."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.connections(way) != count:
                await asyncio.sleep(0.05)


async def _page(request: web.Request) -> web.Response:
    name = request.path.lstrip("/") or "page.html"
    if name == "client.js":
        asset = entrance("client/client.js")
        body, media_type = asset.body, asset.media_type
    elif name.startswith("assets/"):
        asset = assets()[name.split("/", 2)[2]]
        body, media_type = asset.body, asset.media_type
    elif (file := FOLDER / name).parent == FOLDER and file.is_file():
        body = file.read_bytes()
        media_type = MEDIA_TYPES.get(file.suffix[1:], "text/html; charset=utf-8")
    else:
        raise web.HTTPNotFound
    return web.Response(
        body=body, headers={"Content-Type": media_type, "Content-Security-Policy": PAGE_POLICY}
    )


@asynccontextmanager
async def _pages_hosted() -> AsyncIterator[str]:
    """A site with the tests' page and a copy of the library, as its owner would have one."""
    application = web.Application()
    application.router.add_get("/{path:.*}", _page)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened_house(folder: Path) -> AsyncIterator[House]:
    """Everything, started; what the service logs goes to the folder."""
    assert CHROMIUM is not None
    store = f"sqlite:///{folder / 'tidings.db'}"
    made = [
        await asyncio.to_thread(run_tidings, "keys", "create", *more, "--store", store)
        for more in ((), ("--operator",))
    ]
    async with open_parts(store) as parts:
        workspace = await parts.workspaces.default(None)
        await parts.workspaces.update(workspace.id, jwt=("HS256", JWT_SECRET))
        publishable_key = workspace.publishable_key
    async with (
        running_nodes(1, store, folder) as [node],
        Network(node.port).opened() as network,
        _pages_hosted() as pages,
        Client(node.url, made[0].last_line) as server,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, headless=True
        )
        try:
            house = House(browser, node, network, pages, server)
            house.operator_key = made[1].last_line
            house.publishable_key = publishable_key
            yield house
        finally:
            await browser.close()
