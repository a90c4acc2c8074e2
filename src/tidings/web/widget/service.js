/** The service as the widget needs it: calls, a session, and updates by socket or long poll. */

const CALL_DEADLINE_MS = 10_000;
const UPLOAD_DEADLINE_MS = 300_000;
const POLL_WAIT_S = 20;
/** Polls end after a while, so that a socket is tried again. */
const POLLING_MAX_MS = 300_000;
const PING_EVERY_MS = 20_000;
/** A socket that is silent for so long after it was asked is given up. */
const ANSWER_MAX_MS = 8_000;
const WATCH_EVERY_MS = 1_000;

/** Why something was not done; `status` is 0 where no answer came, and then it may have been. */
export class Refusal extends Error {
  constructor(status, code = "", retryAfterMs = 0) {
    super(code || `status ${status}`);
    Object.assign(this, { status, code, retryAfterMs });
  }

  /** Whether coming back is of no use. */
  get isFinal() {
    return this.status >= 400 && this.status < 500 && this.status !== 429;
  }
}

/** A path with each inserted part escaped. */
export const at = (strings, ...parts) =>
  strings.reduce((path, string, n) => path + encodeURIComponent(parts[n - 1]) + string);

/** 128 random bits. */
export function newClientId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Resolves after the time, or at once when the signal is aborted. */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    setTimeout(resolve, ms);
    signal.addEventListener("abort", resolve, { once: true });
  });
}

/** Milliseconds before an attempt: exponential with full jitter, and what the service asked for. */
export const pause = (failures, error) =>
  (error?.retryAfterMs ?? 0) + Math.random() * Math.min(20_000, 500 * 2 ** failures);

export class Service {
  token = null;

  constructor(url) {
    this.url = url.replace(/\/+$/, "");
  }

  /** The decoded reply. Throws `Refusal`. */
  async call(method, path, body, { deadlineMs = CALL_DEADLINE_MS, signal } = {}) {
    const headers = {};
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    if (body) headers["Content-Type"] = "application/json";
    return this.#fetch(this.url + path, { method, headers, body: body && JSON.stringify(body) },
      deadlineMs, signal);
  }

  async #fetch(url, init, deadlineMs, signal) {
    const ending = new AbortController();
    const stop = () => ending.abort();
    const timer = setTimeout(stop, deadlineMs);
    signal?.addEventListener("abort", stop);
    try {
      // No `cache`: replies say no-store themselves, and with it no preflight would be remembered.
      const fixed = { credentials: "omit", referrerPolicy: "no-referrer" };
      const reply = await fetch(url, { ...init, ...fixed, signal: ending.signal });
      if (reply.ok) return await reply.json().catch(() => null);
      const { code } = await reply.json().catch(() => ({}));
      throw new Refusal(reply.status, code, 1000 * (Number(reply.headers.get("Retry-After")) || 0));
    } catch (error) {
      throw error instanceof Refusal ? error : new Refusal(0);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Upload a file; resolves with its blob id. */
  async upload({ name, type, size }, bytes) {
    const media = /^[a-z0-9.+-]+\/[a-z0-9.+-]+$/.test(type) ? type : "application/octet-stream";
    const made = await this.call("POST", "/v1/blobs", { name, type: media, size });
    const { method, url, headers } = made.upload;
    await this.#fetch(new URL(url, `${this.url}/`), { method, headers, body: bytes }, UPLOAD_DEADLINE_MS);
    return made.blob_id;
  }

  /**
   * Hear updates until the connection breaks: `onFrame` gets each, `onOpen` a function that sends.
   * Throws `Refusal` where there is a reason.
   */
  overSocket(since, { onOpen, onFrame }, signal) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url.replace(/^http/, "ws") + "/v1/ws", "tidings.v1");
      let heardAt = performance.now();
      let askedAt = heardAt;
      const send = (frame) => socket.readyState === 1 && socket.send(JSON.stringify(frame));
      const ask = () => {
        askedAt = performance.now();
        send({ type: "ping" });
      };
      const end = (status) => {
        clearInterval(watch);
        signal.removeEventListener("abort", stop);
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close();
        if (status === undefined) resolve();
        else reject(new Refusal(status, status === 401 ? "unauthorized" : ""));
      };
      const stop = () => end();
      const watch = setInterval(() => {
        const now = performance.now();
        if (askedAt >= heardAt && now - askedAt > ANSWER_MAX_MS) end(0);
        else if (askedAt < heardAt && now - heardAt > PING_EVERY_MS) ask();
      }, WATCH_EVERY_MS);
      signal.addEventListener("abort", stop);
      socket.onopen = () => {
        send({ type: "auth", token: this.token, ...(since && { since }) });
        onOpen(send, ask);
      };
      socket.onmessage = ({ data }) => {
        heardAt = performance.now();
        const frame = JSON.parse(data);
        for (const each of frame.type === "batch" ? frame.updates : [frame]) onFrame(each);
      };
      socket.onclose = ({ code }) => end({ 4401: 401, 4403: 403 }[code] ?? 0);
    });
  }

  /** The same by long polls, each of which acknowledges what the last one brought. */
  async overPolls(since, { onFrame }, signal) {
    const until = performance.now() + POLLING_MAX_MS;
    for (let wait = 0; performance.now() < until && !signal.aborted; wait = POLL_WAIT_S) {
      const body = { have: {}, wait, ...(since && { since }) };
      const deadlineMs = wait * 1000 + CALL_DEADLINE_MS;
      const reply = await this.call("POST", "/v1/sync", body, { deadlineMs, signal });
      since = reply.cursor;
      onFrame({ type: "sync", ...reply });
    }
  }
}

// Who it is: a session, kept so that a reload finds it

const keyOf = (url) => `tidings:widget:${url}`;

/** The kept session if it is of that key and person, or null. */
export function keptSession(url, key, subject) {
  try {
    const kept = JSON.parse(localStorage.getItem(keyOf(url)));
    return kept?.key === key && kept.subject === subject ? kept : null;
  } catch {
    return null;
  }
}

export function keepSession(url, session) {
  try {
    if (session) localStorage.setItem(keyOf(url), JSON.stringify(session));
    else localStorage.removeItem(keyOf(url));
  } catch {
    // blocked or full: the page has it
  }
}

/** Whom a JWT names, unchecked: the service checks. */
export function subjectOf(jwt) {
  try {
    return JSON.parse(atob(jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub;
  } catch {
    return null;
  }
}

/** Do it while no other tab does. */
export const alone = (name, work) =>
  navigator.locks ? navigator.locks.request(name, work) : work();
