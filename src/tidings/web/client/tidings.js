/**
 * One user's messages in one tab: what is known now, what may be done, and who is told of changes.
 *
 * Tabs of one session share one connection and one store: the tab that leads applies what the
 * service says and hands it to the others, and all of them show the same.
 */

import { Actions } from "./actions.js";
import { at, Calls, newClientId } from "./calls.js";
import { Device, inboxPage } from "./device.js";
import { OUTBOX_MAX, readKey } from "./outbox.js";
import { Problem } from "./problems.js";
import { Readers } from "./readers.js";
import { Savings } from "./savings.js";
import { forgetSession, keptSession } from "./signin.js";
import { State } from "./state.js";
import { MemoryStore, openStore, storeName } from "./store.js";
import { Alone, canAgree, Tabs } from "./tabs.js";
import { RoomView } from "./view.js";
import { within } from "./waits.js";

const SAVE_AFTER_MS = 250;
/**
 * How long the store is waited for. A tab that was frozen in the midst of a transaction holds up all
 * others, in Chromium for a minute.
 */
const STORE_DEADLINE_MS = 1_500;
/** After a longer absence the inbox is read anew, in place of all that happened meanwhile. */
const AWAY_MAX_MS = 7 * 24 * 3_600_000;
const TYPING_SHOWN_MS = 6_000;
const TYPING_EVERY_MS = 3_000;

export class Tidings extends Actions {
  #options;
  #state = new State();
  #savings = new Savings();
  #store = new MemoryStore();
  #tabs = null;
  #device = null;
  #views = new Set();
  #listeners = new Map();
  #pendingTopics = new Set();
  #waiting = new Map();
  #typing = new Map();
  #readers = new Readers();
  #typedAt = new Map();
  #saveTimer = null;
  #saving = Promise.resolve();
  /** Whose frames are taken, once its snapshot was; null while it leads itself. */
  #leaderId = null;
  #shared = 0;
  #number = 0;
  #closing = new AbortController();
  /** What ended it for good, such as a session that was revoked; null while it lives. */
  failure = null;

  /** Made by `connect`. */
  constructor(session, options) {
    super(new Calls(options.url, session.token));
    this.#options = options;
  }

  /** Returns once what was kept is shown; the network comes after. */
  async open() {
    const { profile, url, storage } = this.#options;
    const name = await storeName(profile, url, this.calls.token);
    if (storage !== "memory") this.#store = await openStore(name, () => this.#doWithoutStore());
    await this.#load();
    const on = {
      lead: () => this.#lead(),
      follow: () => {
        this.#follow();
        this.#tabs.post({ type: "hello" });
      },
      hear: (message) => this.#hear(message),
    };
    const { signal } = this.#closing;
    const wake = () => this.#wake();
    const look = () => this.#look();
    addEventListener("pagehide", () => this.#save(), { signal });
    document.addEventListener("freeze", () => this.#save(), { signal });
    document.addEventListener("resume", wake, { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && wake(), { signal });
    addEventListener("online", look, { signal });
    document.addEventListener("visibilitychange", look, { signal });
    this.#tabs = name !== null && canAgree() ? new Tabs(name, on) : new Alone(on);
    this.#tabs.post({ type: "hello" });
    return this;
  }

  // What is known now

  /** {id, name, role, …} of the user; null before it was ever known. */
  get me() {
    return this.#state.me;
  }

  /** The rooms of the inbox that were loaded, newest activity first. */
  get rooms() {
    const rooms = [...this.#state.rooms.values()].filter(({ isListed }) => isListed);
    return rooms.sort((one, other) => (one.row.updated_at < other.row.updated_at ? 1 : -1));
  }

  room(roomId) {
    return this.#state.rooms.get(roomId) ?? null;
  }

  /** Whether there are rooms in the inbox that were not loaded. */
  get hasMoreRooms() {
    return this.#state.inboxNext !== null;
  }

  /** {unread, mentions, version} over all rooms that are not muted, as the service counts. */
  get badge() {
    return this.#state.total;
  }

  /** How many support rooms wait unassigned; null for who may not know. */
  get queue() {
    return this.#state.queue;
  }

  /** `status` connecting, live, waiting or ended; `way`; `storage`; whether this tab `isLeader`. */
  get connection() {
    const status = this.failure ? "ended" : this.#state.connection.status;
    const isLeader = this.#tabs?.isLeader ?? false;
    return { way: this.#state.connection.way, status, storage: this.#store.kind, isLeader };
  }

  /** Messages and read marks without an acknowledgement, those that failed among them. */
  get outgoing() {
    return [...this.#state.outgoing.values()];
  }

  /** Whether the inbox was read, and nothing is known to be missing or unsaid. */
  get isSettled() {
    const { isWhole, outgoing, inboxNext, me } = this.#state;
    const isRead = me !== null && inboxNext !== undefined;
    return isRead && isWhole && !outgoing.size && this.connection.status === "live";
  }

  /** A user's name, as far as it was seen. */
  nameOf(userId) {
    return this.#state.people.get(userId) ?? null;
  }

  isOnline(userId) {
    return this.#state.online.has(userId);
  }

  /** Ids of those who are typing in the room. */
  typingIn(roomId) {
    return [...(this.#typing.get(roomId)?.keys() ?? [])];
  }

  /**
   * How far others in a small room have read, as [{user_id, read_seq}], once `loadReaders` was
   * called; for customers the others are one, whose `user_id` is null.
   */
  readersOf(roomId) {
    return this.#readers.of(roomId);
  }

  /**
   * Call the listener when a topic changed: rooms, badge, queue, connection, outbox, typing,
   * readers, presence, end: once per burst; entry: with each new entry, in the order of its room. Returns
   * what ends that.
   */
  on(topic, listener) {
    if (!this.#listeners.has(topic)) this.#listeners.set(topic, new Set());
    this.#listeners.get(topic).add(listener);
    return () => this.#listeners.get(topic).delete(listener);
  }

  /** A window into a room's log, opened at its newest end or around a sequence. */
  view(roomId, { around = null } = {}) {
    const context = {
      calls: this.calls,
      state: this.#state,
      read: (room, low, high) => this.#readStore(room, low, high),
      propose: (frames) => this.#propose(frames),
      close: (view) => this.#views.delete(view),
    };
    const view = new RoomView(roomId, context);
    this.#views.add(view);
    view.open({ around });
    return view;
  }

  // What may be done

  /**
   * Send a message, exactly once, also if the page is reloaded or offline meanwhile. Resolves with
   * the entry once it is durable; rejects with the `Problem` where it is refused for good: it then
   * stays in `outgoing` with its `problem` until `retry` or `discard`.
   */
  send(roomId, text, { blobs = [], reply_to = null, mentions = [] } = {}) {
    const body = { client_id: newClientId() };
    if (text) body.text = text;
    if (blobs.length) body.blobs = blobs;
    if (reply_to) body.reply_to = reply_to;
    if (mentions.length) body.mentions = mentions;
    return this.#say({ key: body.client_id, kind: "send", room_id: roomId, body });
  }

  /** Move the user's read mark forward; resolves once that is durable. */
  async read(roomId, seq) {
    const key = readKey(roomId);
    const waiting = this.#state.outgoing.get(key)?.body.seq ?? 0;
    if (seq <= Math.max(waiting, this.room(roomId)?.read_seq ?? 0)) return;
    await this.#say({ key, kind: "read", room_id: roomId, body: { seq } });
  }

  /** Try a failed message again; it is the same message. */
  retry(key) {
    const { problem, ...record } = this.#state.outgoing.get(key) ?? {};
    return problem ? this.#say(record) : Promise.resolve();
  }

  /** Give a failed message up. */
  async discard(key) {
    if (!this.#state.outgoing.get(key)?.problem) return;
    await this.#store.removeOutgoing(key).catch(() => {});
    this.#propose([{ type: "refused", key }]);
  }

  /** Tell those who are looking that the user types; at most every few seconds. */
  typing(roomId) {
    const now = performance.now();
    if (now - (this.#typedAt.get(roomId) ?? -Infinity) < TYPING_EVERY_MS) return;
    this.#typedAt.set(roomId, now);
    if (this.#device) this.#device.typing(roomId);
    else this.#tabs.post({ type: "typing", room_id: roomId });
  }

  /** The user, asked for where they are not known yet. */
  async fetchMe() {
    if (!this.me) this.#apply([{ type: "me", me: await this.call("GET", "/v1/me") }]);
    return this.me;
  }

  /** Load the next rooms of the inbox. */
  async loadMoreRooms() {
    const { inboxNext } = this.#state;
    if (inboxNext !== null) this.#propose([await inboxPage(this.calls, inboxNext)]);
  }

  /** A page of a room's members: {items, next}. */
  async members(roomId, { cursor, limit = 100 } = {}) {
    const query = { cursor, limit };
    const page = await this.call("GET", at`/v1/rooms/${roomId}/members`, { query });
    const users = page.items.map(({ user_id: id, name }) => ({ id, name }));
    this.#propose([{ type: "people", users }]);
    return page;
  }

  /** Fetch how far others have read: when a room is opened, and after a connection was lost. */
  async loadReaders(roomId) {
    const { items } = await this.call("GET", at`/v1/rooms/${roomId}/readers`);
    this.#propose([{ type: "readers", room_id: roomId, items }]);
  }

  /**
   * Keep a plain value for as long as the session lives in this browser, such as a list to show when
   * the page is opened again; lost where the browser keeps nothing.
   */
  async keep(name, value) {
    await this.#store.keep(name, value).catch(() => {});
  }

  /** What was kept by that name, or null. */
  async kept(name) {
    try {
      return await within(STORE_DEADLINE_MS, this.#store.kept(name));
    } catch {
      return null;
    }
  }

  leave(roomId) {
    return this.removeMember(roomId, this.me.id);
  }

  /** End the session here and at the service; nothing of it is left in the browser. */
  async signOut() {
    const id = this.#state.session_id;
    const gone = id && this.call("DELETE", at`/v1/sessions/${id}`).catch(() => {});
    const problem = new Problem({ code: "unauthorized", status: 401, title: "signed out" });
    await this.#end(problem, { isForgotten: true });
    await gone;
  }

  /** Let go of the connection and the store; the session stays. */
  async close() {
    this.#closing.abort();
    this.#follow();
    await this.#save();
    this.#tabs.close();
    this.#store.close();
    for (const view of [...this.#views]) view.close();
  }

  // The outbox

  async #say(record) {
    if (this.failure) throw this.failure;
    if (this.#state.outgoing.size >= OUTBOX_MAX) {
      throw new Problem({ code: "outbox_full", title: `${OUTBOX_MAX} messages wait to be sent` });
    }
    const numbered = { ...record, number: Date.now() + ++this.#number / 1000 };
    const answer = new Promise((resolve, reject) => {
      const before = this.#waiting.get(record.key);
      this.#waiting.set(record.key, {
        record: numbered,
        resolve: (value) => (before?.resolve(value), resolve(value)),
        reject: (error) => (before?.reject(error), reject(error)),
      });
    });
    answer.catch(() => {}); // who does not wait for it sees it in the outbox
    const storing = this.#store.putOutgoing(numbered);
    await within(STORE_DEADLINE_MS, storing).catch(() => {}); // then it lasts as long as the tab
    this.#propose([{ type: "queued", record: numbered }]);
    return answer;
  }

  #answer(frame) {
    const waiting = this.#waiting.get(frame.key);
    const record = this.#state.outgoing.get(frame.key);
    if (!waiting || (record && !record.entry && !record.problem)) return;
    this.#waiting.delete(frame.key);
    if (frame.type === "settled") waiting.resolve(frame.entry);
    else waiting.reject(frame.problem ? new Problem(frame.problem) : new Problem({ code: "discarded" }));
  }

  // Sharing

  /** The leader: apply frames, tell the other tabs, save soon. */
  #share(frames) {
    if (!frames.length) return;
    this.#shared++;
    this.#tabs.post({ type: "frames", frames, n: this.#shared });
    this.#apply(frames);
    for (const { type, key } of frames) {
      const record = this.#state.outgoing.get(key);
      const isSaid = (type === "settled" || type === "refused") && (!record || record.entry);
      if (isSaid) this.#store.removeOutgoing(key).catch(() => {});
    }
    this.#saveTimer ??= setTimeout(() => this.#save(), SAVE_AFTER_MS);
    if (frames.some(({ type }) => type === "queued")) this.#device?.pump();
    if (frames.some(({ type }) => type === "me")) this.#inherit();
  }

  /** What the user wrote under an earlier session is sent now; nobody else's is kept. */
  async #inherit() {
    const { me } = this.#state;
    const { profile, url } = this.#options;
    if (keptSession(profile, url)?.token !== this.calls.token) return; // somebody signed in later
    try {
      this.#queue(await this.#store.inherit(me.id));
    } catch {
      // a browser that does not list its databases: each is unreadable without its token's name
    }
  }

  /** Any tab: have frames applied by all. */
  #propose(frames) {
    if (this.#tabs.isLeader) this.#share(frames);
    else this.#tabs.post({ type: "propose", frames });
  }

  #apply(frames) {
    for (const frame of frames) {
      this.#state.apply(frame);
      if (frame.type === "typing") this.#noteTyping(frame);
      if (frame.type === "reader") this.#noteReaders(frame.room_id, [frame]);
      if (frame.type === "readers") this.#noteReaders(frame.room_id, frame.items);
      if (frame.type === "settled" || frame.type === "refused") this.#answer(frame);
    }
    const changes = this.#state.takeChanges();
    this.#savings.note(changes, this.#shared);
    for (const view of this.#views) view.take(changes);
    for (const entry of changes.told) this.#call("entry", entry);
    for (const topic of changes.topics) this.#tell(topic);
    if (changes.rooms.size || changes.isFresh) this.#tell("rooms");
    if (changes.outgoing.size) this.#tell("outbox");
  }

  #hear(message) {
    switch (message.type) {
      case "hello":
        if (this.#tabs.isLeader) {
          const snapshot = this.#state.snapshot();
          this.#tabs.post({ type: "snapshot", to: message.from, snapshot, n: this.#shared });
        }
        break;
      case "snapshot":
        if (message.to === this.#tabs.id && !this.#tabs.isLeader) this.#takeSnapshot(message);
        break;
      case "leader":
        this.#leaderId = null;
        this.#tabs.post({ type: "hello" });
        break;
      case "frames":
        if (this.#leaderId === message.from && !this.#tabs.isLeader) {
          this.#shared = message.n;
          this.#apply(message.frames);
        }
        break;
      case "propose":
        if (this.#tabs.isLeader) this.#share(message.frames);
        break;
      case "saved":
        if (this.#leaderId === message.from) this.#savings.forget(message.n);
        break;
      case "typing":
        this.#device?.typing(message.room_id);
        break;
      case "nudge":
        this.#device?.nudge();
        break;
      case "ended":
        this.#end(new Problem(message.problem), { isForgotten: message.is_forgotten });
        break;
    }
  }

  #takeSnapshot({ snapshot, n, from }) {
    this.#leaderId = from;
    this.#shared = n;
    this.#state.restore(snapshot);
    for (const view of this.#views) view.open();
    for (const topic of ["rooms", "badge", "queue", "connection", "outbox", "presence"]) {
      this.#tell(topic);
    }
    this.#queue([...this.#waiting.values()].map(({ record }) => record));
  }

  #lead() {
    if (this.failure) return;
    this.#device = new Device(
      this.calls,
      this.#state,
      (frames) => this.#share(frames),
      (error) => this.#end(error),
    );
    this.#device.start();
    this.#queue([...this.#waiting.values()].map(({ record }) => record));
    this.#store.outgoing().then(
      (records) => this.#queue(records), // of tabs that were closed while nobody led
      () => {},
    );
    this.#tell("connection");
  }

  /** Have records said that nobody knows of. */
  #queue(records) {
    const unknown = records.filter(({ key }) => !this.#state.outgoing.has(key));
    if (unknown.length) this.#propose(unknown.map((record) => ({ type: "queued", record })));
  }

  #follow() {
    this.#device?.stop();
    this.#device = null;
    this.#leaderId = null;
    this.#tell("connection");
  }

  /** After sleep nothing that was heard is sure to be all. */
  #wake() {
    this.#leaderId = null;
    this.#tabs.post({ type: "hello" });
    this.#look();
  }

  /** Out of sight a page may end without a word; looked at, it should be up to date. */
  #look() {
    if (document.hidden) this.#save();
    else if (this.#device) this.#device.nudge();
    else this.#tabs.post({ type: "nudge" });
  }

  /**
   * It is over. Where the session is, nothing of it stays in the browser but what was written and
   * not sent, which waits for the same user to sign in again, unless they signed out themselves.
   */
  async #end(failure, { isForgotten = false } = {}) {
    if (this.failure) return;
    this.failure = failure;
    this.#follow();
    const { code, status, message: title } = failure;
    this.#tabs.post({ type: "ended", problem: { code, status, title }, is_forgotten: isForgotten });
    this.#closing.abort();
    for (const { reject } of this.#waiting.values()) reject(failure);
    this.#waiting.clear();
    if (failure.status === 401 || failure.status === 403) {
      forgetSession(this.#options.profile, this.#options.url);
      const userId = this.#state.me?.id;
      this.#state.apply({ type: "fresh" });
      this.#state.outgoing.clear();
      for (const view of [...this.#views]) view.close();
      clearTimeout(this.#saveTimer);
      const store = this.#store;
      this.#store = new MemoryStore();
      await this.#saving;
      await (isForgotten ? store.wipe() : store.retire(userId)).catch(() => {});
    }
    this.#tabs.close();
    this.#tell("connection");
    this.#tell("rooms");
    this.#tell("badge");
    this.#call("end", failure);
    this.#options.onSignedOut?.(failure);
  }

  // The store

  async #load() {
    const loading = this.#store.load();
    try {
      const kept = await within(STORE_DEADLINE_MS, loading);
      const { meta, rooms, outgoing } = kept ?? { meta: null, rooms: [], outgoing: [] };
      const isRecent = meta && Date.now() - meta.saved_at < AWAY_MAX_MS;
      if (isRecent) this.#state.restore({ ...meta, rooms });
      else this.#startEmpty();
      for (const record of outgoing) this.#state.apply({ type: "queued", record });
      this.#state.takeChanges();
    } catch {
      this.#startEmpty();
      loading.then(
        (kept) => this.#queue(kept.outgoing),
        () => this.#doWithoutStore(),
      );
    }
  }

  /** What the store has is not gone on from, and replaced by the next save. */
  #startEmpty() {
    this.#state.apply({ type: "fresh" });
    this.#savings.note(this.#state.takeChanges(), 0);
  }

  async #readStore(roomId, low, high) {
    if (low > high) return [];
    try {
      return await within(STORE_DEADLINE_MS, this.#store.entries(roomId, low, high));
    } catch {
      return []; // the service has them
    }
  }

  /** The leader writes what changed; one write after the other. */
  #save() {
    clearTimeout(this.#saveTimer);
    this.#saveTimer = null;
    const n = this.#shared;
    const savings = this.#tabs.isLeader ? this.#savings.take(this.#state) : null;
    if (!savings) return this.#saving;
    this.#saving = this.#saving.then(async () => {
      const store = this.#store;
      try {
        await store.save(savings).catch(async () => {
          await store.shrink?.();
          await store.save(savings);
        });
      } catch {
        if (store === this.#store) this.#doWithoutStore();
      }
      this.#savings.forget(n);
      this.#tabs.post({ type: "saved", n });
    });
    return this.#saving;
  }

  /** The browser keeps nothing (more): what is in memory has to do. */
  #doWithoutStore() {
    this.#store.wipe().catch(() => {}); // what is there grows old
    this.#store = new MemoryStore();
    this.#tell("connection");
  }

  // Telling

  #noteTyping({ room_id, user_id }) {
    if (!this.#typing.has(room_id)) this.#typing.set(room_id, new Map());
    const typing = this.#typing.get(room_id);
    clearTimeout(typing.get(user_id));
    const end = () => {
      typing.delete(user_id);
      this.#tell("typing");
    };
    typing.set(user_id, setTimeout(end, TYPING_SHOWN_MS));
    this.#tell("typing");
  }

  #noteReaders(roomId, readers) {
    this.#readers.take(roomId, readers);
    this.#tell("readers");
  }

  #tell(topic) {
    if (!this.#pendingTopics.size) {
      queueMicrotask(() => {
        const topics = [...this.#pendingTopics];
        this.#pendingTopics.clear();
        for (const each of topics) this.#call(each);
      });
    }
    this.#pendingTopics.add(topic);
  }

  #call(topic, value) {
    for (const listener of this.#listeners.get(topic) ?? []) listener(value);
  }
}
