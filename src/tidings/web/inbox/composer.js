/** Where messages are written: a draft for each room, replies, edits, mentions and files. */

import { Completion } from "./completion.js";
import { el, keep, kept } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./texts.js";
import { Tray } from "./tray.js";

export const TEXT_CHARACTERS_MAX = 8_000;
const HEIGHT_PX_MAX = 220;
const DRAFTS = "tidings:inbox:draft:";

/** Drafts of all rooms go when the user signs out, those of others when a user signs in. */
export function forgetDrafts({ exceptOf = null } = {}) {
  const isOther = (key) => key.startsWith(DRAFTS) && !(exceptOf && key.startsWith(`${DRAFTS}${exceptOf}:`));
  try {
    for (const key of Object.keys(localStorage).filter(isOther)) keep(key, null);
  } catch {
    // blocked: there are none
  }
}

export class Composer {
  #members = [];
  /** The entry that is replied to, or edited. */
  #reply = null;
  #edited = null;
  #draftKey;
  #stamp = "";

  constructor(conversation) {
    this.conversation = conversation;
    this.desk = conversation.desk;
    this.#draftKey = `${DRAFTS}${this.desk.me.id}:${conversation.roomId}`;
    this.field = el("textarea", { rows: "1", dir: "auto", enterkeyhint: "send" });
    this.field.value = kept(this.#draftKey) ?? "";
    this.context = el("div", { class: "context", hidden: true });
    this.excess = el("span", { class: "bad", role: "status" });
    this.sendButton = el(
      "button",
      { class: "send", type: "submit", title: t("composer.send"), "aria-label": t("composer.send") },
      icon("send"),
    );
    this.tray = new Tray(conversation.shell, () => this.#showState());
    this.completion = new Completion(this.field, () => this.#members.filter(({ id }) => id !== this.desk.me.id));
    this.element = el(
      "form",
      { class: "composer" },
      this.completion.element,
      this.context,
      this.tray.element,
      el("div", { class: "line" }, this.tray.button, this.field, this.sendButton),
      el("p", { class: "hint" }, el("span", {}, t("composer.hint")), this.excess),
    );
    this.field.addEventListener("input", () => this.#input());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("paste", (event) => this.tray.paste(event));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.tray.acceptDrops(conversation);
    this.#showState();
  }

  close() {
    this.tray.close();
  }

  setMembers(members) {
    this.#members = members.map(({ user_id: id, name }) => ({ id, name }));
  }

  focus() {
    if (!this.element.hidden) this.field.focus();
  }

  draw() {
    const { room } = this.conversation;
    const text = room.about ? t("composer.note") : t("composer", { name: this.desk.nameOf(room) });
    if (this.#stamp === text) return;
    this.#stamp = text;
    this.field.placeholder = text;
    this.field.setAttribute("aria-label", text);
    requestAnimationFrame(() => this.#grow());
  }

  reply(entry) {
    this.#leaveEdit();
    this.#reply = entry;
    this.#showContext();
    this.focus();
  }

  edit(entry) {
    this.#reply = null;
    this.#edited = entry;
    this.field.value = entry.text ?? "";
    this.#showContext();
    this.#showState();
    this.focus();
  }

  #leaveEdit() {
    if (!this.#edited) return;
    this.#edited = null;
    this.field.value = kept(this.#draftKey) ?? "";
    this.#showState();
  }

  #cancel() {
    this.#reply = null;
    this.#leaveEdit();
    this.#showContext();
    this.focus();
  }

  #showContext() {
    const entry = this.#edited ?? this.#reply;
    this.context.hidden = !entry;
    if (!entry) return;
    const name = entry.sender_id === this.desk.me.id ? t("you") : this.desk.name(entry.sender_id);
    const title = this.#edited ? t("composer.editing") : t("composer.replying", { name });
    this.context.replaceChildren(
      icon(this.#edited ? "edit" : "reply"),
      el("b", {}, title),
      el("span", { dir: "auto" }, this.#edited ? "" : (entry.text ?? "")),
      el("button", { type: "button", title: t("cancel"), "aria-label": t("cancel"), onclick: () => this.#cancel() }, icon("close")),
    );
  }

  #input() {
    if (!this.#edited) keep(this.#draftKey, this.field.value || null);
    if (this.field.value.trim() && this.conversation.room?.isMember) this.desk.tidings.typing(this.conversation.roomId);
    this.#showState();
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, HEIGHT_PX_MAX)}px`;
  }

  get #excess() {
    return Math.max(0, [...this.field.value.trim()].length - TEXT_CHARACTERS_MAX);
  }

  #showState() {
    const hasText = Boolean(this.field.value.trim());
    const hasContent = hasText || (!this.#edited && this.tray.hasFiles);
    this.sendButton.disabled = !hasContent || this.#excess > 0 || this.tray.isBusy;
    this.excess.textContent = this.#excess ? t("composer.long", { count: this.#excess }) : "";
    this.#grow();
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // an input method is at work
    if (this.completion.key(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (this.#edited || this.#reply) this.#cancel();
      else this.conversation.focus();
    } else if (event.key === "ArrowUp" && !this.field.value) {
      this.#editLast(event);
    }
  }

  #editLast(event) {
    const own = this.conversation.log.view.entries.findLast(
      ({ sender_id, type, deleted_at }) => sender_id === this.desk.me.id && type === "text" && !deleted_at,
    );
    if (!own) return;
    event.preventDefault();
    this.edit(own);
  }

  async #send() {
    if (this.sendButton.disabled) return;
    const text = this.field.value.trim();
    const { roomId, shell, log } = this.conversation;
    const { tidings } = this.desk;
    if (this.#edited) {
      const { seq, text: before } = this.#edited;
      this.#cancel();
      if (text !== before) await shell.attempt(() => tidings.edit(roomId, seq, text));
      return;
    }
    const lowered = text.toLocaleLowerCase();
    const mentions = this.#members
      .filter(({ id, name }) => id !== this.desk.me.id && lowered.includes(`@${name.toLocaleLowerCase()}`))
      .map(({ id }) => id);
    const options = { mentions, blobs: this.tray.take(), reply_to: this.#reply?.seq ?? null };
    this.field.value = "";
    keep(this.#draftKey, null);
    this.#reply = null;
    this.#showContext();
    this.#showState();
    log.goToNewest();
    this.focus();
    const wasMember = this.conversation.room?.isMember;
    const sent = tidings.send(roomId, text, options);
    sent.then(
      () => wasMember || this.desk.look(roomId).then(() => log.refresh()),
      () => {}, // it is shown where it stands, with its problem
    ).catch(() => {});
  }
}
