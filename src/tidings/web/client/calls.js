/** The calls of the HTTP API: deadlines, and again where that can do no harm. */

import { Problem, problemOfReply, Unreachable } from "./problems.js";
import { Backoff, sleep } from "./waits.js";

const DEADLINE_MS = 10_000;
const ATTEMPTS_MAX = 4;

/** A path with each inserted part escaped: at`/v1/rooms/${id}`. */
export const at = (strings, ...parts) =>
  strings.reduce((path, string, n) => path + encodeURIComponent(parts[n - 1]) + string);

/** A `client_id` that nobody else makes: 128 random bits. */
export function newClientId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Calls {
  /** `url` is the service's, with or without a path before `/v1`. */
  constructor(url, token = null) {
    this.url = url.replace(/\/+$/, "");
    this.token = token;
  }

  /** One fetch with the caller's token; cookies never travel. */
  fetch(path, init = {}) {
    const headers = { ...init.headers };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    const fixed = { headers, credentials: "omit", referrerPolicy: "no-referrer" };
    return fetch(this.url + path, { ...init, ...fixed });
  }

  /**
   * The decoded reply (null without a body). Made again, at most ATTEMPTS_MAX times within the
   * deadline, if it changes nothing when made twice, carries a `client_id`, or was not carried out.
   * Throws `Problem` where the service answered with one, `Unreachable` where no answer came.
   */
  async call(method, path, { body, query, deadlineMs = DEADLINE_MS, signal } = {}) {
    const asked = new URLSearchParams(
      Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null),
    ).toString();
    const isRepeatable = method !== "POST" || Boolean(body?.client_id);
    const backoff = new Backoff(100, 2_000);
    const end = performance.now() + deadlineMs;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#once(method, path + (asked && `?${asked}`), body, end, signal);
      } catch (error) {
        const isWorthIt = error instanceof Problem ? error.isPassing : isRepeatable;
        const waitMs = backoff.next(error.retryAfterMs);
        const hasTime = performance.now() + waitMs < end;
        if (!isWorthIt || !hasTime || attempt >= ATTEMPTS_MAX || signal?.aborted) throw error;
        await sleep(waitMs, signal);
      }
    }
  }

  async #once(method, path, body, end, signal) {
    const timeout = new AbortController();
    const stop = () => timeout.abort();
    const timer = setTimeout(stop, Math.max(0, end - performance.now()));
    signal?.addEventListener("abort", stop);
    try {
      const response = await this.fetch(path, {
        method,
        signal: timeout.signal,
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      if (!response.ok) throw await problemOfReply(response);
      const text = await response.text();
      return text ? JSON.parse(text) : null;
    } catch (error) {
      if (error instanceof Problem) throw error;
      throw new Unreachable(`${method} had no answer`, { cause: error });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }
}
