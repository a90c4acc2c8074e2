/** What a user may do that is a call of the API: it needs the network, and is done or refused now. */

import { at } from "./calls.js";

export class Actions {
  constructor(calls) {
    this.calls = calls;
  }

  /** Any call of the API: at`/v1/rooms/${id}` escapes what is inserted. */
  call(method, path, options) {
    return this.calls.call(method, path, options);
  }

  edit(roomId, seq, text) {
    return this.call("PATCH", at`/v1/rooms/${roomId}/messages/${seq}`, { body: { text } });
  }

  delete(roomId, seq) {
    return this.call("DELETE", at`/v1/rooms/${roomId}/messages/${seq}`);
  }

  react(roomId, seq, emoji, isGiven = true) {
    const path = at`/v1/rooms/${roomId}/messages/${seq}/reactions/${emoji}`;
    return this.call(isGiven ? "PUT" : "DELETE", path);
  }

  /** What a room is: {id, kind, title, head, status, assignee_id, customer_id, …}. */
  details(roomId) {
    return this.call("GET", at`/v1/rooms/${roomId}`);
  }

  /** Make a room: {kind, title, member_ids, …}. */
  createRoom(room) {
    return this.call("POST", "/v1/rooms", { body: room });
  }

  /** Change a room: {title, status, assignee_id, …}. */
  changeRoom(roomId, changes) {
    return this.call("PATCH", at`/v1/rooms/${roomId}`, { body: changes });
  }

  mute(roomId, muted) {
    return this.call("PUT", at`/v1/rooms/${roomId}/mute`, { body: { muted } });
  }

  /** Take a room off the list, or put it back; it comes back by itself with the next message. */
  hide(roomId, hidden) {
    return this.call("PUT", at`/v1/rooms/${roomId}/hide`, { body: { hidden } });
  }

  addMembers(roomId, userIds) {
    return this.call("POST", at`/v1/rooms/${roomId}/members`, { body: { user_ids: userIds } });
  }

  removeMember(roomId, userId) {
    return this.call("DELETE", at`/v1/rooms/${roomId}/members/${userId}`);
  }

  /** Upload a file; its id goes into `send`. `onProgress` gets the share that is done, 0…1. */
  async upload(file, onProgress) {
    const { upload } = await import("./uploads.js");
    return upload(this.calls, file, onProgress);
  }
}
