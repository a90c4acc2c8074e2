/**
 * How far others have read, by room: what was fetched, and hints since. Marks only grow, so that
 * neither order nor loss of hints matters for long. Nothing of it is kept.
 */

/** Rooms of which it is remembered; the one that was told of longest ago goes. */
const ROOMS_MAX = 200;

export class Readers {
  #rooms = new Map();

  /** Take [{user_id, read_seq}]; a `user_id` of null stands for all others together. */
  take(roomId, readers) {
    const marks = this.#rooms.get(roomId) ?? new Map();
    for (const { user_id, read_seq } of readers) {
      marks.set(user_id, Math.max(read_seq, marks.get(user_id) ?? 0));
    }
    this.#rooms.delete(roomId);
    this.#rooms.set(roomId, marks);
    if (this.#rooms.size > ROOMS_MAX) this.#rooms.delete(this.#rooms.keys().next().value);
  }

  of(roomId) {
    const marks = this.#rooms.get(roomId) ?? [];
    return Array.from(marks, ([user_id, read_seq]) => ({ user_id, read_seq }));
  }
}
