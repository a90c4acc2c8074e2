/**
 * What a device has to say, until the service said that it is durable.
 *
 * A record is {key, kind, room_id, body, number}: `kind` "send" with the key its `client_id`, or
 * "read" with one key per room. A room's messages keep their order: of each lane it is the first
 * that goes, and the next follows its answer, so that what the service could not take just now is
 * not overtaken. Records live in the tabs' state and in the store; this is their way out.
 */

import { Backoff } from "./waits.js";

/** Messages and read marks that wait for their acknowledgement. */
export const OUTBOX_MAX = 1_000;
/** Of those, how many are posted at a time where no socket carries them. */
export const POSTING_MAX = 8;

export const readKey = (roomId) => `read ${roomId}`;

export class Outbox {
  #refs = new Map();
  #nextRef = 1;
  #heldUntil = 0;
  #backoff = new Backoff(250, 15_000);

  /** `records` is the map of the state; `pump` is called when a hold ends. */
  constructor(records, pump) {
    this.records = records;
    this.pump = pump;
  }

  /** What may be said now, as [ref, record], at most `most`; each is said once per connection. */
  next(most = Infinity) {
    if (performance.now() < this.#heldUntil) return [];
    const sent = new Set(this.#refs.values());
    const lanes = new Set();
    const ready = [];
    for (const record of this.records().values()) {
      if (record.problem || record.entry) continue;
      const lane = `${record.kind} ${record.room_id}`;
      if (lanes.has(lane)) continue;
      lanes.add(lane);
      if (!sent.has(record) && ready.length < most) {
        this.#refs.set(this.#nextRef, record);
        ready.push([this.#nextRef++, record]);
      }
    }
    return ready;
  }

  /** The record that was said under the ref, unless it was replaced meanwhile; it is answered. */
  take(ref) {
    const record = this.#refs.get(ref);
    this.#refs.delete(ref);
    return record && this.records().get(record.key) === record ? record : null;
  }

  /** The service takes things. */
  succeed() {
    this.#backoff.reset();
  }

  /** Nothing can be taken just now: everything goes again after a wait with jitter. */
  hold(retryAfterMs = 0) {
    const now = performance.now();
    if (this.#heldUntil <= now) {
      const waitMs = this.#backoff.next(retryAfterMs);
      this.#heldUntil = now + waitMs;
      setTimeout(this.pump, waitMs + 1);
    }
    this.beginAgain();
  }

  /** The connection is another one: everything goes again. */
  beginAgain() {
    this.#refs.clear();
  }
}

/** A record as a socket carries it. */
export function frameOf(ref, { kind, room_id, body }) {
  return { type: kind, ref, room_id, ...body };
}
