/** What was written and is not acknowledged: in local storage, so that a reload sends it once. */

import { newClientId } from "./service.js";

const MESSAGES_MAX = 100;
const DIGITS = 12;

/** One item for each message, so that tabs which write at once take nothing from each other. */
export class Outbox {
  /** Where the browser keeps nothing, the page has it. */
  #own = new Map();

  constructor(prefix) {
    this.prefix = prefix;
  }

  /** Oldest first: `{key, client_id, text, blobs, at, problem?}`. */
  all() {
    const items = new Map(this.#own);
    try {
      for (const key of Object.keys(localStorage)) {
        if (key.startsWith(this.prefix)) items.set(key, localStorage.getItem(key));
      }
    } catch {
      // blocked
    }
    return [...items].sort(([one], [other]) => (one < other ? -1 : 1)).flatMap(([key, item]) => {
      try {
        return [{ ...JSON.parse(item), key }];
      } catch {
        return [];
      }
    });
  }

  /** False where it is full. */
  add(text, blobs) {
    const all = this.all();
    if (all.length >= MESSAGES_MAX) return false;
    const last = Number(all.at(-1)?.key.slice(this.prefix.length).split(".")[0] ?? 0);
    const client_id = newClientId();
    const key = `${this.prefix}${String(last + 1).padStart(DIGITS, "0")}.${client_id}`;
    this.put({ key, client_id, text, blobs, at: Date.now() });
    return true;
  }

  put({ key, ...message }) {
    const item = JSON.stringify(message);
    try {
      localStorage.setItem(key, item);
      this.#own.delete(key);
    } catch {
      this.#own.set(key, item);
    }
  }

  remove(client_id) {
    for (const { key } of this.all().filter((each) => each.client_id === client_id)) {
      this.#own.delete(key);
      try {
        localStorage.removeItem(key);
      } catch {
        // blocked
      }
    }
  }
}
