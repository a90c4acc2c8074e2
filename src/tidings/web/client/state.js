/**
 * What a device knows: rooms, entries and counts such that old state + updates = fresh fetch.
 *
 * Pure values: nothing here does I/O. Every tab holds one and applies the same frames in the same
 * order: those of the service, and those that tabs tell each other (`inbox`, `history`, …). Counts
 * are shown as the service said them, never counted; each remembers the version that it was told
 * with, and an older one is ignored.
 */

import { LocalRoom } from "./rooms.js";

/** Rooms that are kept; the one that was touched least recently goes. */
export const ROOMS_KEPT_MAX = 2_000;
/** Versions remembered past a gap; more make no difference, the catch-up brings them. */
const VERSIONS_AHEAD_MAX = 1_000;
const PEOPLE_MAX = 2_000;

export class State {
  rooms = new Map();
  total = { unread: 0, mentions: 0, version: 0 };
  version = 0;
  /** Where to go on from; null before the first connection. */
  cursor = null;
  me = null;
  session_id = null;
  queue = null;
  /** Where the list of rooms goes on: a cursor, null at its end, undefined before its beginning. */
  inboxNext = undefined;
  connection = { status: "connecting", way: null };
  /** Records of the outbox by key, in order. */
  outgoing = new Map();
  /** Names by user id, of those who were seen. */
  people = new Map();
  online = new Map();
  #ahead = new Set();
  /** The last version of which something was left to the catch-up. */
  #missed = 0;
  #holed = new Set();
  #stale = new Set();
  #rowless = new Set();
  #changes = noChanges();

  /** A copy that another tab can go on from, or the store (which keeps entries by themselves). */
  snapshot({ isForStore = false } = {}) {
    const { total, version, cursor, me, session_id, inboxNext, people } = this;
    const kept = { total, version, cursor, me, session_id, inboxNext, people };
    if (isForStore) return kept;
    const { queue, connection, outgoing, online } = this;
    const rooms = [...this.rooms.values()].map((room) => ({
      ...room.plain(),
      entries: [...room.entries.values()],
      stale: [...room.stale],
    }));
    const pending = {
      ahead: this.#ahead,
      missed: this.#missed,
      holed: this.#holed,
      stale: this.#stale,
      rowless: this.#rowless,
    };
    return { ...kept, queue, connection, outgoing, online, rooms, pending };
  }

  restore({ rooms, pending, saved_at, ...values }) {
    Object.assign(this, values);
    this.rooms = new Map(rooms.map((plain) => [plain.room_id, LocalRoom.from(plain)]));
    if (pending) {
      this.#ahead = pending.ahead;
      this.#missed = pending.missed;
      this.#holed = pending.holed;
      this.#stale = pending.stale;
      this.#rowless = pending.rowless;
    } else {
      for (const room of this.rooms.values()) if (room.hasHole) this.#holed.add(room.room_id);
    }
    this.#changes = noChanges();
  }

  /** Whether updates were missed. */
  get hasGap() {
    return this.#ahead.size > 0 || this.version < this.#missed;
  }

  get holedRooms() {
    return [...this.#holed].map((id) => this.rooms.get(id)).filter(Boolean);
  }

  get staleRooms() {
    return [...this.#stale].map((id) => this.rooms.get(id)).filter(Boolean);
  }

  /** Ids of rooms of which the inbox has to be asked what they are, or are now. */
  get rowlessRooms() {
    return [...this.#rowless];
  }

  get isWhole() {
    return !(this.hasGap || this.#holed.size || this.#stale.size || this.#rowless.size);
  }

  /** What the device has of the rooms that were touched last. */
  have(roomsMax) {
    const recent = [...this.rooms.values()].filter((room) => !room.left).slice(-roomsMax);
    return Object.fromEntries(recent.map((room) => [room.room_id, room.have()]));
  }

  /** What changed since the last call. */
  takeChanges() {
    const changes = this.#changes;
    this.#changes = noChanges();
    return changes;
  }

  /** Take one frame. */
  apply(frame) {
    const take = this[`_${frame.type}`];
    if (take) take.call(this, frame);
  }

  // Frames of the service

  _ready({ version, cursor, session_id }) {
    this.session_id = session_id;
    if (this.cursor === null) Object.assign(this, { version, cursor });
  }

  _entry(frame) {
    const { entry, version } = frame;
    this.#reach(version, frame.cursor);
    this.#takeTotal(frame.total);
    if (this.#beginsInGap(entry.room_id, version)) return;
    const room = this.#touch(entry.room_id, entry.seq - 1);
    room.setCounts(version, frame);
    this.#add(room, [entry], { isCurrent: false, asOf: entry.seq });
    this.#tell(room);
    if (!room.row) this.#rowless.add(room.room_id);
  }

  _read(frame) {
    this.#reach(frame.version, frame.cursor);
    this.#takeTotal(frame.total);
    const room = this.rooms.get(frame.room_id);
    if (room) {
      room.setCounts(frame.total.version, frame);
      this.#changes.rooms.add(room.room_id);
    }
  }

  _badge(frame) {
    this.#reach(frame.version, frame.cursor);
    this.#takeTotal(frame);
  }

  _room(frame) {
    this.#reach(frame.version, frame.cursor);
    if (frame.total) this.#takeTotal(frame.total);
    if (!this.#beginsInGap(frame.room.room_id, frame.version)) {
      this.#takeItem(frame.room, frame.version);
    }
  }

  _queue({ open, snoozed, is_capped }) {
    this.queue = { open, snoozed, is_capped };
    this.#changes.topics.add("queue");
  }

  _presence({ user_id, is_online }) {
    if (is_online) this.online.set(user_id, true);
    else this.online.delete(user_id);
    this.#changes.topics.add("presence");
  }

  /** A catch-up from `cursor`; complete up to its version unless there is `more`. */
  _sync(frame) {
    if (frame.since_version > this.version) {
      this.#missed = Math.max(this.#missed, frame.version); // more than it brings was missed
      return;
    }
    for (const synced of frame.rooms) {
      const first = synced.entries.length ? synced.entries[0].seq - 1 : synced.head;
      const room = this.#touch(synced.room_id, first);
      room.head = Math.max(room.head, synced.head);
      if (room.setCounts(frame.version, synced)) room.left = synced.left === true;
      this.#add(room, synced.entries, { isCurrent: true, asOf: synced.head });
      this.#tell(room);
      const isPlain = synced.entries.length && synced.entries.every(({ type }) => type === "text");
      if (!room.left && !(room.row && isPlain)) this.#rowless.add(room.room_id);
    }
    if (frame.unread_rooms) this.#takeUnreadRooms(frame.unread_rooms, frame.version);
    this.#takeTotal(frame.total);
    if (!frame.more) {
      this.version = Math.max(this.version, frame.version);
      this.#settle();
    }
    this.cursor = frame.cursor;
  }

  // Frames of tabs

  /**
   * A page of the inbox, newest activity first, at least as new as `version`; `next` is undefined
   * if it only mends.
   */
  _inbox({ items, version, total, next }) {
    for (const item of items.toReversed()) {
      this.#takeItem(item, version);
      for (const user of item.with ?? []) this.#meet(user);
    }
    if (total) this.#takeTotal(total);
    if (next !== undefined) this.inboxNext = next;
  }

  /** Entries that were fetched now; they are nobody's news. */
  _history({ room_id, items, head }) {
    const room = this.rooms.get(room_id);
    if (!room) return;
    room.head = Math.max(room.head, head);
    this.#add(room, items, { isCurrent: true, asOf: head });
    this.#note(room);
  }

  /**
   * What was missing of a room; with `is_all` there is no more up to `head`. After a jump what was
   * known before is in doubt, and forgotten.
   */
  _range({ room_id, items, head, is_all, is_jump }) {
    const room = this.#touch(room_id, head);
    if (is_jump) {
      room.entries.clear();
      room.stale.clear();
      this.#changes.jumps.add(room_id);
    }
    room.head = Math.max(room.head, head);
    this.#add(room, items, { isCurrent: true, asOf: head });
    this.#tell(room, is_all ? head : 0);
  }

  /** Entries as they are now, in place of `seqs`, which were stale. */
  _again({ room_id, seqs, items, head }) {
    const room = this.rooms.get(room_id);
    if (!room) return;
    for (const seq of seqs) room.stale.delete(seq);
    this.#add(room, items.filter(({ seq }) => room.entries.has(seq)), { isCurrent: true, asOf: head });
    this.#note(room);
  }

  /** The room can't be seen: what is missing of it waits for the next update about it. */
  _aside({ room_id }) {
    this.rooms.get(room_id)?.stale.clear();
    for (const waiting of [this.#holed, this.#stale, this.#rowless]) waiting.delete(room_id);
  }

  /**
   * The user's own read mark was accepted. Something may have been posted in the same commit: its
   * frame tells the counts after all of it. So this counts only where it is newer.
   */
  _marked({ room_id, read }) {
    const room = this.rooms.get(room_id);
    const { version } = read.total;
    if (room) {
      room.read_seq = Math.max(room.read_seq, read.read_seq);
      if (version > room.counts_version) room.setCounts(version, read);
      this.#changes.rooms.add(room_id);
    }
    if (version > this.total.version) this.#takeTotal(read.total);
  }

  _me({ me }) {
    this.me = me;
    this.#meet(me);
  }

  _people({ users }) {
    for (const user of users) this.#meet(user);
  }

  _connection({ connection }) {
    this.connection = connection;
    this.#changes.topics.add("connection");
  }

  _queued({ record }) {
    this.outgoing.set(record.key, record);
    this.#changes.outgoing.add(record.room_id);
  }

  /** It is durable, and shown in the outbox until its entry was told. */
  _settled({ key, entry }) {
    const record = this.outgoing.get(key);
    if (!record) return;
    const room = this.rooms.get(record.room_id);
    if (!entry || !room || room.position >= entry.seq) this.outgoing.delete(key);
    else this.outgoing.set(key, { ...record, entry });
    this.#changes.outgoing.add(record.room_id);
  }

  /** It was refused for good, or taken back (without a problem). */
  _refused({ key, problem }) {
    const record = this.outgoing.get(key);
    if (!record) return;
    if (problem) this.outgoing.set(key, { ...record, problem });
    else this.outgoing.delete(key);
    this.#changes.outgoing.add(record.room_id);
  }

  /** What was known can't be gone on from: all but the outbox is learnt anew. */
  _fresh() {
    const { outgoing, connection } = this;
    Object.assign(this, new State(), { outgoing, connection });
    this.#ahead.clear();
    this.#missed = 0;
    for (const waiting of [this.#holed, this.#stale, this.#rowless]) waiting.clear();
    this.#changes = { ...noChanges(), isFresh: true };
    this.#changes.topics.add("badge");
  }

  // The parts of them

  #takeItem(item, version) {
    const room = this.#touch(item.room_id, item.head);
    room.head = Math.max(room.head, item.head);
    const isNews = room.setCounts(version, item);
    if (isNews) {
      room.left = item.left ?? false;
      room.muted = item.muted ?? false;
      room.hidden_seq = item.hidden ? item.head : null;
    }
    if (item.kind && (isNews || !room.row)) {
      const { kind, title, head, updated_at, preview, status, assignee_id } = item;
      const others = item.with ?? room.row?.with ?? [];
      room.row = { kind, title, head, updated_at, preview, status, assignee_id, with: others };
    }
    if (room.row || room.left) this.#rowless.delete(room.room_id);
    this.#note(room);
  }

  #add(room, entries, how) {
    const [changed, named] = room.add(entries, how);
    for (const entry of changed) this.#changes.entries.push([room.room_id, entry.seq, entry]);
    for (const seq of named) {
      if (!room.entries.has(seq)) this.#changes.entries.push([room.room_id, seq, null]);
    }
    for (const { client_id } of this.outgoing.size ? changed : []) {
      if (this.outgoing.get(client_id)?.entry) this.outgoing.delete(client_id);
    }
  }

  #beginsInGap(roomId, version) {
    if (this.rooms.has(roomId) || !this.hasGap) return false;
    this.#ahead.delete(version); // where the room began is not known: the catch-up tells
    this.#missed = Math.max(this.#missed, version);
    return true;
  }

  #tell(room, through = 0) {
    this.#changes.told.push(...room.advance(through));
    for (const record of this.outgoing.values()) {
      const isTold = record.room_id === room.room_id && record.entry?.seq <= room.position;
      if (isTold) this.outgoing.delete(record.key);
    }
    this.#note(room);
  }

  #note(room) {
    toggle(this.#holed, room.room_id, room.hasHole);
    toggle(this.#stale, room.room_id, room.stale.size > 0);
    this.#changes.rooms.add(room.room_id);
  }

  #touch(roomId, position) {
    let room = this.rooms.get(roomId);
    if (room) {
      this.rooms.delete(roomId);
    } else {
      room = new LocalRoom(roomId, position);
      if (this.rooms.size >= ROOMS_KEPT_MAX) this.#drop(this.rooms.keys().next().value);
    }
    this.rooms.set(roomId, room);
    this.#changes.rooms.add(roomId);
    return room;
  }

  #drop(roomId) {
    this.rooms.delete(roomId);
    for (const waiting of [this.#holed, this.#stale, this.#rowless]) waiting.delete(roomId);
  }

  #meet({ id, name, is_online }) {
    this.people.delete(id);
    if (this.people.size >= PEOPLE_MAX) this.people.delete(this.people.keys().next().value);
    this.people.set(id, name);
    if (is_online) this.online.set(id, true);
  }

  #takeTotal({ unread, mentions, version }) {
    if (version < this.total.version) return;
    this.total = { unread, mentions, version };
    this.#changes.topics.add("badge");
  }

  /** A room that is not among them was read to its head while the device was away. */
  #takeUnreadRooms(unreadRooms, version) {
    const unread = new Map(unreadRooms.map((room) => [room.room_id, room]));
    const none = { unread: 0, mentions: 0 };
    for (const [roomId, room] of this.rooms) {
      const counts = unread.get(roomId);
      if (room.setCounts(version, counts ?? none) && !counts) {
        room.read_seq = Math.max(room.read_seq, room.head);
      }
      this.#changes.rooms.add(roomId);
    }
  }

  /** A frame of that version came. A cursor from beyond a gap would skip what is missing. */
  #reach(version, cursor) {
    if (version === undefined) return;
    if (version <= this.version + 1) {
      this.version = Math.max(this.version, version);
      this.#settle();
      if (cursor && version === this.version && !this.hasGap) this.cursor = cursor;
    } else if (this.#ahead.size < VERSIONS_AHEAD_MAX) {
      this.#ahead.add(version);
    }
  }

  #settle() {
    while (this.#ahead.has(this.version + 1)) this.version++;
    for (const version of this.#ahead) if (version <= this.version) this.#ahead.delete(version);
  }
}

/**
 * `rooms` whose row, counts or log changed; `entries` as [room, seq, entry, or null where what is
 * known of it is out of date]; `jumps`, rooms of which all earlier entries are; `told`, the entries
 * that are news, in order; rooms whose `outgoing` changed; other `topics`; `isFresh` where nothing
 * of what was known before holds.
 */
function noChanges() {
  return {
    rooms: new Set(),
    entries: [],
    jumps: new Set(),
    told: [],
    outgoing: new Set(),
    topics: new Set(),
    isFresh: false,
  };
}

function toggle(set, value, isIn) {
  if (isIn) set.add(value);
  else set.delete(value);
}
