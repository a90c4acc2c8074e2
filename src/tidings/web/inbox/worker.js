/**
 * What the page asks of its service worker (`sw.js`): to keep the page for when there is no network,
 * and to take pushes for this device while it is closed.
 */

import { at, HOME } from "../client/client.js";
import { keep, kept } from "./dom.js";

const ADDRESS = `${HOME}/sw.js`;
/** Scripts by address are only made of this one: the page demands trusted types. */
const POLICY = "tidings-worker";
const trusted = globalThis.trustedTypes?.createPolicy(POLICY, { createScriptURL: () => ADDRESS });
/** Held by what looks at the worker's notices, here and there. */
const NOTICES_LOCK = "tidings:notices";
/** How the worker calls what it keeps. */
const SHELLS = "tidings:shell:";
/** Newest sessions of the user among which this one is looked for. */
const SESSIONS_MAX = 500;
/** Which session the browser's subscription is of. */
const SUBSCRIBED_KEY = "tidings:inbox:subscribed";

const container = globalThis.navigator?.serviceWorker;
const registered = async () => (container ? ((await container.getRegistration(ADDRESS)) ?? null) : null);

/** Keep the page from now on; quietly without, where the browser has no workers (it needs HTTPS). */
export async function keepPage() {
  try {
    await container?.register(trusted?.createScriptURL("") ?? ADDRESS);
  } catch {
    // blocked, or not reachable just now: tried again when the page is opened
  }
}

/** Call the listener with the room of a notification that was clicked. */
export function onOpen(listener, signal) {
  container?.addEventListener("message", ({ data }) => data?.type === "open" && listener(data.room_id), { signal });
}

/** Close what the worker shows of rooms, as far as `isOver(roomId)`. */
export async function closeNotices(isOver) {
  const registration = await registered();
  if (!registration) return;
  await navigator.locks.request(NOTICES_LOCK, async () => {
    for (const notice of await registration.getNotifications()) {
      if (notice.data?.version !== undefined && isOver(notice.data.room_id)) notice.close();
    }
  });
}

/** Have this device pushed to while it is not connected; whether that is so now. */
export async function subscribe(tidings) {
  if (!container || !globalThis.PushManager) return false;
  try {
    const { pushManager } = await container.ready;
    const path = await pathOf(tidings);
    // Another session's, which nobody signed out of: what is pushed to it must not be shown here.
    if (kept(SUBSCRIBED_KEY) !== path) await (await pushManager.getSubscription())?.unsubscribe();
    const { public_key: applicationServerKey } = await tidings.call("GET", "/v1/push");
    const subscription = await pushManager.subscribe({ userVisibleOnly: true, applicationServerKey });
    await tidings.call("PUT", path, { body: subscription.toJSON() });
    keep(SUBSCRIBED_KEY, path);
    return true;
  } catch {
    return false; // no push service, or it is not reachable: the open page tells by itself
  }
}

export async function unsubscribe(tidings) {
  const subscription = await (await registered())?.pushManager?.getSubscription();
  if (!subscription) return;
  await subscription.unsubscribe();
  await tidings.call("DELETE", await pathOf(tidings));
}

/** The session ended, and its subscription with it: nothing of it is left. */
export async function forget() {
  const registration = await registered();
  if (!registration) return;
  await closeNotices(() => true);
  await (await registration.pushManager?.getSubscription())?.unsubscribe();
  await registration.unregister();
  for (const name of await caches.keys()) if (name.startsWith(SHELLS)) await caches.delete(name);
}

async function pathOf(tidings) {
  const { items } = await tidings.call("GET", "/v1/sessions", { query: { limit: SESSIONS_MAX } });
  return at`/v1/sessions/${items.find(({ is_current }) => is_current).session_id}/push`;
}
