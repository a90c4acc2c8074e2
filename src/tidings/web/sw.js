/**
 * The inbox's service worker: the page opens without a network, and a device that is not connected
 * is told of messages.
 *
 * The page and its files are kept as one whole, by a name that changes with any byte of them. Online
 * the page itself always comes from the service, so that nobody sees an old one after a deploy; no
 * answer of the API, no credential and no picture of a message is ever kept here.
 */

const SHELLS = "tidings:shell:";
const SHELL = `${SHELLS}{shell}`;
const ASSETS = "{assets}/";
const FILES = {files};
const SHELL_BYTES_MAX = 2_000_000;
/** A service that takes longer for the page than this is taken for unreachable, if one is kept. */
const PAGE_DEADLINE_MS = 4_000;
const NOTICES = "tidings:";
const BADGE_NOTICE = `${NOTICES}badge`;
/** Held by what looks at notices or changes them; the page knows it too. */
const NOTICES_LOCK = "tidings:notices";
const PAGE = registration.scope;
const TEXTS = {
  en: { someone: "Somebody", message: "New message", unread: (count) => `${count} unread` },
  ko: { someone: "누군가", message: "새 메시지", unread: (count) => `읽지 않은 메시지 ${count}개` },
};
const texts = TEXTS[navigator.language.slice(0, 2)] ?? TEXTS.en;
const addressOf = (path) => new URL(path, PAGE).href;

// The page without a network

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(keepShell());
  // Where the browser can, it finds files by itself, and asks this worker for the page alone.
  const beneath = (path) => ({ urlPattern: { pathname: `${new URL(path, PAGE).pathname}*` } });
  event.addRoutes?.([
    { condition: beneath(ASSETS), source: { cacheName: SHELL } },
    { condition: beneath("v1/"), source: "network" },
  ]);
});

addEventListener("activate", (event) => event.waitUntil(dropOthers().then(() => clients.claim())));

addEventListener("fetch", (event) => {
  const { method, mode, url } = event.request;
  if (method !== "GET") return;
  const { origin, pathname } = new URL(url);
  if (mode === "navigate" && origin + pathname === PAGE) event.respondWith(page(event.request));
  else if (url.startsWith(addressOf(ASSETS))) event.respondWith(asset(event.request));
});

/** All of it or nothing: where a file is missing, or of another version, it is tried again later. */
async function keepShell() {
  const shell = await caches.open(SHELL);
  let bytes = 0;
  const keep = async (address, how) => {
    const reply = await fetch(address, { credentials: "omit", ...how });
    const body = await reply.clone().blob();
    bytes += body.size;
    if (!reply.ok || reply.redirected) throw new Error(`${address} is not there`);
    if (bytes > SHELL_BYTES_MAX) throw new Error("the page is too large to be kept");
    await shell.put(address, reply);
    return body;
  };
  try {
    const page = await keep(PAGE, { cache: "no-cache" });
    if (!(await page.text()).includes(ASSETS)) throw new Error("the page is of another version");
    await Promise.all(FILES.map((file) => keep(addressOf(file))));
  } catch (error) {
    await caches.delete(SHELL);
    throw error;
  }
}

async function dropOthers() {
  const names = await caches.keys();
  const others = names.filter((name) => name.startsWith(SHELLS) && name !== SHELL);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function page(request) {
  const kept = caches.match(PAGE, { cacheName: SHELL });
  const deadline = new AbortController();
  const timer = setTimeout(() => kept.then((page) => page && deadline.abort()), PAGE_DEADLINE_MS);
  try {
    const reply = await fetch(request, { signal: deadline.signal });
    return reply.status < 500 ? reply : ((await kept) ?? reply);
  } catch (error) {
    const page = await kept;
    if (page) return page;
    throw error;
  } finally {
    clearTimeout(timer); // of a page that has begun the rest may take its time
  }
}

async function asset(request) {
  return (await caches.match(request.url, { cacheName: SHELL })) ?? fetch(request);
}

// Pushes

/** The newest totals that were told: what comes late is ignored. */
let version = 0;

/** One at a time: Chromium may forget a notice that appears while it is asked which there are. */
addEventListener("push", (event) => {
  event.waitUntil(navigator.locks.request(NOTICES_LOCK, () => take(event.data.json())));
});

addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open(event.notification.data.room_id));
});

async function take({ type, total, ...push }) {
  const shown = await noticesShown();
  if (total.version >= version) {
    version = total.version;
    await showBadge(total.unread);
  }
  if (type === "entry") return showMessage(push, total, shown);
  const isMeant = ({ tag }) => total.unread === 0 || tag === NOTICES + push.room_id;
  const over = shown.filter((notice) => isMeant(notice) && notice.data.version <= total.version);
  for (const notice of over) notice.close();
  if (type === "badge" && total.unread && over.length === shown.length && !(await isLookedAt())) {
    return show("Tidings", texts.unread(total.unread), BADGE_NOTICE, { version: total.version });
  }
  return undefined;
}

async function showMessage({ room_id, sender_name, preview }, total, shown) {
  const tag = NOTICES + room_id;
  const isLate = shown.some((notice) => notice.tag === tag && notice.data.version > total.version);
  if (isLate || (await isLookedAt())) return;
  for (const notice of shown) if (notice.tag === BADGE_NOTICE) notice.close();
  const data = { room_id, version: total.version };
  await show(sender_name ?? texts.someone, preview ?? texts.message, tag, data);
}

function show(title, body, tag, data) {
  const icon = addressOf(`${ASSETS}inbox/icon.svg`);
  return registration.showNotification(title, { body, tag, data, icon, renotify: true });
}

async function noticesShown() {
  const all = await registration.getNotifications();
  return all.filter(({ tag, data }) => tag.startsWith(NOTICES) && data?.version !== undefined);
}

async function showBadge(unread) {
  try {
    await (unread ? navigator.setAppBadge?.(unread) : navigator.clearAppBadge?.());
  } catch {
    // only installed applications have one
  }
}

async function pages() {
  const windows = await clients.matchAll({ type: "window", includeUncontrolled: true });
  return windows.filter(({ url }) => url.split(/[?#]/)[0] === PAGE);
}

const isLookedAt = async () => (await pages()).some(({ focused }) => focused);

/** A page that is open shows the room; otherwise one is opened. */
async function open(roomId) {
  const [page] = await pages();
  if (!page) return clients.openWindow(roomId ? `${PAGE}#/to/${encodeURIComponent(roomId)}` : PAGE);
  page.postMessage({ type: "open", room_id: roomId });
  return page.focus();
}
