/** A customer's own support room: its log, what is on the way, and the connection. */

import { Outbox } from "./outbox.js";
import {
  alone, at, keepSession, keptSession, pause, Refusal, Service, sleep, subjectOf,
} from "./service.js";

const PAGE_ENTRIES = 50;
/** A window's size; what is further back is not loaded, or dropped as new entries come. */
const ENTRIES_MAX = 1_000;
/** Sockets that break before they say anything, after which polls are tried. */
const FRUITLESS_MAX = 2;
const TYPING_SHOWN_MS = 6_000;
const TYPING_EVERY_MS = 3_000;
const MARKS = new Set(["edited", "deleted", "reaction"]);

export class Conversation {
  /** idle, connecting, live, waiting, refused or ended. */
  status = "idle";
  /** By sequence, without holes. */
  entries = new Map();
  roomId = null;
  userId = null;
  unread = 0;
  typingId = null;
  /** How far the team has read. */
  seenSeq = 0;
  isLoading = false;
  isFailed = false;
  hasSettled = false;

  #names = new Map();
  #version = 0;
  #cursor = null;
  #readSeq = 0;
  #typedAt = -Infinity;
  #typingTimer = null;
  #send = null;
  #probe = null;
  #pausing = new AbortController();
  #ending = new AbortController();
  #signingIn = null;
  #isConnecting = false;
  #isSending = false;
  #refreshing = null;
  #isStale = false;
  #mending = Promise.resolve();

  /** `changed` is called after every change. */
  constructor({ url, key, jwt, user_id }, changed) {
    this.service = new Service(url);
    this.changed = changed;
    this.key = key;
    this.jwt = jwt;
    this.subject = user_id ?? (jwt ? subjectOf(jwt) : null);
    this.outbox = new Outbox(`tidings:widget:${this.service.url}:${key}:${this.subject ?? ""}:`);
  }

  /** Connect, unless nobody was here before: a visitor has no session until they write. */
  start() {
    const { signal } = this.#ending;
    for (const event of ["online", "pageshow"]) addEventListener(event, () => this.#nudge(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.#nudge(), { signal });
    addEventListener("storage", (event) => {
      if (!event.key?.startsWith(this.outbox.prefix)) return;
      this.changed();
      this.#sendAll();
    }, { signal });
    if (keptSession(this.service.url, this.key, this.subject) || this.jwt) this.#connect();
    else this.hasSettled = true;
    this.#sendAll();
  }

  stop() {
    this.#ending.abort();
    this.#pausing.abort();
    clearTimeout(this.#typingTimer);
  }

  /** End the session and forget who it was. */
  async signOut() {
    this.stop();
    keepSession(this.service.url, null);
    for (const { client_id } of this.outbox.all()) this.outbox.remove(client_id);
  }

  get hasBefore() {
    const [first] = this.entries.keys();
    return first > 1 && this.entries.size < ENTRIES_MAX;
  }

  /** The name of a sender, null until it is known. */
  nameOf(id) {
    if (id && this.service.token && !this.#names.has(id)) {
      this.#names.set(id, null);
      this.#get(at`/v1/users/${id}`).then(({ name }) => this.#name(id, name), () => {});
    }
    return this.#names.get(id) ?? null;
  }

  /** False where too much waits. */
  send(text, blobs = []) {
    const isKept = this.outbox.add(text, blobs);
    this.changed();
    this.#sendAll();
    return isKept;
  }

  retry(message) {
    this.outbox.put({ ...message, problem: undefined });
    this.changed();
    this.#sendAll();
  }

  discard({ client_id }) {
    this.outbox.remove(client_id);
    this.changed();
  }

  async attach(file) {
    await this.#signIn();
    return this.send("", [await this.service.upload(file, file)]);
  }

  /** A link to a file that works without a credential for some minutes. */
  async link(blob_id, isThumbnail) {
    const path = at`/v1/blobs/${blob_id}/link?room_id=${this.roomId}`;
    return (await this.#get(path + (isThumbnail ? "&thumbnail=true" : ""))).url;
  }

  /** Everything that is there was seen. */
  read() {
    const seq = this.#head;
    if (!this.roomId || seq <= this.#readSeq) return;
    this.#readSeq = seq;
    const path = at`/v1/rooms/${this.roomId}/read`;
    this.service.call("PUT", path, { seq }).then(
      ({ unread, total }) => this.#count({ unread }, total.version),
      () => (this.#readSeq = Math.min(this.#readSeq, seq - 1)),
    );
  }

  typing() {
    const now = performance.now();
    if (!this.roomId || !this.#send || now - this.#typedAt < TYPING_EVERY_MS) return;
    this.#typedAt = now;
    this.#send({ type: "typing", room_id: this.roomId });
  }

  async loadBefore() {
    if (this.isLoading || !this.hasBefore) return;
    const [before] = this.entries.keys();
    this.#say({ isLoading: true, isFailed: false });
    try {
      const items = await this.#page({ before });
      if (items.at(-1)?.seq === before - 1 && before === this.entries.keys().next().value) {
        this.entries = new Map([...items.map((each) => [each.seq, each]), ...this.entries]);
      }
    } catch {
      this.isFailed = true;
    }
    this.#say({ isLoading: false });
  }

  get #head() {
    return [...this.entries.keys()].at(-1) ?? 0;
  }

  #say(changes) {
    Object.assign(this, changes);
    this.changed();
  }

  #name(id, name) {
    this.#names.set(id, name);
    this.changed();
  }

  #nudge() {
    if (this.#send) this.#probe?.();
    this.#pausing.abort();
    this.#pausing = new AbortController();
    this.#sendAll();
  }

  /** A visitor's session is over: they are somebody new, who is yet to write. */
  #beAnew(token) {
    if (token !== this.service.token) return;
    keepSession(this.service.url, null);
    this.service.token = this.roomId = this.userId = this.#cursor = null;
    this.#version = this.#readSeq = this.seenSeq = 0;
    this.#say({ entries: new Map(), unread: 0, status: "idle", hasSettled: true });
  }

  /** Whether a call or connection was refused since a visitor's session is over. */
  #isOver({ status }, token) {
    return status === 401 && token !== null && this.subject === null;
  }

  #end(error) {
    if (this.#ending.signal.aborted) return;
    if (error.status === 401 && this.service.token) keepSession(this.service.url, null);
    this.stop();
    this.#say({ status: this.service.token ? "ended" : "refused", hasSettled: true, typingId: null });
  }

  #signIn() {
    this.#signingIn ??= this.#beSomebody().finally(() => (this.#signingIn = null));
    return this.#signingIn;
  }

  async #beSomebody() {
    const { service, key, jwt, subject } = this;
    if (service.token) return;
    await alone(`${this.outbox.prefix}session`, async () => {
      let session = keptSession(service.url, key, subject);
      if (!session) {
        const device = { name: "widget", platform: "browser" };
        const body = { publishable_key: key, device, ...(jwt && { jwt }) };
        const { token } = await service.call("POST", "/v1/sessions", body);
        session = { token, key, subject };
        keepSession(service.url, session);
      }
      service.token = session.token;
    });
    this.#connect();
  }

  // Sending

  /** One tab at a time says what waits, oldest first. */
  async #sendAll() {
    if (this.#isSending || !this.#next()) return;
    this.#isSending = true;
    try {
      await alone(this.outbox.prefix, () => this.#sendEach());
    } finally {
      this.#isSending = false;
    }
  }

  #next() {
    return this.#ending.signal.aborted ? null : this.outbox.all().find(({ problem }) => !problem);
  }

  async #sendEach() {
    let failures = 0;
    for (let message; (message = this.#next()); ) {
      let token = null;
      try {
        await this.#signIn();
        token = this.service.token;
        const { client_id, text, blobs } = message;
        const body = { client_id, ...(text && { text }), ...(blobs.length && { blobs }) };
        const path = at`/v1/rooms/${await this.#room()}/messages`;
        const entry = await this.service.call("POST", path, body);
        this.outbox.remove(client_id);
        this.#add(entry);
        failures = 0;
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        if (this.#isOver(error, token)) this.#beAnew(token);
        if (error.isFinal && !this.#isOver(error, token)) {
          this.outbox.put({ ...message, problem: error.code });
          if (error.code === "not_found") this.roomId = null;
          if (error.status === 401 || !this.service.token) this.#end(error);
        } else {
          await sleep(pause(failures++, error), this.#pausing.signal);
        }
      }
      this.changed();
    }
  }

  /** The room, made by the first message; an answer that was lost is looked for first. */
  async #room() {
    if (!this.roomId && !(await this.#look())) {
      this.roomId = (await this.service.call("POST", "/v1/rooms", { kind: "support" })).id;
    }
    return this.roomId;
  }

  // What is heard

  async #connect() {
    if (this.#isConnecting) return;
    this.#isConnecting = true;
    const { signal } = this.#ending;
    let failures = 0;
    let fruitless = 0;
    while (!signal.aborted) {
      let reason = null;
      let token = null;
      let isGreeted = false;
      if (this.status !== "waiting") this.#say({ status: "connecting" });
      const onFrame = (frame) => {
        isGreeted = true;
        failures = 0;
        if (frame.type === "closing") reason = { retryAfterMs: frame.retry_after_ms };
        else this.#hear(frame);
      };
      const onOpen = (send, probe) => {
        this.#send = send;
        this.#probe = probe;
      };
      const way = fruitless < FRUITLESS_MAX ? "overSocket" : "overPolls";
      try {
        await this.#signIn();
        token = this.service.token;
        await this.service[way](this.#cursor, { onOpen, onFrame }, signal);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        if (error.code === "validation_failed") this.#cursor = null;
        else if (this.#isOver(error, token)) this.#beAnew(token);
        else if (error.isFinal && error.status !== 409) return this.#end(error); // 409: another poll
        reason ??= error;
      }
      this.#send = this.#probe = null;
      if (signal.aborted) return;
      if (!this.service.token && this.status === "idle") break;
      fruitless = isGreeted ? 0 : (fruitless + 1) % (FRUITLESS_MAX + 1);
      this.#say({ status: "waiting", typingId: null });
      await sleep(pause(failures++, reason), this.#pausing.signal);
    }
    this.#isConnecting = false;
  }

  #hear(frame) {
    this.#cursor = frame.cursor ?? this.#cursor;
    const row = frame.room ?? frame;
    const roomId = frame.entry?.room_id ?? row.room_id;
    if (frame.type === "ready") this.userId = frame.user_id;
    if (this.status !== "live") {
      this.#say({ status: "live" });
      this.#refresh();
    } else if (frame.type === "sync") {
      if (frame.rooms.length || frame.unread_rooms || frame.more) this.#refresh();
    } else if (roomId && !this.roomId) {
      this.#refresh();
    } else if (roomId === this.roomId && roomId) {
      if (frame.type === "typing") return this.#showTyping(frame.user_id);
      if (frame.type === "reader") return this.#showRead([frame]);
      if (frame.entry) this.#add(frame.entry);
      if (row.unread !== undefined) this.#count(row, frame.version ?? 0);
    }
  }

  #showTyping(userId) {
    if (userId === this.userId) return;
    clearTimeout(this.#typingTimer);
    this.#say({ typingId: userId });
    this.#typingTimer = setTimeout(() => this.#say({ typingId: null }), TYPING_SHOWN_MS);
  }

  #showRead(readers) {
    for (const { read_seq } of readers) this.seenSeq = Math.max(this.seenSeq, read_seq);
    this.changed();
  }

  /** The count as it was told; what is older than what is shown is ignored. */
  #count({ unread }, version) {
    if (version < this.#version) return;
    this.#version = version;
    this.#say({ unread });
  }

  #add(entry) {
    if (entry.client_id) this.outbox.remove(entry.client_id);
    const head = this.#head;
    if (entry.seq > head + 1) return this.#refresh();
    if (entry.seq === head + 1) {
      this.entries.set(entry.seq, entry);
      if (this.entries.size > ENTRIES_MAX) this.entries.delete(this.entries.keys().next().value);
      if (entry.sender_id === this.typingId) this.typingId = null;
      if (MARKS.has(entry.type)) this.#mend(entry.data.seq);
    }
    this.changed();
  }

  /** An entry was changed: get it anew, one after the other. */
  #mend(seq) {
    if (!this.entries.has(seq)) return;
    this.#mending = this.#mending.then(async () => {
      const [entry] = await this.#page({ after: seq - 1, limit: 1 });
      if (entry?.seq === seq && this.entries.has(seq)) this.entries.set(seq, entry);
      this.changed();
    }).catch(() => {}); // the next refresh has it, unless it is far back
  }

  /** The present state; asked for again where something came meanwhile. */
  #refresh() {
    this.#isStale = true;
    this.#refreshing ??= this.#refreshAll().catch(() => this.#say({ isFailed: true })).finally(() => {
      this.#refreshing = null;
      this.#say({ hasSettled: true });
    });
  }

  async #refreshAll() {
    while (this.#isStale && !this.#ending.signal.aborted) {
      this.#isStale = false;
      if (!(await this.#look())) continue;
      if (!this.userId) {
        this.userId = (await this.#get(at`/v1/rooms/${this.roomId}`)).customer_id;
      }
      this.#takeNewest(await this.#page({}));
      this.#send?.({ type: "seen", cursor: this.#cursor });
      this.#showRead((await this.#get(at`/v1/rooms/${this.roomId}/readers`)).items);
    }
  }

  /** Whether the customer has a room; the one with the newest activity is it. */
  async #look() {
    const version = this.#version;
    const { items } = await this.#get("/v1/inbox?kind=support&limit=10");
    const row = items.find(({ room_id, left }) => !left && (!this.roomId || room_id === this.roomId));
    if (!row) return false;
    this.roomId = row.room_id;
    for (const { id, name } of row.with) this.#names.set(id, name);
    if (version === this.#version) this.#say({ unread: row.unread });
    return true;
  }

  /** The newest entries: joined with those that are there, or in their stead after a long time. */
  #takeNewest(items) {
    const head = this.#head;
    if (!items.length || items.at(-1).seq < head) return;
    const isJoined = head && items[0].seq <= head + 1;
    if (!isJoined) this.entries = new Map();
    for (const entry of items) {
      this.entries.set(entry.seq, entry);
      if (entry.client_id) this.outbox.remove(entry.client_id);
    }
    for (const { seq, type, data } of items) {
      if (seq > head && MARKS.has(type) && data.seq < items[0].seq) this.#mend(data.seq);
    }
    this.isFailed = false;
    this.changed();
  }

  async #page(query) {
    const asked = new URLSearchParams({ limit: PAGE_ENTRIES, ...query });
    return (await this.#get(at`/v1/rooms/${this.roomId}/messages` + `?${asked}`)).items;
  }

  #get(path) {
    return this.service.call("GET", path);
  }
}
