"""What hands do in the inbox: write, choose, give files, look away; and take pictures of it."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Page, expect

from tidings.client import Client

PICTURES = Path(__file__).parents[2] / "build" / "pictures"
NOTICES = """() => {
    window.notices = [];
    window.Notification = class extends Notification {
        constructor(title, options) {
            super(title, options);
            notices.push({title, body: options.body, isOpen: true});
            const notice = notices.at(-1);
            this.close = () => { notice.isOpen = false; super.close(); };
        }
    };
    document.hasFocus = () => window.isLookedAt ?? true;
}"""
"""Remembers what the browser was asked to show, and lets the test look away from the page."""
GIVE_FILES = """async (element, {way, files}) => {
    const data = new DataTransfer();
    for (const [name, type, size] of files) {
        data.items.add(new File([new Uint8Array(size).fill(65)], name, {type}));
    }
    const type = way === "paste" ? "clipboardData" : "dataTransfer";
    const Kind = way === "paste" ? ClipboardEvent : DragEvent;
    const options = {[type]: data, bubbles: true, cancelable: true};
    element.dispatchEvent(new Kind(way === "paste" ? "paste" : "dragover", options));
    if (way === "drop") element.dispatchEvent(new Kind("drop", options));
}"""
"""Pastes files of [name, type, size in bytes] into an element, or drops them on it."""
CATALOGUES = """async () => {
    const address = document.querySelector("script[type=module]").src;
    const of = async (name) => (await import(new URL(`texts-${name}.js`, address))).default;
    const holes = (text) => [...text.matchAll(/\\{\\w+\\}/g)].map(String).sort().join();
    const [en, ko] = [await of("en"), await of("ko")];
    return Object.keys(en).filter((key) => !key.endsWith(".one") &&
        (!ko[key] || holes(ko[key]) !== holes(en[key])));
}"""
"""Keys of texts that Korean lacks, or has with other places for values."""


async def picture(page: Page, name: str) -> None:
    """Keep what the page looks like."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"inbox-{name}.png")


async def write(page: Page, text: str) -> None:
    """Write a message where the page is, and return once it is durable."""
    await page.fill(".composer textarea", text)
    await page.press(".composer textarea", "Enter")
    await expect(page.locator(".entry.own:not(.waiting)", has_text=text)).to_have_count(1)


async def choose(page: Page, *words: str) -> None:
    """Choose what the open palette finds under these words."""
    await page.fill(".palette input", " ".join(words))
    await page.locator(".palette li").first.wait_for()
    await page.keyboard.press("Enter")


async def asked(customer: Client, text: str) -> str:
    """A new conversation of a customer, and what they ask."""
    room = await customer.create_room("support", title="Something new")
    await customer.post_message(room.id, text)
    return room.id
