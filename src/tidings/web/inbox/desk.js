/**
 * What the inbox shows beyond the client library: rooms the user is no member of, people, lists.
 *
 * Counts are those of the service, shown as they are.
 */

import { at } from "../client/client.js";
import { t } from "./texts.js";

const PAGE = 50;
const PEOPLE_AT_ONCE_MAX = 4;
const NOTES_LOOKED_AT_MAX = 60;
const TEAM_MAX = 500;
/** After something was told that may change a list; a little apart, since every desk hears of it. */
const RELOAD_AFTER_MS = 200;
const RELOAD_EVERY_MS = 1_000;
/** A list may change without a word: conversations of others come and go. */
const RELOAD_LATEST_MS = 30_000;
/** How the first page of a list is kept in the browser. */
const keptAs = (folder) => `list:${folder}`;

const isSupport = (status) => (room) => room.kind === "support" && room.status === status;

/** The lists: what the service is asked for, and which rooms are in it. */
export const FOLDERS = {
  queue: {
    query: { kind: "support", status: "open", assignee_id: "none" },
    has: (room) => isSupport("open")(room) && !room.assignee_id,
  },
  mine: {
    query: { kind: "support", status: "open", assignee_id: "me" },
    has: (room, me) => isSupport("open")(room) && room.assignee_id === me,
  },
  open: { query: { kind: "support", status: "open" }, has: isSupport("open") },
  snoozed: { query: { kind: "support", status: "snoozed" }, has: isSupport("snoozed") },
  closed: { query: { kind: "support", status: "closed" }, has: isSupport("closed") },
  rooms: { query: { kind: "group" }, has: (room) => room.kind === "group" },
  direct: { query: null, has: (room) => room.kind === "direct" },
};

export class Desk {
  /** Rooms as they were last fetched, by id. */
  #fetched = new Map();
  #lists = new Map();
  #users = new Map();
  #asked = new Map();
  #asking = 0;
  #listeners = new Set();
  #isPending = false;
  #reloadTimer = null;
  #reloadedAt = -Infinity;
  #ending = new AbortController();
  #team = null;
  folder = "queue";

  /** `me` is the user, {id, name, role, …}. */
  constructor(tidings, me) {
    this.tidings = tidings;
    this.me = me;
    for (const name of Object.keys(FOLDERS)) {
      this.#lists.set(name, { ids: new Set(), next: undefined, isLoading: false, isLoaded: false, failure: null });
    }
    const soon = () => this.#reloadSoon();
    let wasLive = false;
    const { signal } = this.#ending;
    tidings.on("queue", soon);
    document.addEventListener("visibilitychange", soon, { signal });
    const timer = setInterval(soon, RELOAD_LATEST_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
    tidings.on("entry", (entry) => this.#take(entry));
    tidings.on("connection", () => {
      const isLive = tidings.connection.status === "live";
      if (isLive && !wasLive) soon();
      wasLive = isLive;
    });
    for (const topic of ["rooms", "queue", "presence", "badge"]) tidings.on(topic, () => this.tell());
  }

  /** Have the lists as they were last read in this browser, until they are read anew. */
  async restore() {
    const names = Object.keys(FOLDERS).filter((name) => FOLDERS[name].query);
    const pages = await Promise.all(names.map((name) => this.tidings.kept(keptAs(name))));
    for (const [n, rooms] of pages.entries()) {
      for (const room of rooms ?? []) {
        this.#lists.get(names[n]).ids.add(room.id);
        if (!(this.#fetched.get(room.id)?.head >= room.head)) this.#fetched.set(room.id, room);
      }
    }
  }

  close() {
    this.#ending.abort();
    clearTimeout(this.#reloadTimer);
  }

  /** Call the listener after changes, once per burst; returns what ends that. */
  on(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  tell() {
    if (this.#isPending) return;
    this.#isPending = true;
    requestAnimationFrame(() => {
      this.#isPending = false;
      for (const listener of this.#listeners) listener();
    });
  }

  // Rooms

  /** What is known of a room, from the user's own inbox and from what was fetched; or null. */
  room(roomId) {
    const local = this.tidings.room(roomId);
    const fetched = this.#fetched.get(roomId);
    const row = local && !local.left ? local.row : null;
    if (!row && !fetched) return null;
    const { unread = 0, mentions = 0, read_seq = 0, muted = false } = row ? local : {};
    const users = (row?.with ?? fetched?.with ?? []).filter(({ id }) => id !== this.me.id);
    const newest = !row || fetched?.head > row.head ? fetched : row;
    const customer_id = fetched?.customer_id ?? users.find(({ role }) => role === "customer")?.id ?? null;
    return {
      ...fetched,
      id: roomId,
      kind: row?.kind ?? fetched.kind,
      title: newest.title,
      status: newest.status,
      assignee_id: newest.assignee_id,
      head: local?.head ?? fetched.head,
      updated_at: row?.updated_at ?? fetched.updated_at ?? fetched.created_at,
      preview: row?.preview ?? fetched?.preview ?? null, // who joined later has none of their own
      isMember: Boolean(row),
      isHidden: Boolean(row) && !local.isListed,
      unread, mentions, read_seq, muted, users, customer_id,
    };
  }

  /** What a room is called. */
  nameOf(room) {
    if (room.kind === "support" && room.customer_id) {
      const known = room.users.find(({ id }) => id === room.customer_id);
      return known?.name ?? this.name(room.customer_id);
    }
    if (room.kind === "direct") return room.users[0]?.name ?? t("someone");
    return room.title ?? (room.users.map(({ name }) => name).join(", ") || t("someone"));
  }

  /** Whose picture stands for a room, or null. */
  faceOf(room) {
    if (room.kind === "support") return room.customer_id;
    return room.kind === "direct" ? (room.users[0]?.id ?? null) : null;
  }

  async look(roomId) {
    this.#know(await this.tidings.details(roomId));
    return this.room(roomId);
  }

  /** What was fetched of a room; what a list says of its last message stays. */
  #know(room) {
    this.#fetched.set(room.id, { ...this.#fetched.get(room.id), ...room });
    this.tell();
  }

  /** What was changed about a room is told by an entry of its log. */
  #take({ type, room_id, seq, data }) {
    if (type !== "status") return;
    const fetched = this.#fetched.get(room_id);
    if (!fetched) this.look(room_id).catch(() => {}); // the list is read anew, too
    else if (fetched.head < seq) this.#know({ ...data, id: room_id, head: seq });
  }

  async change(roomId, changes) {
    this.#know(await this.tidings.changeRoom(roomId, changes));
    this.#reloadSoon();
  }

  async join(roomId) {
    await this.tidings.addMembers(roomId, [this.me.id]);
    await this.look(roomId);
  }

  /** The notes about a customer's room, as far as the user is in them; null where there are none. */
  async notesAbout(roomId) {
    const groups = this.tidings.rooms.filter(({ row }) => row.kind === "group");
    for (const { room_id } of groups.slice(0, NOTES_LOOKED_AT_MAX)) {
      const known = this.#fetched.get(room_id) ?? (await this.look(room_id));
      if (known.about === roomId) return room_id;
    }
    return null;
  }

  /** Begin notes about a customer's room, for the whole team. */
  async startNotes(roomId) {
    const room = this.room(roomId);
    const team = await this.team();
    const made = await this.tidings.createRoom({
      kind: "group",
      scope: "private",
      about: roomId,
      title: t("notes.for", { name: this.nameOf(room) }).slice(0, 200),
      member_ids: team.map(({ id }) => id),
    });
    this.#know(made);
    return made.id;
  }

  // Lists

  list(folder) {
    return this.#lists.get(folder);
  }

  /** The rooms of a list, newest activity first. */
  roomsIn(folder) {
    const ids = new Set([...this.#fetched.keys(), ...this.tidings.rooms.map(({ room_id }) => room_id)]);
    const rooms = [...ids].map((id) => this.room(id)).filter(Boolean);
    const { has } = FOLDERS[folder];
    return rooms
      .filter((room) => has(room, this.me.id) && this.#isListed(room))
      .sort((one, other) => (one.updated_at < other.updated_at ? 1 : -1));
  }

  /** Whether something in a list is unread; how much is for the service to say, room by room. */
  hasUnread(folder) {
    const { has } = FOLDERS[folder];
    return this.tidings.rooms.some(
      ({ row, unread, muted }) => unread > 0 && !muted && has(row, this.me.id),
    );
  }

  /** Fetch the first page of a list anew, or the next one. */
  async load(folder, { isMore = false } = {}) {
    const list = this.#lists.get(folder);
    const { query } = FOLDERS[folder];
    if (!query) {
      list.isLoaded = true;
      if (isMore) await this.tidings.loadMoreRooms();
      return this.tell();
    }
    if (list.isLoading) return isMore ? undefined : this.#reloadSoon();
    list.isLoading = true;
    this.tell();
    try {
      const cursor = isMore ? list.next : null;
      const page = await this.tidings.call("GET", "/v1/rooms", { query: { ...query, limit: PAGE, cursor } });
      const kept = isMore ? [...list.ids] : this.#after(page, list);
      if (!isMore) this.tidings.keep(keptAs(folder), page.items);
      for (const room of page.items) this.#know(room);
      list.ids = new Set([...kept, ...page.items.map(({ id }) => id)]);
      if (isMore || !kept.length) list.next = page.next;
      list.failure = null;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      list.failure = error;
    } finally {
      list.isLoading = false;
      list.isLoaded = true;
      this.tell();
    }
  }

  /** What was read below the first page stays while that is read anew. */
  #after({ items, next }, { ids, next: nextBefore }) {
    const oldest = items.at(-1)?.updated_at ?? "";
    return next && nextBefore !== undefined ? [...ids].filter((id) => this.#fetched.get(id).updated_at < oldest) : [];
  }

  #isListed({ id, kind, isMember, isHidden }) {
    if (isMember) return kind === "support" || !isHidden;
    return [...this.#lists.values()].some(({ ids }) => ids.has(id));
  }

  #reloadSoon() {
    if (document.hidden) return;
    const waitMs = Math.max(RELOAD_AFTER_MS * (0.5 + Math.random()), this.#reloadedAt + RELOAD_EVERY_MS - performance.now());
    this.#reloadTimer ??= setTimeout(() => {
      this.#reloadTimer = null;
      this.#reloadedAt = performance.now();
      this.load(this.folder);
    }, waitMs);
  }

  // People

  /** A name to show; where it is not known yet it is asked for, and told when it is. */
  name(userId) {
    if (!userId) return t("someone");
    if (userId === this.me.id) return this.me.name;
    const known = this.tidings.nameOf(userId) ?? this.#users.get(userId)?.name;
    if (known) return known;
    this.user(userId);
    return this.#asked.get(userId) === "gone" ? t("someone") : "…";
  }

  /** All that the user may see of a person; null while it is not known. */
  user(userId) {
    if (userId && !this.#users.has(userId) && !this.#asked.has(userId)) {
      this.#asked.set(userId, "waits");
      this.#ask();
    }
    return this.#users.get(userId) ?? null;
  }

  /** Managers and admins, the user first left out. */
  async team() {
    this.#team ??= Promise.all(
      ["admin", "manager"].map(async (role) => {
        const query = { role, limit: TEAM_MAX };
        return (await this.tidings.call("GET", "/v1/users", { query })).items;
      }),
    ).then((pages) => {
      const people = pages.flat().filter(({ id }) => id !== this.me.id);
      for (const person of people) this.#users.set(person.id, person);
      return people.sort((one, other) => one.name.localeCompare(other.name));
    });
    try {
      return await this.#team;
    } catch (error) {
      this.#team = null;
      throw error;
    }
  }

  async #ask() {
    if (this.#asking >= PEOPLE_AT_ONCE_MAX) return;
    this.#asking++;
    try {
      for (;;) {
        const next = [...this.#asked].find(([, state]) => state === "waits");
        if (!next) return;
        const [userId] = next;
        this.#asked.set(userId, "asked");
        try {
          this.#users.set(userId, await this.tidings.call("GET", at`/v1/users/${userId}`));
          this.#asked.delete(userId);
        } catch (error) {
          if (!(error instanceof Error)) throw error;
          this.#asked.set(userId, "gone");
        }
        this.tell();
      }
    } finally {
      this.#asking--;
    }
  }
}
