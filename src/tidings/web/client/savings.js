/**
 * What changed since the store was last written.
 *
 * Every tab notes it, so that whoever leads next can write what the last leader could not; `n`
 * numbers what was shared, and what was written up to a number is forgotten by all.
 */

export class Savings {
  #rooms = new Map();
  #entries = new Map();
  #jumps = new Map();
  #freshAt = null;
  #isChanged = false;

  note({ rooms, entries, jumps, isFresh }, n) {
    if (isFresh) {
      this.forget(n);
      this.#freshAt = n;
    }
    this.#isChanged = true;
    for (const roomId of rooms) this.#rooms.set(roomId, n);
    for (const roomId of jumps) this.#jumps.set(roomId, n);
    for (const [roomId, seq, entry] of entries) {
      this.#entries.set(`${roomId} ${seq}`, { n, what: [roomId, seq, entry] });
    }
  }

  /** What to write now, or null. */
  take(state) {
    if (!this.#isChanged) return null;
    this.#isChanged = false;
    const rooms = [...this.#rooms.keys()].map((roomId) => state.rooms.get(roomId));
    return {
      meta: { ...state.snapshot({ isForStore: true }), saved_at: Date.now() },
      rooms: rooms.filter(Boolean).map((room) => room.plain()),
      entries: [...this.#entries.values()].map(({ what }) => what),
      jumps: [...this.#jumps.keys()],
      isFresh: this.#freshAt !== null,
    };
  }

  /** It was written up to there. */
  forget(n) {
    for (const noted of [this.#rooms, this.#jumps]) {
      for (const [key, at] of noted) if (at <= n) noted.delete(key);
    }
    for (const [key, { n: at }] of this.#entries) if (at <= n) this.#entries.delete(key);
    if (this.#freshAt !== null && this.#freshAt <= n) this.#freshAt = null;
  }
}
