/**
 * A window into one room's log, wherever in it: the newest entries, or those around a sequence.
 *
 * Entries come from memory, from the store and from the service, in this order; the window is
 * without holes and moves when more is loaded, so that a log of any length fits into a page. At its
 * newest end it follows what is told live.
 */

import { at } from "./calls.js";
import { Unreachable } from "./problems.js";
import { namedBy } from "./rooms.js";
import { ENTRIES_STORED_MAX } from "./store.js";

/** Entries in one window; past it those at the other end are let go. */
export const WINDOW_ENTRIES_MAX = 400;
export const PAGE = 50;

export class RoomView {
  /** Ascending and without holes. */
  entries = [];
  /** There may be more before the first entry, or after the last one. */
  hasBefore = false;
  hasAfter = false;
  isLoading = false;
  /** Why the last page could not be loaded; null after one that could. */
  failure = null;
  /** Grows with each change. */
  changes = 0;
  #listeners = new Set();
  #isClosed = false;
  #isPending = false;
  #work = Promise.resolve();

  /** Made by `Tidings.view`; `context` has calls, state, `read(room, low, high)` and `propose`. */
  constructor(roomId, context) {
    this.room_id = roomId;
    this.context = context;
  }

  get #room() {
    return this.context.state.rooms.get(this.room_id);
  }

  /** The room's row and counts; undefined for one that the user is no member of. */
  get room() {
    return this.#room;
  }

  get #low() {
    return this.entries[0]?.seq ?? 0;
  }

  get #high() {
    return this.entries.at(-1)?.seq ?? 0;
  }

  /** What waits in the outbox or failed, and is not among the entries yet. */
  get outgoing() {
    const records = [...this.context.state.outgoing.values()];
    return records.filter(({ kind, room_id }) => kind === "send" && room_id === this.room_id);
  }

  /** Call the listener after changes, once per burst; returns what ends that. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close() {
    this.#isClosed = true;
    this.#listeners.clear();
    this.context.close(this);
  }

  /** Show the newest entries, or those around a sequence. */
  open({ around = null } = {}) {
    return this.#turn(async () => {
      this.entries = [];
      const head = this.#room?.head ?? 0;
      const isTail = around === null || (head > 0 && around > head - PAGE / 2);
      this.hasAfter = !isTail;
      if (isTail) {
        await this.#openTail();
      } else {
        await this.#page({ before: around + 1 });
        await this.#page({ after: around });
      }
    });
  }

  loadBefore(limit = PAGE) {
    return this.#turn(async () => {
      if (this.hasBefore) await this.#page({ before: this.#low, limit });
    });
  }

  loadAfter(limit = PAGE) {
    return this.#turn(async () => {
      if (this.hasAfter) await this.#page({ after: this.#high, limit });
    });
  }

  /** For a room that nobody tells of live, since the user is no member: look for what is new. */
  refresh() {
    return this.#turn(async () => {
      if (!this.hasAfter) await this.#page({ after: this.#high, isTail: true });
    });
  }

  /** Called by the tab after changes of the state. */
  take({ entries, jumps, outgoing, rooms, isFresh }) {
    if (jumps.has(this.room_id) || isFresh) return void this.open();
    const shown = new Map(this.entries.map((entry, n) => [entry.seq, n]));
    const doubted = new Set();
    for (const [roomId, seq, entry] of entries) {
      if (roomId !== this.room_id) continue;
      if (!shown.has(seq)) continue;
      if (entry) this.entries[shown.get(seq)] = entry;
      else doubted.add(seq);
    }
    if (!this.hasAfter) this.#follow();
    if (doubted.size) this.#fetchAgain([...doubted]);
    if (rooms.has(this.room_id) || outgoing.has(this.room_id)) this.#tell();
  }

  /** Take what was told live after the last entry. */
  #follow() {
    const room = this.#room;
    if (!room || this.isLoading) return;
    let high = this.#high || firstRun(room) - 1;
    while (high < room.position) {
      const entry = room.entries.get(high + 1);
      if (!entry) {
        this.hasAfter = true; // more came at once than is held: it is loaded when looked at
        break;
      }
      this.entries.push(entry);
      high++;
    }
    this.#trim(true);
  }

  async #openTail() {
    const room = this.#room;
    if (room?.position) {
      const low = Math.max(1, room.position - PAGE + 1);
      const kept = await this.context.read(this.room_id, low, room.position);
      const known = new Map(kept.map((entry) => [entry.seq, entry]));
      for (const [seq, entry] of room.entries) known.set(seq, entry);
      for (let seq = room.position; known.has(seq) && seq >= low; seq--) {
        this.entries.unshift(known.get(seq));
      }
    }
    this.hasBefore = this.entries.length ? this.#low > 1 : room?.head !== 0;
    this.#tell();
    if (!this.entries.length && room?.head !== 0) await this.#page({ isTail: true });
    else if (this.hasBefore && this.entries.length < PAGE / 2) await this.#page({ before: this.#low });
    if (room?.head === 0) this.hasBefore = false;
  }

  /** Add a page at one end: kept entries if they go on without a hole, those of the service else. */
  async #page({ before, after, isTail = false, limit = PAGE }) {
    const low = after === undefined ? Math.max(1, (before ?? 0) - limit) : after + 1;
    const high = after === undefined ? (before ?? 0) - 1 : after + limit;
    const kept = isTail ? [] : await this.context.read(this.room_id, low, high);
    const run = after === undefined ? runBefore(kept, before) : runAfter(kept, after);
    if (run.length) return this.#join(run, after === undefined);
    const query = { before, after, limit };
    const path = at`/v1/rooms/${this.room_id}/messages`;
    const { items, head } = await this.context.calls.call("GET", path, { query });
    this.#keep(items, head);
    if (after === undefined) {
      this.#join(items, true);
      this.hasBefore = items.length === limit && this.#low > 1;
    } else {
      this.#join(items, false);
      this.hasAfter = this.#high < head && items.length === limit;
    }
  }

  /** What is new enough for the store goes there, by the tab that leads. */
  #keep(entries, head) {
    const items = entries.filter(({ seq }) => seq > head - ENTRIES_STORED_MAX);
    if (items.length) {
      this.context.propose([{ type: "history", room_id: this.room_id, items, head }]);
    }
  }

  #join(items, isBefore) {
    const held = new Set(this.entries.map(({ seq }) => seq));
    const added = items.filter(({ seq }) => !held.has(seq));
    this.entries = isBefore ? [...added, ...this.entries] : [...this.entries, ...added];
    if (isBefore) this.hasBefore = this.#low > 1;
    else this.hasAfter = this.#high < (this.#room?.head ?? Infinity);
    this.#trim(!isBefore);
    this.#tell();
  }

  /** Let go of what is too much, at the end that is not being looked at. */
  #trim(isAtEnd) {
    const excess = this.entries.length - WINDOW_ENTRIES_MAX;
    if (excess <= 0) return;
    if (isAtEnd) {
      this.entries.splice(0, excess);
      this.hasBefore = true;
    } else {
      this.entries.splice(-excess);
      this.hasAfter = true;
    }
  }

  async #fetchAgain(seqs) {
    const [low, high] = [Math.min(...seqs), Math.max(...seqs)];
    const query = { after: low - 1, limit: Math.min(high - low + 1, WINDOW_ENTRIES_MAX) };
    try {
      const path = at`/v1/rooms/${this.room_id}/messages`;
      const { items } = await this.context.calls.call("GET", path, { query });
      const fresh = new Map(items.map((entry) => [entry.seq, entry]));
      this.entries = this.entries.map((entry) => fresh.get(entry.seq) ?? entry);
      this.#tell();
    } catch (error) {
      this.#note(error);
    }
  }

  /** One thing after the other. */
  #turn(work) {
    const turn = this.#work.then(async () => {
      if (this.#isClosed) return;
      this.isLoading = true;
      this.#tell();
      try {
        await work();
        this.failure = null;
      } catch (error) {
        this.#note(error);
      } finally {
        this.isLoading = false;
        if (!this.hasAfter) this.#follow();
        this.#tell();
      }
    });
    this.#work = turn.catch(() => {}); // a fault is told to who asked, and ends no other turn
    return turn;
  }

  /** What a window can't load it shows as a failure; anything else is a fault. */
  #note(error) {
    if (!(error instanceof Unreachable) && !error.code) throw error;
    this.failure = error;
    this.#tell();
  }

  #tell() {
    if (this.#isPending) return;
    this.#isPending = true;
    queueMicrotask(() => {
      this.#isPending = false;
      this.changes++;
      for (const listener of this.#listeners) listener(this);
    });
  }
}

/** Whether one entry only tells of a change of another, which a log need not show by itself. */
export const isMark = (entry) => namedBy(entry) > 0;

function runBefore(entries, before) {
  let n = entries.length;
  while (n > 0 && entries[n - 1].seq === before - (entries.length - n) - 1) n--;
  return entries.slice(n);
}

function runAfter(entries, after) {
  let n = 0;
  while (n < entries.length && entries[n].seq === after + n + 1) n++;
  return entries.slice(0, n);
}

/** The first sequence of the entries in memory that lead up to `position` without a hole. */
function firstRun(room) {
  let seq = room.position;
  while (room.entries.has(seq)) seq--;
  return seq + 1;
}
