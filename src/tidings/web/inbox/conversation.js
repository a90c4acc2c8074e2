/** The middle of the page: one room with its head, its log and the composer. */

import { Actions } from "./actions.js";
import { Composer } from "./composer.js";
import { el } from "./dom.js";
import { face } from "./faces.js";
import { Find } from "./find.js";
import { icon } from "./icons.js";
import { Log } from "./log.js";
import { t } from "./texts.js";

/** How often a room is looked at that nobody tells of live, since the user is no member. */
const LOOK_EVERY_MS = 5_000;

export class Conversation {
  #timer = null;
  #endings = [];
  #stamp = "";
  #wasLive = false;

  constructor(shell, roomId) {
    this.shell = shell;
    this.desk = shell.desk;
    this.roomId = roomId;
    this.actions = new Actions(this);
    this.find = new Find(this);
    this.composer = new Composer(this);
    this.head = el("header", { class: "head" });
    this.typing = el("p", { class: "typing", "aria-live": "polite" });
    this.notice = el("div", { class: "outside", hidden: true });
    this.log = new Log(this);
    this.element = el(
      "div",
      { class: "conversation" },
      this.head, this.find.element, this.log.element, this.typing, this.notice, this.composer.element,
    );
    const { tidings } = this.desk;
    this.#endings.push(
      tidings.on("typing", () => this.#showTyping()),
      tidings.on("outbox", () => this.log.draw()),
      tidings.on("readers", () => this.log.draw()),
      tidings.on("connection", () => this.#followReaders()),
    );
  }

  /** What is known of the room, or null. */
  get room() {
    return this.desk.room(this.roomId);
  }

  /** Show it, ready to be written to where there is a keyboard, or ready to be read. */
  start({ isWriting }) {
    this.draw();
    this.log.start();
    this.#look();
    this.#members();
    this.#followReaders();
    this.#timer = setInterval(() => {
      if (!this.room?.isMember && !document.hidden) this.log.refresh();
    }, LOOK_EVERY_MS);
    if (!isWriting) this.focus();
    else if (matchMedia("(min-width: 46.01rem)").matches) this.composer.focus();
  }

  close() {
    clearInterval(this.#timer);
    for (const end of this.#endings) end();
    this.log.close();
    this.composer.close();
  }

  focus() {
    this.log.scroller.focus();
  }

  /**
   * Whether it can be written to: who answers a customer becomes a member by that, and what is not
   * public is seen by members alone.
   */
  get isOpenToMe() {
    const { room } = this;
    return Boolean(room && (room.isMember || room.kind !== "group" || room.scope === "private"));
  }

  async #look() {
    try {
      await this.desk.look(this.roomId);
    } catch (error) {
      if (error.code === "not_found") this.shell.go(this.desk.folder);
      else if (!error.code && error.name !== "Unreachable") throw error;
    }
  }

  /** Names for the log and for mentions. */
  async #members() {
    try {
      const { items } = await this.desk.tidings.members(this.roomId);
      this.composer.setMembers(items);
      this.log.draw();
    } catch (error) {
      if (!error.code && error.name !== "Unreachable") throw error;
    }
  }

  /** How far others have read is told live to who is connected: what was before is fetched. */
  #followReaders() {
    const { tidings } = this.desk;
    const isLive = tidings.connection.status === "live";
    if (isLive && !this.#wasLive) tidings.loadReaders(this.roomId).catch(() => {}); // and so later
    this.#wasLive = isLive;
  }

  draw() {
    const { room } = this;
    if (!room) return;
    const name = this.desk.nameOf(room);
    const faceId = this.desk.faceOf(room);
    const isOnline = Boolean(faceId) && this.desk.tidings.isOnline(faceId);
    const assignee = room.assignee_id ? this.desk.name(room.assignee_id) : null;
    const stamp = JSON.stringify([name, faceId, isOnline, assignee, room.title, room.status, room.member_count, room.about, room.isMember]);
    if (stamp !== this.#stamp) {
      this.#stamp = stamp;
      this.#drawHead(room, name, faceId, isOnline, assignee);
      this.#drawNotice(room);
    }
    this.composer.draw();
    this.log.draw();
  }

  #drawHead(room, name, faceId, isOnline, assignee) {
    const focused = document.activeElement?.dataset?.act;
    const isSupport = room.kind === "support";
    const facts = [
      isSupport && room.title,
      isSupport && t(`state.${room.status}`),
      isSupport && (assignee ? t("assigned", { name: assignee }) : t("unassigned")),
      room.kind === "direct" && t(isOnline ? "online" : "offline"),
      room.kind === "group" && !room.about && room.member_count && t("members", { count: room.member_count }),
      room.about && t("notes.about"),
    ].filter(Boolean);
    this.head.replaceChildren(
      el("a", { class: "tool back", href: `#/${this.desk.folder}`, title: t("back"), "aria-label": t("back") }, icon("back")),
      face(faceId ?? room.id, name, { isOnline, sign: room.kind === "group" ? (room.about ? "notes" : "rooms") : null }),
      el("div", { class: "who" }, el("h2", {}, name), el("p", {}, facts.join(" · "))),
      ...this.actions.buttons(room),
      this.#tool("search", "find", () => this.find.open()),
      this.#tool("details", "details", () => this.shell.toggleDetails()),
    );
    if (focused) this.head.querySelector(`[data-act="${focused}"]`)?.focus();
    this.element.classList.toggle("is-notes", Boolean(room.about));
  }

  #tool(sign, key, act) {
    return el("button", { type: "button", class: `tool to-${key}`, title: t(key), "aria-label": t(key), "data-act": key, onclick: act }, icon(sign));
  }

  #drawNotice(room) {
    const isOutside = !room.isMember && (room.kind === "support" || !this.isOpenToMe);
    this.notice.hidden = !isOutside;
    this.composer.element.hidden = !this.isOpenToMe;
    if (!isOutside) return;
    if (room.kind === "support") {
      this.notice.replaceChildren(el("p", {}, t("composer.takes")));
    } else {
      const join = () => this.shell.attempt(() => this.desk.join(this.roomId));
      this.notice.replaceChildren(
        el("p", {}, t("composer.outside")),
        el("button", { type: "button", class: "main", onclick: join }, t("composer.join")),
      );
    }
  }

  #showTyping() {
    const names = this.desk.tidings
      .typingIn(this.roomId)
      .filter((id) => id !== this.desk.me.id)
      .map((id) => this.desk.name(id));
    const form = ["", "typing.one", "typing.two", "typing.many"][Math.min(names.length, 3)];
    this.typing.textContent = form && t(form, { name: names[0], other: names[1] });
  }
}
