"""How soon the inbox shows conversations, and what a long log costs the page that scrolls it.

    python -m benchmarks.opening LOG… [--team NICK,…] [--entries 100000] [--rounds 7]

IRC logs are imported twice: as customers' conversations, and over and over as one room with so many
entries. Chromium then opens the inbox with nothing kept (a link that signs in) and with what the
first opening kept, and scrolls that room from its end to its first entry, as fast as frames come.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.command_line import Outcome, run_tidings
from tests.node_processes import running_nodes
from tests.web.browsing import ARGUMENTS, CHROMIUM
from tests.web.office import DESKTOP
from tidings.client import Client

TEAM = "karllekko,koopajah,w1zeman1p,MatmaRex,Reedy"
LONG_ROOM = "long"
BEGINNING = datetime(2013, 1, 1, tzinfo=UTC)
SCROLL_S_MAX = 1_200
SETTLE_S = 2.0
"""For names, numbers and what is kept to come to rest."""
HEAP_EVERY_S = 0.5
MIB = 1024 * 1024

WATCH = """
    window.longTasks = [];
    new PerformanceObserver((list) => {
        for (const {duration} of list.getEntries()) longTasks.push(duration);
    }).observe({type: "longtask", buffered: true});
    const painted = () => requestAnimationFrame(() => setTimeout(() => {
        window.shownAt ??= performance.now();
    }));
    new MutationObserver((_, observer) => {
        const names = [...document.querySelectorAll(".row .name")].slice(0, 10);
        if (!names.length || names.some(({textContent}) => textContent === "…")) return;
        observer.disconnect();
        painted();
    }).observe(document, {childList: true, subtree: true});
"""
"""Conversations are shown once those at the top of the list have their customers' names."""
READ = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const files = performance.getEntriesByType("resource");
    return {
        shown_ms: shownAt,
        loaded_ms: page.loadEventEnd,
        requests: 1 + files.length,
        bytes: files.reduce((sum, one) => sum + one.transferSize, page.transferSize),
        long_ms: Math.max(0, ...longTasks),
    };
}"""
SCROLL = """async () => {
    const scroller = document.querySelector(".scroller");
    longTasks.length = 0;
    const frame = () => new Promise(requestAnimationFrame);
    let most = 0;
    let frames = 0;
    while (!document.querySelector('[data-seq="1"]')) {
        scroller.scrollTop -= scroller.clientHeight;
        await frame();
        frames += 1;
        most = Math.max(most, document.querySelectorAll(".entries > li").length);
    }
    return {long_ms: [...longTasks], most, frames};
}"""


class Opening(msgspec.Struct, frozen=True):
    """One opening of the inbox; times are from the beginning of the navigation."""

    shown_ms: float
    """When the first conversations were painted."""
    loaded_ms: float
    requests: int
    bytes: int
    long_ms: float
    """The longest task."""


class Scrolling(msgspec.Struct, frozen=True):
    """One way from the end of a log to its beginning."""

    long_ms: list[float]
    most: int
    """Elements of the log at once."""
    frames: int


def long_log(logs: list[Path], entries: int) -> Iterator[str]:
    """Lines of the logs, again and again in one channel, a minute apart."""
    lines = [
        said
        for log in logs
        for line in log.read_text("utf-8", "replace").splitlines()
        if "<" in line and (said := line[line.index("<") :].rstrip()).partition(">")[2].strip()
    ]
    for number, said in enumerate(islice(cycle(lines), entries)):
        at = BEGINNING + timedelta(minutes=number)
        yield f"{LONG_ROOM} {at:%Y-%m-%d [%H:%M:%S]} {said}\n"


def done(outcome: Outcome) -> Outcome:
    """The outcome of a command that must succeed."""
    assert outcome.code == 0, outcome.errors + outcome.output
    return outcome


def fill(store: str, folder: Path, logs: list[Path], team: str, entries: int) -> str:
    """Import everything; an API key."""
    names = [str(log) for log in logs]
    made = ("--as", "support", "--team", team, "--store", store)
    done(run_tidings("import", "irc", *names, *made))
    long = folder / "long.txt"
    long.write_text("".join(long_log(logs, entries)))
    done(run_tidings("import", "irc", str(long), "--room", LONG_ROOM, "--store", store))
    return done(run_tidings("keys", "create", "--store", store)).last_line


@asynccontextmanager
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser with nothing kept."""
    made = await browser.new_context(viewport=DESKTOP)
    await made.add_init_script(WATCH)
    try:
        yield made
    finally:
        await made.close()


async def opened(where: BrowserContext, address: str) -> Opening:
    """Open the inbox in a new tab, and close it a moment later."""
    page = await where.new_page()
    await page.goto(address)
    await asyncio.sleep(SETTLE_S)  # asking the page would take of its time
    await page.wait_for_function("() => window.shownAt")
    reading = msgspec.convert(await page.evaluate(READ), Opening)
    await page.close()
    return reading


async def measure_opening(
    browser: Browser, url: str, server: Client, who: str, rounds: int
) -> None:
    """Print the two medians."""
    cold: list[Opening] = []
    warm: list[Opening] = []
    for _ in range(rounds):
        token = (await server.create_session(who)).token
        async with context(browser) as where:
            cold.append(await opened(where, f"{url}/#token={token}"))
            warm.append(await opened(where, f"{url}/"))
    for name, readings, target in (("cold", cold, 1_000), ("warm", warm, 300)):
        shown = [reading.shown_ms for reading in readings]
        first = readings[0]
        print(
            f"| the inbox shows conversations, {name} cache | {statistics.median(shown):.0f} ms "
            f"({min(shown):.0f} to {max(shown):.0f} ms) | at most {target} ms | {first.requests} "
            f"requests, {first.bytes / 1000:.0f} kB; page loaded after "
            f"{statistics.median(each.loaded_ms for each in readings):.0f} ms; longest task "
            f"{max(each.long_ms for each in readings):.0f} ms |"
        )


async def measure_scrolling(page: Page, entries: int) -> None:
    """Print what a way through the whole log took."""
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Performance.enable")

    async def heap_bytes() -> float:
        metrics: list[dict[str, Any]] = (await devtools.send("Performance.getMetrics"))["metrics"]
        return next(float(each["value"]) for each in metrics if each["name"] == "JSHeapUsedSize")

    sizes = [await heap_bytes()]
    async with asyncio.timeout(SCROLL_S_MAX):
        way = asyncio.ensure_future(page.evaluate(SCROLL))
        while not way.done():
            await asyncio.wait((way,), timeout=HEAP_EVERY_S)
            sizes.append(await heap_bytes())
        scrolling = msgspec.convert(await way, Scrolling)
    await devtools.send("HeapProfiler.collectGarbage")
    long_ms = sorted(scrolling.long_ms, reverse=True)
    print(
        f"| heap while {entries:,} entries are scrolled | {max(sizes) / MIB:.0f} MiB | at most "
        f"150 MB | {sizes[0] / MIB:.0f} MiB before, {await heap_bytes() / MIB:.0f} MiB after a "
        f"collection; at most {scrolling.most} elements in the log |"
    )
    print(
        f"| longest task meanwhile | {long_ms[0] if long_ms else 0:.0f} ms | at most 100 ms | "
        f"{scrolling.frames:,} frames, {len(long_ms)} tasks above 50 ms |"
    )


async def measure(given: argparse.Namespace) -> None:
    """Fill a service and measure both."""
    assert CHROMIUM is not None, "needs chromium"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = f"sqlite:///{folder / 'opening.db'}"
        key = await asyncio.to_thread(fill, store, folder, given.logs, given.team, given.entries)
        async with (
            running_nodes(1, store, folder) as [node],
            Client(node.url, key) as server,
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            who = given.team.partition(",")[0]
            print("| what | measured | target | |\n| --- | --- | --- | --- |")
            await measure_opening(browser, node.url, server, who, given.rounds)
            async with context(browser) as where:
                page = await where.new_page()
                await page.goto(f"{node.url}/#token={(await server.create_session(who)).token}")
                await page.locator(".row").first.wait_for()
                await page.goto(f"{node.url}/#/rooms/{LONG_ROOM}")
                await page.locator(f'[data-seq="{given.entries}"]').wait_for()
                await measure_scrolling(page, given.entries)
            await browser.close()


def main() -> None:
    """Run it on the logs that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--team", default=TEAM)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
