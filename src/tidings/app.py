"""The composition root: settings become engines, engines features, features a web application.

What was opened last is closed first.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
from aiohttp import web

from tidings import logs, wire
from tidings.api.application import Unfinished, make_application
from tidings.api.endpoints import Section
from tidings.api.features import Features
from tidings.api.protocol import Runner
from tidings.api.sections import SECTIONS
from tidings.blobs.blobs import Blobs
from tidings.blobs.files import FileShelf
from tidings.blobs.shelves import Shelf
from tidings.chat.attachments import Fitness
from tidings.chat.chat import Chat
from tidings.chat.updates import UserUpdate
from tidings.clock import Clock, system_clock
from tidings.cluster.cluster import Cluster
from tidings.cluster.nodes import Nodes
from tidings.config import (
    LOCAL_BUS,
    BlobsAddress,
    FilesAddress,
    S3Address,
    SettingRefused,
    Settings,
    SqliteAddress,
)
from tidings.cursors import Cursors
from tidings.delivery import queues
from tidings.delivery.bus import Bus, LocalBus
from tidings.delivery.events import Events
from tidings.delivery.hub import Hub
from tidings.delivery.push import Pushes
from tidings.delivery.push_web import KIND as WEB_PUSH
from tidings.delivery.push_web import WebPush
from tidings.delivery.syncs import Syncs
from tidings.delivery.websocket import Sockets
from tidings.delivery.whereabouts import Whereabouts
from tidings.engines import open_store
from tidings.errors import Unavailable, ValidationFailed
from tidings.ids import IdMaker
from tidings.metrics import Metrics
from tidings.people.callers import Caller
from tidings.people.limits import Policy, parse_policy
from tidings.people.people import People
from tidings.storage.faults import read_profile
from tidings.storage.faulty import FaultyStore
from tidings.storage.interface import Absent, ConditionFailed, Item, Put, Store
from tidings.storage.moving import MovingStore
from tidings.storage.progress import read_progress
from tidings.storage.retries import RetryPolicy
from tidings.storage.tables import SECRETS

CURSOR_SECRET = "cursors"  # noqa: S105  # the name of the secret
PUSH_SECRET = "push"  # noqa: S105  # likewise
SECRET_BYTES = 32
READY_DEADLINE_S = 2.0
KEEP_ALIVE_S = 75.0
"""How long an idle HTTP connection stays open."""
BACKLOG = 4_096
"""Connections that wait to be accepted, when all devices come back at once."""
SWITCH_INTERVAL_S = 0.0005
"""How long the loop keeps the interpreter from the thread that commits (decision 1)."""
GARBAGE_THRESHOLDS = (100_000, 10, 10)
"""Collections are much rarer than Python's own: what a message allocates goes with its last use,
and a thousand of them in flight are tens of thousands of objects to go through for nothing. At
20,000 that was a tenth of all work."""
FIRST_KEY_NAME = "first start"

# A planned stop ends within 10 s: these are spent one after the other.
DRAIN_TIMEOUT_S = 4.0
"""For devices to read what is due and the closing frame."""
REQUESTS_TIMEOUT_S = 1.0
"""For requests in flight, twice: to end by themselves, and to end after being cancelled."""
CHANGES_TIMEOUT_S = 1.0
"""For changes whose clients went away."""
CHAT_TIMEOUT_S = 1.5
"""For commits that wait in the rooms' queues."""
CLUSTER_TIMEOUT_S = 0.5
"""To say to other nodes that this one is gone."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """One running service: its parts, and the web application that nothing listens to yet."""

    store: MovingStore
    cursors: Cursors
    metrics: Metrics
    people: People
    nodes: Nodes
    chat: Chat
    hub: Hub
    syncs: Syncs
    pushes: Pushes
    unfinished: Unfinished
    web: web.Application

    @property
    def engine(self) -> Store:
        """The store below the meter: of two between which the service moves, the one in use."""
        return self.store.engine


@asynccontextmanager
async def open_app(
    settings: Settings, *, clock: Clock = system_clock, sections: Sequence[Section] = SECTIONS
) -> AsyncIterator[Service]:
    """A service on the store of the settings, with everything running but no port open.

    On leaving, connections are drained, then everything is closed in reverse. Raises
    SettingRefused; Conflict for a store that is not ours; Unavailable for one that can't be opened.
    """
    policy = _policy(settings)
    faults = None if settings.faults is None else read_profile(settings.faults)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        if faults is not None:
            _log.warning("faults_on_purpose", profile=settings.faults)

        def fails_on_purpose(engine: Store) -> Store:
            if faults is None:
                return engine
            retries = RetryPolicy(on_retry=metrics.store_retry)
            return FaultyStore(engine, faults, retries, on_fault=metrics.fault_injected)

        store = await stack.enter_async_context(
            open_store(settings.store_address, clock=clock, metrics=metrics, wrap=fails_on_purpose)
        )
        cursors = Cursors(await read_secret(store, CURSOR_SECRET))
        ids = IdMaker(clock)
        cluster = Cluster(store, clock, ids, version=_version())
        metrics.watch(
            "tidings_nodes_live",
            "Nodes of this service that this one sees, itself among them.",
            lambda: len(cluster.nodes.live),
        )
        bus = _bus(settings, cursors, cluster.nodes.node_id, metrics)
        hub = Hub(cursors, metrics, bus, Whereabouts(store, clock, cluster.nodes))
        cluster.nodes.on_gone.append(hub.on_node_gone)
        cluster.nodes.figures = metrics.figures

        async def first_cursor(workspace: str, user_id: str) -> str:
            return await queues.first_cursor(store, cursors, workspace, user_id)

        async def shares_room(workspace: str, user_id: str, other_id: str) -> bool:
            return await chat.shares_room(workspace, user_id, other_id)

        async def erase(workspace: str, user_id: str) -> None:
            await chat.erase(workspace, user_id)

        async def attachable(caller: Caller, author: Caller, blob_ids: Sequence[str]) -> Fitness:
            return await blobs.attachable(caller, author, blob_ids)

        def on_revoked(workspace: str, user_id: str, session_id: str | None) -> None:
            hub.on_revoked(workspace, user_id, session_id)
            pushes.on_revoked(workspace, user_id, session_id)

        def publish(workspace: str, updates: Sequence[UserUpdate]) -> None:
            hub.publish(workspace, updates)
            pushes.note(workspace, updates)

        async def name_of(workspace: str, user_id: str) -> str | None:
            user = await people.users.find(workspace, user_id)
            return None if user is None else user.name

        people = People(
            store,
            clock,
            ids,
            cursors,
            policy=policy,
            shares_room=shares_room,
            who_is_online=hub.presence.online,
            online_sessions=hub.presence.online_sessions,
            erase=erase,
            on_revoked=on_revoked,
            first_cursor=first_cursor,
        )
        chat = Chat(
            store,
            clock,
            ids,
            cursors,
            people.users,
            publish,
            hub.signal,
            cluster=cluster,
            signal_role=hub.signal_role,
            signal_apart=hub.signal_apart,
            ensure_stored=people.credentials.ensure_stored,
            attachable=attachable,
        )
        shelf = _shelf(settings.blobs_address, cursors, clock)
        stack.push_async_callback(shelf.close)
        blobs = Blobs(store, shelf, clock, ids, chat.messages, cluster.schedule)
        chat.commits.on_committed = metrics.commit
        chat.commits.on_spent = metrics.spent
        chat.commits.nudge = hub.nudge
        web_push = WebPush(
            await read_secret(store, PUSH_SECRET), settings.push_contact, settings.push, clock
        )
        pushes = Pushes(
            store,
            cursors,
            metrics,
            bus,
            {} if settings.push == "off" else {WEB_PUSH: web_push},
            cluster.leases,
            now_s=lambda: clock() / 1000,
            online_sessions=hub.presence.online_sessions,
            name_of=name_of,
        )
        cluster.nodes.on_gone.append(pushes.sweep_soon)
        hub.presence.on_gone.append(pushes.on_disconnected)
        syncs = Syncs(store, cursors, people.credentials, hub)
        sockets = Sockets(hub, syncs, chat.messages, chat.rooms, people.credentials, people.limits)
        unfinished = Unfinished()

        async def check_ready() -> None:
            hub.refuse_when_draining()
            try:
                async with asyncio.timeout(READY_DEADLINE_S):
                    await store.get(SECRETS, (CURSOR_SECRET,))
            except TimeoutError as error:
                raise Unavailable("The store does not answer.") from error

        async def migration() -> wire.Migration | None:
            books = await store.books()
            return None if books is None else await read_progress(*books, clock)

        features = Features(
            clock=clock,
            users=people.users,
            credentials=people.credentials,
            limits=people.limits,
            chat=chat,
            blobs=blobs,
            syncs=syncs,
            sockets=sockets,
            events=Events(hub, syncs),
            pushes=pushes,
            push_key=lambda: web_push.public_key,
            metrics=metrics,
            cost_source=lambda: store.cost_source,
            nodes=cluster.nodes,
            migration=migration,
            check_ready=check_ready,
        )
        await bus.start()  # and stopped last: the last commits are told, too
        stack.push_async_callback(bus.stop)
        await cluster.start()
        stack.push_async_callback(
            _within, CLUSTER_TIMEOUT_S, cluster.stop, "others will wait for this node to be silent"
        )
        if isinstance(settings.store_address, SqliteAddress):
            await chat.waiting.adopt()
        pushes.start()
        stack.push_async_callback(pushes.stop)
        await chat.start()
        stack.push_async_callback(_within, CHAT_TIMEOUT_S, chat.stop, "commits were cut short")
        stack.push_async_callback(syncs.queues.stop)
        hub.start(
            chat.inboxes.item,
            chat.inboxes.companions,
            people.credentials.authenticate,
            mend=syncs.mend,
            versions=syncs.versions,
        )
        stack.push_async_callback(hub.stop)
        stack.push_async_callback(
            _within, CHANGES_TIMEOUT_S, unfinished.wait, "changes were cut short"
        )
        yield Service(
            store=store,
            cursors=cursors,
            metrics=metrics,
            people=people,
            nodes=cluster.nodes,
            chat=chat,
            hub=hub,
            syncs=syncs,
            pushes=pushes,
            unfinished=unfinished,
            web=make_application(features, sections, unfinished),
        )


@asynccontextmanager
async def listening(service: Service, host: str, port: int) -> AsyncIterator[str]:
    """Serve the web application; the value is its address, such as `http://127.0.0.1:8080`.

    On leaving no more connections are accepted, devices are sent away with a `closing` frame, and
    requests in flight are finished. Raises OSError where the port can't be had.
    """
    runner = Runner(
        service.web,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=REQUESTS_TIMEOUT_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=BACKLOG)
        await site.start()
        name, actual_port, *_ = runner.addresses[0]
        service.nodes.announce(_reached_at(name, actual_port))
        yield f"http://[{name}]:{actual_port}" if ":" in name else f"http://{name}:{actual_port}"
        await site.stop()
        service.nodes.drain()
        await _within(DRAIN_TIMEOUT_S, service.hub.drain, "devices did not read in time")
    finally:
        await runner.cleanup()


def _version() -> str:
    """Of the installed package; empty where the sources run by themselves."""
    try:
        return version("tidings")
    except PackageNotFoundError:
        return ""


def _reached_at(name: str, port: int) -> str:
    """Where other machines find what listens there: the machine's name instead of "everywhere"."""
    host = socket.gethostname() if name in ("0.0.0.0", "::") else name  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(settings: Settings, sections: Sequence[Section] = SECTIONS) -> None:
    """Serve these sections until SIGTERM or SIGINT; then drain and end within 10 s.

    Prints to standard output: on the first start with an empty store an API key, then
    `listening on http://HOST:PORT` once requests are served. Logs go to standard error. Raises
    what `open_app` and `listening` raise.
    """
    writer = logs.configure(settings.log, sys.stderr)
    try:
        async with open_app(settings, sections=sections) as service:
            _watch_loop(service.metrics)
            stopping = _stop_signals()
            first_key = await make_first_key(service.people)
            async with listening(service, settings.host, settings.port) as address:
                if first_key is not None:
                    _say(f"API key, shown this once: {first_key}")
                _freeze_garbage()
                _say(f"listening on {address}")
                _log.info("listening", address=address)
                await stopping.wait()
                _log.info("stopping", connections=len(list(service.hub.connections)))
        _log.info("stopped")
    finally:
        if writer is not None:
            writer.close()


def run(settings: Settings, sections: Sequence[Section] = SECTIONS) -> None:
    """Run `serve` on the fast event loop."""
    import uvloop

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _allow_many_connections()
    uvloop.run(serve(settings, sections))


async def make_first_key(people: People) -> str | None:
    """On a store without any workspace, make the default one with a key; the key, or None."""
    if await people.workspaces.list():
        return None
    workspace = await people.workspaces.default(None)
    _, key = await people.credentials.create_key(workspace.id, FIRST_KEY_NAME)
    return key


async def read_secret(store: Store, name: str) -> bytes:
    """The store's own secret of that name, made by whoever asks first."""
    item = await store.get(SECRETS, (name,))
    if item is None:
        made: Item = {"name": name, "value": secrets.token_bytes(SECRET_BYTES)}
        try:
            await store.write(Put(SECRETS, made, when=(Absent(),)))
        except ConditionFailed:  # another process was first
            item = await store.get(SECRETS, (name,))
        else:
            item = made
    if item is None:
        raise Unavailable("The store's secret can't be read.")
    value: bytes = item["value"]
    return value


def _bus(settings: Settings, cursors: Cursors, node_id: str, metrics: Metrics) -> Bus:
    """What talks to the other nodes of this store; the store's own secret names their channel."""
    if settings.bus == LOCAL_BUS:
        return LocalBus()
    from tidings.delivery.redis import RedisBus  # takes a tenth of the start to import

    try:
        channel = cursors.seal("bus", [])
        bus = RedisBus(settings.bus, channel=channel, node_id=node_id, metrics=metrics)
    except ValueError as error:
        raise SettingRefused(
            "bus: write local: or redis://host:port, or rediss:// for TLS"
        ) from error
    metrics.watch(
        "tidings_bus_connected", "Whether other nodes are heard: 1 or 0.", lambda: bus.is_connected
    )
    return bus


def _shelf(address: BlobsAddress, cursors: Cursors, clock: Clock) -> Shelf:
    """Where the bytes of files are."""
    match address:
        case FilesAddress(folder):
            return FileShelf(folder, cursors, clock)
        case S3Address():
            from tidings.blobs.s3 import BucketShelf  # takes as long as DynamoDB's to import

            return BucketShelf(address, clock)


def _policy(settings: Settings) -> Policy | None:
    try:
        return parse_policy(settings.rate_limit)
    except ValidationFailed as error:
        raise SettingRefused(f"rate_limit: {error.detail}") from error


async def _within(timeout_s: float, finish: Callable[[], Awaitable[None]], text: str) -> None:
    """Finish something, or give up on it and say so."""
    try:
        async with asyncio.timeout(timeout_s):
            await finish()
    except TimeoutError:
        _log.warning("stopped_early", detail=text)


def _stop_signals() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


def _watch_loop(metrics: Metrics) -> None:
    """Log and count what fails where nobody waits for it."""

    def report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        metrics.unexpected("loop")
        _log.error("unexpected", place="loop", exc_info=context.get("exception"))

    asyncio.get_running_loop().set_exception_handler(report)


def _freeze_garbage() -> None:
    """Keep what start-up made out of every later collection: it stays to the end anyway.

    Nothing is collected before: going through all of it takes longer than opening the store, and
    finds a few kilobytes.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.enable()


def _allow_many_connections() -> None:
    """Take as many file descriptors as the system lets us: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
