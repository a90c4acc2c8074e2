/** One room as a device knows it: its row, its counts, and the newest of its log. */

import { haveText, rangesOf } from "./ranges.js";

/** Newest entries of each room that are held in memory; windows and the store hold others. */
export const ENTRIES_KEPT_MAX = 100;
/** Entries of a room that wait to be fetched again; past it the oldest stay as they are. */
const STALE_MAX = 200;
const PREVIEW_CHARACTERS = 120;
const COUNTABLE_TYPES = new Set(["text", "audio", "campaign"]);
const NAMING_TYPES = new Set(["edited", "deleted", "reaction"]);

/** The sequence of the entry that this one says was edited, deleted or reacted to, or 0. */
export const namedBy = (entry) => (NAMING_TYPES.has(entry.type) && entry.data?.seq) || 0;

/**
 * `position` is the sequence up to which nothing is missing of what was told since the device first
 * saw the room; entries above it wait for a hole to be filled. `row` is what an inbox shows.
 */
export class LocalRoom {
  entries = new Map();
  stale = new Set();
  row = null;
  read_seq = 0;
  unread = 0;
  mentions = 0;
  muted = false;
  left = false;
  /** The head at which the user took the room off the list; null while it is on it. */
  hidden_seq = null;
  counts_version = -1;

  constructor(room_id, position) {
    this.room_id = room_id;
    this.position = position;
    this.head = position;
  }

  /** Without entries, as the store keeps it. */
  plain() {
    const { entries, stale, ...plain } = this;
    return plain;
  }

  static from({ entries = [], stale = [], touched, ...plain }) {
    const room = Object.assign(new LocalRoom(plain.room_id, plain.position), plain);
    for (const entry of entries) room.entries.set(entry.seq, entry);
    for (const seq of stale) room.stale.add(seq);
    return room;
  }

  /** Whether an entry is known to exist that the device does not have. */
  get hasHole() {
    return !this.left && this.position < this.head;
  }

  /** Whether an inbox lists it. */
  get isListed() {
    return this.row !== null && !this.left && this.hidden_seq === null;
  }

  get seqs() {
    return [...this.entries.keys()].sort((one, other) => one - other);
  }

  /** What need not be sent. What came before the device looked is claimed, too. */
  have() {
    const ranges = rangesOf(this.seqs.filter((seq) => seq > this.position));
    if (this.position) ranges.unshift([1, this.position]);
    return haveText(ranges);
  }

  /** Show these counts if they are not older than those shown; whether they were taken. */
  setCounts(version, { unread, mentions, read_seq = 0 }) {
    if (version < this.counts_version) return false;
    Object.assign(this, { counts_version: version, unread, mentions });
    this.read_seq = Math.max(this.read_seq, read_seq);
    return true;
  }

  /**
   * Take entries as they were when the head was `asOf`, or later; `isCurrent` says that they were
   * read now and replace what is there. Replies and updates overtake each other: what is known to
   * have changed after `asOf` is fetched again. Returns what is [new or changed, merely named].
   */
  add(entries, { isCurrent, asOf }) {
    const taken = new Set(entries.map((entry) => entry.seq));
    const changed = [];
    const named = [];
    if (this.head > asOf) {
      for (const [seq, entry] of this.entries) {
        if (seq > asOf && taken.has(namedBy(entry))) this.#doubt(namedBy(entry));
      }
    }
    for (const entry of entries) {
      this.head = Math.max(this.head, entry.seq);
      if (COUNTABLE_TYPES.has(entry.type) && entry.seq > this.hidden_seq) this.hidden_seq = null;
      if (isCurrent || !this.entries.has(entry.seq)) {
        changed.push(entry);
        if (entry.seq > this.head - ENTRIES_KEPT_MAX) this.entries.set(entry.seq, entry);
        this.#show(entry);
      }
      const seq = namedBy(entry);
      if (seq && !(isCurrent && taken.has(seq))) {
        if (this.entries.has(seq)) this.#doubt(seq);
        named.push(seq);
      }
    }
    return [changed, named];
  }

  /** Move `position` over what is there, or up to `through`; returns what it passed, in order. */
  advance(through = 0) {
    const passed = [];
    for (;;) {
      const entry = this.entries.get(this.position + 1);
      if (entry) passed.push(entry);
      else if (this.position >= through) break;
      this.position++;
    }
    if (this.entries.size > ENTRIES_KEPT_MAX) {
      for (const seq of this.seqs.slice(0, -ENTRIES_KEPT_MAX)) {
        if (seq > this.position) break;
        this.entries.delete(seq);
        this.stale.delete(seq);
      }
    }
    return passed;
  }

  #doubt(seq) {
    if (this.stale.size < STALE_MAX) this.stale.add(seq);
  }

  /** What an inbox shows, and how the room stands; the service's row says the same later. */
  #show(entry) {
    if (entry.type === "status" && entry.seq > this.row?.head) {
      const { title, status, assignee_id } = { ...this.row, ...entry.data };
      Object.assign(this.row, { title, status, assignee_id, head: entry.seq });
    }
    if (this.row && COUNTABLE_TYPES.has(entry.type) && entry.created_at >= this.row.updated_at) {
      this.row.updated_at = entry.created_at;
      this.row.preview = entry.deleted_at ? null : (entry.text ?? "").slice(0, PREVIEW_CHARACTERS);
    }
  }
}
