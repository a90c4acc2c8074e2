/** What may be done with a customer's conversation: take, assign, snooze, close, notes. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./texts.js";

const HOUR_MS = 3_600_000;
const MORNING = 9;

/** The times that a conversation can be put off to: [key, when]. */
function snoozes() {
  const now = Date.now();
  const tomorrow = new Date(now);
  tomorrow.setDate(tomorrow.getDate() + 1);
  tomorrow.setHours(MORNING, 0, 0, 0);
  const monday = new Date(now);
  monday.setDate(monday.getDate() + (((8 - monday.getDay()) % 7) || 7));
  monday.setHours(MORNING, 0, 0, 0);
  return [
    ["snooze.hour", new Date(now + HOUR_MS)],
    ["snooze.evening", new Date(now + 4 * HOUR_MS)],
    ["snooze.tomorrow", tomorrow],
    ["snooze.week", monday],
  ];
}

export class Actions {
  constructor(conversation) {
    this.conversation = conversation;
    this.desk = conversation.desk;
  }

  get #room() {
    const { room } = this.conversation;
    return room?.kind === "support" ? room : null;
  }

  /** For the head of the conversation. */
  buttons(room) {
    const button = (key, act, { kind = "", sign = null, label = key } = {}) =>
      el(
        "button",
        { type: "button", class: `act ${kind}`, "data-act": key, onclick: act, title: t(label), "aria-label": t(label) },
        sign && icon(sign), el("span", {}, t(label)),
      );
    if (room.about) return [button("notes.back", () => this.notes(), { sign: "back" })];
    if (room.kind !== "support") return [];
    const isMine = room.assignee_id === this.desk.me.id;
    const isClosed = room.status === "closed";
    return [
      !isMine && !isClosed && button("take", () => this.take(), { kind: room.assignee_id ? "" : "main", sign: "mine" }),
      button("notes", () => this.notes(), { sign: "notes" }),
      !isClosed && button("snooze", () => this.askSnooze(), { sign: "snoozed" }),
      room.status === "open"
        ? button("close", () => this.toggleClosed(), { sign: "closed" })
        : button("reopen", () => this.toggleClosed(), { sign: "open" }),
    ].filter(Boolean);
  }

  #change(changes) {
    return this.conversation.shell.attempt(() => this.desk.change(this.conversation.roomId, changes));
  }

  /** Take the conversation, or give it back where it was taken. */
  async take() {
    const room = this.#room;
    if (!room) return;
    const { shell } = this.conversation;
    const isMine = room.assignee_id === this.desk.me.id;
    await this.#change({ assignee_id: isMine ? null : this.desk.me.id });
    if (shell.roomId === room.id) shell.open(room.id); // in the list where it is now
  }

  assign(userId) {
    return this.#room && this.#change({ assignee_id: userId });
  }

  toggleClosed() {
    const room = this.#room;
    if (!room) return undefined;
    return this.#change(room.status === "open" ? { status: "closed" } : { status: "open" });
  }

  snooze(until) {
    return this.#room && this.#change({ status: "snoozed", snoozed_until: until.toISOString() });
  }

  /** Ask until when. */
  askSnooze() {
    if (!this.#room) return;
    this.conversation.shell.palette.choose(
      t("snooze"),
      snoozes().map(([key, until]) => ({ name: t(key), sign: "snoozed", act: () => this.snooze(until) })),
    );
  }

  /** Ask to whom. */
  async askAssignee() {
    if (!this.#room) return;
    const team = (await this.conversation.shell.attempt(() => this.desk.team())) ?? [];
    this.conversation.shell.palette.choose(t("assign"), [
      { name: t("assign.me"), face: this.desk.me, act: () => this.assign(this.desk.me.id) },
      ...team.map((person) => ({ name: person.name, face: person, act: () => this.assign(person.id) })),
      { name: t("assign.none"), sign: "queue", act: () => this.assign(null) },
    ]);
  }

  /** Go to the notes about the customer's conversation, beginning them if need be, and back. */
  async notes() {
    const { room, shell, roomId } = this.conversation;
    if (room?.about) {
      await shell.attempt(() => this.desk.look(room.about));
      return shell.open(room.about);
    }
    if (room?.kind !== "support") return undefined;
    return shell.attempt(async () => {
      const found = await this.desk.notesAbout(roomId);
      if (found) return shell.go(this.desk.folder, found);
      return shell.palette.choose(t("notes.about"), [
        {
          name: t("notes.start"), sign: "notes",
          act: () => shell.attempt(async () => shell.go(this.desk.folder, await this.desk.startNotes(roomId))),
        },
      ]);
    });
  }
}
