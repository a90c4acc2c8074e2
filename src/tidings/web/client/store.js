/**
 * What a browser keeps of one session: rooms, the newest entries of each, the outbox, the cursor.
 *
 * One IndexedDB database per session, so that nobody ever reads what another left. What is written
 * together is one transaction: the cursor never is ahead of the entries it stands for. Where the
 * browser keeps nothing (private windows, blocked or full storage) a `MemoryStore` stands in.
 */

import { within } from "./waits.js";

/** Newest entries of each room that are kept; older ones are removed as a range. */
export const ENTRIES_STORED_MAX = 300;
/** Rooms that are kept; those touched least recently go, with their entries. */
export const ROOMS_STORED_MAX = 500;
const SCHEMA = 1;
/** What was written so long ago and never sent is not sent any more: receipts don't last for ever. */
const UNSENT_KEPT_MS = 7 * 24 * 3_600_000;
/** A database that does not open by then is done without. */
const OPEN_DEADLINE_MS = 3_000;
const PREFIX = "tidings:";
/** Before the names of what an application keeps, beside the library's own. */
const KEPT = "kept:";

/** The name of a session's database; null where the browser has no way to make one. */
export async function storeName(profile, url, token) {
  try {
    if (!crypto.subtle || !indexedDB) return null;
  } catch {
    return null; // blocked
  }
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`${url} ${token}`));
  const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0"));
  return `${PREFIX}${profile}:${url}:${hex.join("").slice(0, 32)}`;
}

/** Open a session's store. */
export async function openStore(name, onTaken) {
  if (name === null) return new MemoryStore();
  const opening = open(name);
  try {
    return new Store(name, await within(OPEN_DEADLINE_MS, opening), onTaken);
  } catch {
    opening.then((database) => database.close(), () => {}); // or nobody could ever remove it
    return new MemoryStore();
  }
}

/** Keeps nothing: what there is is in the tab's own memory. */
export class MemoryStore {
  kind = "memory";

  async load() {
    return null;
  }

  async save() {}

  async entries() {
    return [];
  }

  async kept() {
    return null;
  }

  async keep() {}

  async outgoing() {
    return [];
  }

  async putOutgoing() {}

  async removeOutgoing() {}

  async inherit() {
    return [];
  }

  async retire() {}

  async wipe() {}

  close() {}
}

class Store {
  kind = "indexeddb";

  constructor(name, database, onTaken) {
    this.name = name;
    this.database = database;
    database.onversionchange = () => {
      database.close(); // another session of this profile began, or this one was signed out
      onTaken();
    };
    database.onclose = onTaken;
  }

  /** {meta, rooms, outgoing} as last saved, rooms in the order in which they were touched. */
  async load() {
    const { meta, rooms } = this.#open(["meta", "rooms"], "readonly");
    const [values, plain, outgoing] = await Promise.all([
      result(meta.get("state")),
      result(rooms.getAll()),
      this.outgoing(),
    ]);
    plain.sort((one, other) => indexedDB.cmp(one.touched, other.touched));
    return { meta: values ?? null, rooms: plain, outgoing };
  }

  /** The records of the outbox, in order. */
  async outgoing() {
    const { outgoing } = this.#open(["outgoing"], "readonly");
    const records = await result(outgoing.getAll());
    return records.sort(byNumber);
  }

  /**
   * Save what changed, all of it or nothing. `rooms` are plain; `entries` are [room, seq, entry or
   * null]. Throws where the browser has no room for it.
   */
  async save({ meta, rooms, entries, jumps, isFresh }) {
    const stores = this.#open(["meta", "rooms", "entries"], "readwrite");
    const { transaction } = stores.rooms;
    const saved = done(transaction);
    try {
      if (isFresh) {
        stores.rooms.clear();
        stores.entries.clear();
      }
      stores.meta.put(meta, "state");
      for (const room of rooms) {
        const touched = [room.counts_version, room.row?.updated_at ?? ""];
        stores.rooms.put({ ...room, touched });
        const oldest = room.head - ENTRIES_STORED_MAX;
        if (oldest > 0) {
          stores.entries.delete(IDBKeyRange.bound([room.room_id, 0], [room.room_id, oldest]));
        }
      }
      for (const roomId of jumps) stores.entries.delete(wholeLog(roomId));
      const heads = new Map(rooms.map((room) => [room.room_id, room.head]));
      for (const [roomId, seq, entry] of entries) {
        if (seq <= (heads.get(roomId) ?? 0) - ENTRIES_STORED_MAX) continue;
        if (entry) stores.entries.put(entry, [roomId, seq]);
        else stores.entries.delete([roomId, seq]);
      }
    } catch (error) {
      saved.catch(() => {});
      transaction.abort();
      throw error;
    }
    await saved;
    await this.#evictRooms(ROOMS_STORED_MAX);
  }

  /** Make room: half of the rooms go. */
  async shrink() {
    const { rooms } = this.#open(["rooms"], "readonly");
    await this.#evictRooms(Math.floor((await result(rooms.count())) / 2));
  }

  async #evictRooms(most) {
    const stores = this.#open(["rooms", "entries"], "readwrite");
    const excess = (await result(stores.rooms.count())) - most;
    if (excess > 0) {
      for (const roomId of await result(stores.rooms.index("touched").getAllKeys(null, excess))) {
        stores.rooms.delete(roomId);
        stores.entries.delete(wholeLog(roomId));
      }
    }
    await done(stores.rooms.transaction);
  }

  /** The entries that are kept in low…high, ascending; some may be missing. */
  async entries(roomId, low, high) {
    const { entries } = this.#open(["entries"], "readonly");
    return result(entries.getAll(IDBKeyRange.bound([roomId, low], [roomId, high])));
  }

  /** What an application had kept by that name, or null. */
  async kept(name) {
    const { meta } = this.#open(["meta"], "readonly");
    return (await result(meta.get(KEPT + name))) ?? null;
  }

  async keep(name, value) {
    const { meta } = this.#open(["meta"], "readwrite");
    meta.put(value, KEPT + name);
    await done(meta.transaction);
  }

  async putOutgoing(record) {
    const { outgoing } = this.#open(["outgoing"], "readwrite");
    outgoing.put(record);
    await done(outgoing.transaction);
  }

  async removeOutgoing(key) {
    const { outgoing } = this.#open(["outgoing"], "readwrite");
    outgoing.delete(key);
    await done(outgoing.transaction);
  }

  /**
   * Remove the stores of other sessions of the profile at that service. What the same user wrote
   * there, and was not sent, goes on here and is returned.
   */
  async inherit(userId) {
    const siblings = this.name.slice(0, this.name.lastIndexOf(":") + 1);
    const records = [];
    for (const { name } of await indexedDB.databases()) {
      if (!name.startsWith(siblings) || name === this.name) continue;
      for (const record of await unsentIn(name, userId)) {
        await this.putOutgoing(record);
        records.push(record);
      }
      indexedDB.deleteDatabase(name);
    }
    return records.sort(byNumber);
  }

  /** The session ended: only what its user wrote and was not sent stays, for `inherit`. */
  async retire(userId) {
    const unsent = (await this.outgoing()).filter(({ kind }) => kind === "send");
    if (!userId || !unsent.length) return this.wipe();
    const stores = this.#open(["meta", "rooms", "entries"], "readwrite");
    stores.rooms.clear();
    stores.entries.clear();
    stores.meta.clear();
    stores.meta.put({ me: { id: userId } }, "state");
    await done(stores.rooms.transaction);
    return this.close();
  }

  async wipe() {
    this.close();
    await result(indexedDB.deleteDatabase(this.name));
  }

  close() {
    this.database.onclose = this.database.onversionchange = null;
    this.database.close();
  }

  #open(names, mode) {
    const durability = names.includes("outgoing") ? "strict" : "relaxed";
    const transaction = this.database.transaction(names, mode, { durability });
    return Object.fromEntries(names.map((name) => [name, transaction.objectStore(name)]));
  }
}

async function open(name) {
  const request = indexedDB.open(name, SCHEMA);
  request.onupgradeneeded = () => {
    const database = request.result;
    for (const old of [...database.objectStoreNames]) database.deleteObjectStore(old);
    database.createObjectStore("meta");
    database.createObjectStore("rooms", { keyPath: "room_id" }).createIndex("touched", "touched");
    database.createObjectStore("entries");
    database.createObjectStore("outgoing", { keyPath: "key" });
  };
  return result(request);
}

const byNumber = (one, other) => one.number - other.number;
const wholeLog = (roomId) => IDBKeyRange.bound([roomId, 0], [roomId, Infinity]);

/** The messages in another session's database, if they are the user's and not too old. */
async function unsentIn(name, userId) {
  const database = await within(OPEN_DEADLINE_MS, open(name));
  try {
    const transaction = database.transaction(["meta", "outgoing"], "readonly");
    const [state, records] = await Promise.all([
      result(transaction.objectStore("meta").get("state")),
      result(transaction.objectStore("outgoing").getAll()),
    ]);
    const since = Date.now() - UNSENT_KEPT_MS;
    const isTheirs = state?.me?.id === userId;
    return records.filter(({ kind, number }) => isTheirs && kind === "send" && number > since);
  } finally {
    database.close();
  }
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function done(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

