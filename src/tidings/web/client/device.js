/**
 * The tab that speaks with the service: sends exactly once, misses nothing.
 *
 * A lost connection is made anew with jitter, after `retry_after_ms` where the service named it, and
 * resumed at the cursor. A jump of the version leads to a catch-up, a hole in a room to a range
 * request. Where sockets are blocked it goes over to a stream, and from there to polls.
 */

import { at } from "./calls.js";
import { frameOf, Outbox, POSTING_MAX } from "./outbox.js";
import { Problem, Unreachable } from "./problems.js";
import { rangesOf } from "./ranges.js";
import { Backoff, sleep } from "./waits.js";
import { overPolls, overSocket, overStream } from "./ways.js";

const WAYS = [
  ["websocket", overSocket],
  ["events", overStream],
  ["poll", overPolls],
];
/** Connections that broke at once, one after the other, before another way is tried. */
const FRUITLESS_MAX = 2;
/** How long another way is used before the best one is tried again. */
const DETOUR_MS = 300_000;
const RECONNECT_FIRST_MS = 250;
const RECONNECT_MOST_MS = 30_000;
/** A reason to hope (the network is back, the page is looked at) ends a wait, so often at most. */
const NUDGE_EVERY_MS = 1_000;
/** Rooms of which the device says what it has when it comes back. */
const RESUME_ROOMS_MAX = 50;
/** How often the session's queue is acknowledged over a socket. */
const SEEN_EVERY_MS = 5_000;
const INBOX_PAGE = 50;
const PAGE_MAX = 500;
/** Pages of one catch-up, hole or look for rows. */
const ROUNDS_MAX = 10_000;
/** A hole wider than this is jumped over: what is before it is fetched anew when looked at. */
const HOLE_MAX = 2_000;
const FRAMES = new Set(
  ["ready", "entry", "read", "badge", "room", "queue", "presence", "typing", "reader", "sync"],
);

export class Device {
  #ending = new AbortController();
  #connecting = new AbortController();
  #pausing = new AbortController();
  #nudgedAt = -Infinity;
  #way = 0;
  #detourAt = 0;
  #send = null;
  #probe = null;
  #isGreeted = false;
  #isOpen = false;
  #posting = 0;
  #closingMs = null;
  #seen = null;
  #isMending = false;
  #isIntroduced = false;

  /**
   * `share` applies frames to the state of every tab, `end` is told the problem after which coming
   * back is of no use.
   */
  constructor(calls, state, share, end) {
    this.calls = calls;
    this.state = state;
    this.share = share;
    this.end = end;
    this.outbox = new Outbox(() => state.outgoing, () => this.pump());
  }

  start() {
    this.#stayConnected().catch((error) => this.#fail(error));
    const timer = setInterval(() => {
      this.#sayFurther();
      if (this.#isOpen && this.#isGreeted) this.#introduce();
    }, SEEN_EVERY_MS);
    this.#ending.signal.addEventListener("abort", () => clearInterval(timer));
  }

  stop() {
    if (this.#ending.signal.aborted) return;
    this.#sayFurther();
    this.#ending.abort();
    this.#connecting.abort();
    this.#pausing.abort();
  }

  /** There is reason to hope, or to doubt: try now, or see whether the connection still lives. */
  nudge() {
    if (this.#isOpen) return this.#probe?.();
    const now = performance.now();
    if (now - this.#nudgedAt > NUDGE_EVERY_MS && this.#closingMs === null) {
      this.#nudgedAt = now;
      this.#pausing.abort();
    }
  }

  /** Say what waits in the outbox. */
  pump() {
    if (!this.#isOpen || !this.#isGreeted || this.#ending.signal.aborted) return;
    if (this.#send) {
      for (const [ref, record] of this.outbox.next()) this.#send(frameOf(ref, record));
    } else {
      const free = POSTING_MAX - this.#posting;
      for (const [ref, record] of this.outbox.next(free)) this.#post(ref, record);
    }
  }

  /** Whether it went to the service; nothing is kept. */
  typing(roomId) {
    if (this.#send) this.#send({ type: "typing", room_id: roomId });
    else if (this.#isOpen) this.calls.call("POST", at`/v1/rooms/${roomId}/typing`).catch(() => {});
  }

  // The connection

  async #stayConnected() {
    const backoff = new Backoff(RECONNECT_FIRST_MS, RECONNECT_MOST_MS);
    let fruitless = 0;
    while (!this.#ending.signal.aborted) {
      if (this.#way && performance.now() - this.#detourAt > DETOUR_MS) this.#way = 0;
      let retryAfterMs = 0;
      let isSilence = false;
      this.#closingMs = null;
      try {
        await this.#connect(backoff);
      } catch (error) {
        if (error.isFinal && !this.#startAfresh(error)) throw error;
        retryAfterMs = error.retryAfterMs ?? 0;
        isSilence = error.isSilence ?? false;
        if (!(error instanceof Problem || error instanceof Unreachable)) throw error;
      } finally {
        this.#isOpen = false;
        this.#send = this.#probe = null;
      }
      if (this.#ending.signal.aborted) return;
      fruitless = this.#isGreeted ? 0 : fruitless + (isSilence ? FRUITLESS_MAX : 1);
      this.#tellConnection("waiting");
      if (fruitless >= FRUITLESS_MAX && this.#closingMs === null && (await this.#isServiceThere())) {
        this.#way = (this.#way + 1) % WAYS.length;
        this.#detourAt = performance.now();
        fruitless = 0;
        continue;
      }
      this.#pausing = new AbortController();
      await sleep(this.#closingMs ?? backoff.next(retryAfterMs), this.#pausing.signal);
    }
  }

  async #connect(backoff) {
    const { state } = this;
    this.#isGreeted = false;
    this.#connecting = new AbortController();
    this.outbox.beginAgain();
    const have = state.cursor ? state.have(RESUME_ROOMS_MAX) : {};
    const [, way] = WAYS[this.#way];
    this.#tellConnection("connecting");
    const on = {
      onOpen: (send, probe) => {
        this.#isOpen = true;
        this.#send = send;
        this.#probe = probe ?? null;
      },
      onFrames: (frames) => {
        this.#receive(frames);
        if (this.#isGreeted) backoff.reset();
      },
    };
    await way(this.calls, { since: state.cursor, have }, on, this.#connecting.signal);
  }

  #receive(frames) {
    const shared = [];
    for (const frame of frames) {
      if (frame.type === "ack") {
        this.#answer(frame.ref, frame.entry, frame.read, shared);
      } else if (frame.type === "error") {
        this.#takeProblem(frame);
      } else if (frame.type === "closing") {
        this.#closingMs = frame.retry_after_ms;
      } else if (FRAMES.has(frame.type)) {
        this.#isGreeted = true;
        shared.push(frame);
      }
    }
    if (shared.length) this.share(shared);
    if (this.#isGreeted && this.state.connection.status !== "live") {
      this.#tellConnection("live");
      this.#introduce();
    }
    if (this.#closingMs !== null) return this.#connecting.abort();
    this.#mend();
    this.pump();
  }

  #answer(ref, entry, read, shared) {
    const record = this.outbox.take(ref);
    if (!record) return;
    this.outbox.succeed();
    if (read) shared.push({ type: "marked", room_id: record.room_id, read });
    shared.push({ type: "settled", key: record.key, entry });
  }

  #takeProblem({ ref, problem: told }) {
    const problem = new Problem(told, (told.retry_after_s ?? 0) * 1000);
    if (ref === undefined) {
      if (problem.code === "unauthorized" || !this.#isGreeted) throw problem;
    } else {
      this.#refuse(ref, problem, told);
    }
  }

  #refuse(ref, problem, told) {
    if (problem.isPassing) return this.outbox.hold(problem.retryAfterMs);
    const record = this.outbox.take(ref);
    if (record?.kind === "read") this.share([{ type: "settled", key: record.key }]);
    else if (record) this.share([{ type: "refused", key: record.key, problem: told }]);
  }

  async #post(ref, { kind, room_id: roomId, body }) {
    this.#posting++;
    try {
      const isSend = kind === "send";
      const path = isSend ? at`/v1/rooms/${roomId}/messages` : at`/v1/rooms/${roomId}/read`;
      const reply = await this.calls.call(isSend ? "POST" : "PUT", path, { body });
      const shared = [];
      this.#answer(ref, isSend ? reply : undefined, isSend ? undefined : reply, shared);
      this.share(shared);
    } catch (error) {
      if (error instanceof Unreachable) this.outbox.hold();
      else if (error.code === "unauthorized") this.#fail(error);
      else if (error instanceof Problem) this.#refuse(ref, error, { ...error, detail: error.message });
      else throw error;
    } finally {
      this.#posting--;
    }
    this.pump();
  }

  #tellConnection(status) {
    const connection = { status, way: WAYS[this.#way][0] };
    this.share([{ type: "connection", connection }]);
  }

  async #isServiceThere() {
    try {
      await this.calls.call("GET", "/v1/badge", { deadlineMs: 3_000 });
      return true;
    } catch (error) {
      if (error.code === "unauthorized") throw error;
      return false;
    }
  }

  /** A cursor that the service does not know leads nowhere: begin without, as a new device does. */
  #startAfresh(problem) {
    if (problem.code !== "validation_failed" || this.state.cursor === null) return false;
    this.#isIntroduced = false;
    this.share([{ type: "fresh" }]);
    return true;
  }

  /** Acknowledge the session's queue up to what was handled. */
  #sayFurther() {
    const { cursor } = this.state;
    if (this.#send && this.#isGreeted && cursor && cursor !== this.#seen) {
      this.#send({ type: "seen", cursor });
      this.#seen = cursor;
    }
  }

  #fail(error) {
    if (this.#ending.signal.aborted) return;
    this.stop();
    this.end(error);
  }

  // Catching up

  /** Who the user is, and the first page of the inbox where it was not read yet. */
  async #introduce() {
    if (this.#isIntroduced) return;
    this.#isIntroduced = true;
    try {
      const me = await this.calls.call("GET", "/v1/me");
      this.share([{ type: "me", me }]);
      if (this.state.inboxNext === undefined) await this.#loadRooms();
      if (me.role === "manager" || me.role === "admin") {
        this.share([{ type: "queue", ...(await this.calls.call("GET", "/v1/queue")) }]);
      }
    } catch (error) {
      this.#isIntroduced = false; // and asked again soon
      if (error.code === "unauthorized") this.#fail(error);
    }
  }

  /** The first page of the inbox. */
  async #loadRooms() {
    this.share([await inboxPage(this.calls)]);
    this.#mend();
  }

  /** The newest rows come as a page, those that it lacks (of hidden rooms, of old ones) one by one. */
  async #askForRows() {
    const { next, ...page } = await inboxPage(this.calls);
    this.share([page]);
    for (const room_id of this.state.rowlessRooms) {
      try {
        const item = await this.calls.call("GET", at`/v1/rooms/${room_id}/inbox`);
        this.share([{ type: "inbox", items: [item], version: page.version }]);
      } catch (error) {
        if (error.code !== "not_found") throw error;
        this.share([{ type: "aside", room_id }]);
      }
    }
  }

  async #mend() {
    if (this.#isMending) return;
    this.#isMending = true;
    const backoff = new Backoff(RECONNECT_FIRST_MS, RECONNECT_MOST_MS);
    const { state } = this;
    const { signal } = this.#ending;
    try {
      for (let round = 0; !state.isWhole && !signal.aborted; round++) {
        if (round) await sleep(backoff.next(), signal);
        try {
          if (state.hasGap) await this.#catchUp();
          for (const room of state.holedRooms) await this.#fill(room);
          for (const room of state.staleRooms) await this.#fetchAgain(room);
          if (state.rowlessRooms.length) await this.#askForRows();
        } catch (error) {
          if (error.code === "unauthorized") return this.#fail(error);
          if (!(error instanceof Problem || error instanceof Unreachable)) throw error;
          if (error.isFinal && state.hasGap) this.#startAfresh(error);
        }
      }
    } finally {
      this.#isMending = false;
    }
  }

  async #catchUp() {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const body = { have: this.state.have(RESUME_ROOMS_MAX), limit: PAGE_MAX };
      if (this.state.cursor) body.since = this.state.cursor;
      const reply = await this.calls.call("POST", "/v1/sync", { body });
      this.share([{ type: "sync", ...reply }]);
      if (!reply.more) return;
    }
  }

  /** Fetch what is missing of a room, page by page. */
  async #fill(room) {
    const { room_id } = room;
    for (let round = 0; round < ROUNDS_MAX && room.hasHole; round++) {
      const isWide = room.head - room.position > HOLE_MAX;
      const query = { have: isWide ? undefined : room.have(), limit: PAGE_MAX };
      const reply = await this.#messages(room, query);
      if (!reply) return;
      const is_all = isWide || reply.items.length < PAGE_MAX;
      this.share([{ type: "range", room_id, ...reply, is_all, is_jump: isWide }]);
    }
  }

  /** Fetch entries that were edited, deleted or reacted to since they came. */
  async #fetchAgain(room) {
    const { room_id } = room;
    for (const [low, high] of rangesOf([...room.stale].sort((one, other) => one - other))) {
      const seqs = Array.from({ length: high - low + 1 }, (_, n) => low + n);
      const reply = await this.#messages(room, { after: low - 1, limit: seqs.length });
      if (!reply) return;
      this.share([{ type: "again", room_id, seqs, ...reply }]);
    }
  }

  /** Null where the user left meanwhile, and nothing since says otherwise. */
  async #messages({ room_id }, query) {
    try {
      return await this.calls.call("GET", at`/v1/rooms/${room_id}/messages`, { query });
    } catch (error) {
      if (error.code !== "not_found") throw error;
      this.share([{ type: "aside", room_id }]);
      return null;
    }
  }
}

/** A page of the inbox as tabs tell it, with the badge that its rooms are at least as new as. */
export async function inboxPage(calls, cursor) {
  const total = await calls.call("GET", "/v1/badge");
  const query = { limit: INBOX_PAGE, cursor };
  const { items, next } = await calls.call("GET", "/v1/inbox", { query });
  return { type: "inbox", items, version: total.version, total, next };
}
