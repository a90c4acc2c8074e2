/**
 * Tabs of one session agree on one that leads: it has the connection and writes the store.
 *
 * A Web Lock says who leads; it passes on by itself when a tab is closed. A tab that goes to sleep
 * resigns, and from one that is silent all the same (it was frozen at once) a tab that is looked at
 * takes the lead. What tabs say to each other goes over a BroadcastChannel, in order.
 */

const ASK_EVERY_MS = 5_000;
/** A leader that does not answer by then is taken for asleep. */
const ANSWER_DEADLINE_MS = 3_000;
const JITTER_MS = 500;

/** Whether the browser lets tabs agree at all; if not, each speaks for itself. */
export function canAgree() {
  return Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);
}

export class Tabs {
  id = Math.random().toString(36).slice(2);
  isLeader = false;
  #ticket = null;
  #resign = null;
  #doubt = null;
  #isClosed = false;
  #stop = new AbortController();

  /** `on` has `lead()`, `follow()` and `hear(message)`. */
  constructor(name, on) {
    this.name = name;
    this.on = on;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.#hear(data);
    const { signal } = this.#stop;
    const asleep = () => this.#sleep();
    const awake = () => this.#queue();
    document.addEventListener("freeze", asleep, { signal });
    document.addEventListener("resume", awake, { signal });
    addEventListener("pagehide", asleep, { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && awake(), { signal });
    document.addEventListener("visibilitychange", () => this.ask(), { signal });
    const timer = setInterval(() => this.ask(), ASK_EVERY_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
    this.#queue();
  }

  /** Tell the other tabs. */
  post(message) {
    if (!this.#isClosed) this.channel.postMessage({ ...message, from: this.id });
  }

  /** See whether the leader is awake, if this tab is looked at. */
  ask() {
    if (this.isLeader || this.#doubt || this.#isClosed || document.hidden) return;
    this.post({ type: "awake?" });
    const deadlineMs = ANSWER_DEADLINE_MS + JITTER_MS * Math.random();
    this.#doubt = setTimeout(() => {
      this.#doubt = null;
      if (!this.isLeader && !document.hidden) this.#queue({ steal: true });
    }, deadlineMs);
  }

  close() {
    this.#sleep();
    this.#isClosed = true;
    this.#stop.abort();
    this.channel.close();
  }

  async #queue(how = {}) {
    if (this.#isClosed || this.isLeader || (this.#ticket && !how.steal)) return;
    this.#ticket?.abort();
    const ticket = new AbortController();
    this.#ticket = ticket;
    const options = how.steal ? how : { signal: ticket.signal };
    try {
      await navigator.locks.request(this.name, options, () => this.#lead(ticket));
    } catch {
      // called off, or taken by a tab that is looked at
    }
    if (this.#ticket !== ticket) return;
    this.#ticket = null;
    if (this.isLeader) {
      this.#step(false);
      this.#queue();
    }
  }

  #lead(ticket) {
    if (this.#ticket !== ticket || this.#isClosed) return undefined;
    this.#calm();
    this.#step(true);
    this.post({ type: "leader" });
    return new Promise((resolve) => {
      this.#resign = resolve;
    });
  }

  #sleep() {
    const ticket = this.#ticket;
    this.#ticket = null;
    this.#calm();
    if (this.isLeader) this.#step(false);
    this.#resign?.();
    ticket?.abort();
  }

  #step(isLeader) {
    this.isLeader = isLeader;
    if (isLeader) this.on.lead();
    else this.on.follow();
  }

  #calm() {
    clearTimeout(this.#doubt);
    this.#doubt = null;
  }

  #hear(message) {
    if (message.type === "awake?") {
      if (this.isLeader) this.post({ type: "awake" });
      return;
    }
    if (message.type === "awake" || message.type === "leader") this.#calm();
    this.on.hear(message);
  }
}

/** A tab by itself. */
export class Alone {
  id = "alone";
  isLeader = true;

  constructor(on) {
    queueMicrotask(() => on.lead());
  }

  post() {}

  ask() {}

  close() {}
}
