/**
 * A room's log on the page: the window of the client library, drawn with as few changes as can be.
 *
 * At most as many entries as a window holds have elements. What is loaded before or after leaves
 * what is being read where it is.
 */

import { isMark } from "../client/client.js";
import { arrange, el } from "./dom.js";
import { entryElement, outgoingElement } from "./entries.js";
import { icon } from "./icons.js";
import { markOf } from "./marks.js";
import { dayName, t } from "./texts.js";

/** A page is loaded when its place is so near, in heights of what is shown. */
const NEAR = 1.5;
/** So far from the end still counts as being there. */
const END_PX = 40;
/** Messages of one person in a row, so close together, stand under one name. */
const RUN_MS = 5 * 60_000;
/** With more unread than this the log opens at the first of them, not at the end. */
const UNREAD_IN_VIEW = 30;
/** Nobody reads more than so many one after the other: the log opens at its end. */
const UNREAD_CAUGHT_UP_MAX = 1_000;
const FLASH_MS = 1_600;
const COUNTABLE_TYPES = new Set(["text", "audio", "campaign"]);

export class Log {
  #elements = new Map();
  #originals = new Map();
  #endings = [];
  #isPinned = true;
  #isPlaced = false;
  #isDrawing = false;
  #announced = Infinity;
  #isMet = false;
  #readAt = 0;
  #hadUnread = false;
  #isPlacedAtMark = true;
  #jumpTo = null;

  constructor(conversation) {
    this.conversation = conversation;
    this.desk = conversation.desk;
    this.list = el("ol", { class: "entries", role: "list" });
    this.state = el("div", { class: "log-state" });
    this.scroller = el(
      "div",
      { class: "scroller", tabindex: "0", role: "region", "aria-label": t("log") },
      this.state, this.list,
    );
    this.toNewest = el(
      "button",
      { class: "to-newest", type: "button", hidden: true, onclick: () => this.goToNewest() },
      icon("down"), el("span", {}, t("log.newest")),
    );
    this.speech = el("div", { class: "unseen", "aria-live": "polite" });
    this.element = el("div", { class: "log" }, this.scroller, this.toNewest, this.speech);
    this.#open(this.#meet());
  }

  /**
   * Where reading was left is known once the room is, which may be after its log was opened.
   * Returns the sequence to open at if that is far from the end, or null.
   */
  #meet() {
    const { room } = this.conversation;
    if (this.#isMet || !room?.isMember) return null;
    this.#isMet = true;
    this.#readAt = room.read_seq;
    this.#hadUnread = room.unread > 0;
    const isFar = room.unread > UNREAD_IN_VIEW && room.unread <= UNREAD_CAUGHT_UP_MAX;
    return isFar ? Math.max(1, room.read_seq) : null;
  }

  #open(around) {
    this.view = this.desk.tidings.view(this.conversation.roomId, { around });
    this.#isPinned = around === null;
    this.#isPlaced = false;
    this.#endings.push(this.view.subscribe(() => this.draw()));
  }

  start() {
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.#walk(event));
    const sizes = new ResizeObserver(() => this.#isPinned && this.#toEnd());
    sizes.observe(this.scroller);
    sizes.observe(this.list);
    this.#endings.push(() => sizes.disconnect());
    const look = () => this.#markRead();
    for (const [target, name] of [[document, "visibilitychange"], [window, "focus"]]) {
      target.addEventListener(name, look);
      this.#endings.push(() => target.removeEventListener(name, look));
    }
  }

  close() {
    for (const end of this.#endings) end();
    this.view.close();
  }

  /** Show the newest entries. */
  goToNewest() {
    this.#isPlacedAtMark = false;
    if (this.view.hasAfter) this.#reopen(null);
    this.#isPinned = true;
    this.#toEnd();
    this.scroller.focus();
  }

  /** Look for what is new in a room that nobody tells of live. */
  refresh() {
    if (this.view.entries.length) this.view.refresh();
    else this.view.open();
  }

  /** Show one entry, wherever it is. */
  goTo(seq) {
    if (this.#find(seq)) return this.#flash(seq);
    this.#jumpTo = seq;
    this.#reopen(seq);
  }

  #reopen(around) {
    this.view.close();
    this.#open(around);
  }

  #find(seq) {
    return this.list.querySelector(`[data-seq="${Number(seq)}"]`);
  }

  #flash(seq) {
    const element = this.#find(seq);
    if (!element) return;
    this.#isPinned = false;
    element.scrollIntoView({ block: "center" });
    element.classList.add("flash");
    element.focus({ preventScroll: true });
    setTimeout(() => element.classList.remove("flash"), FLASH_MS);
  }

  draw() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  #draw() {
    const around = this.#meet();
    if (around !== null) return this.#reopen(around);
    const anchor = this.#isPinned ? null : this.#anchor();
    const wanted = this.#wanted();
    const keys = new Set(wanted.map(({ key }) => key));
    const nodes = wanted.map(({ key, stamp, make }) => {
      const kept = this.#elements.get(key);
      if (kept?.stamp === stamp) return kept.element;
      const element = make();
      if (kept?.element.contains(document.activeElement)) element.dataset.refocus = "";
      this.#elements.set(key, { stamp, element });
      return element;
    });
    for (const key of this.#elements.keys()) if (!keys.has(key)) this.#elements.delete(key);
    arrange(this.list, nodes);
    const refocused = this.list.querySelector("[data-refocus]");
    refocused?.removeAttribute("data-refocus");
    refocused?.focus({ preventScroll: true });
    this.#drawState(wanted.length > 0);
    this.#place(anchor);
    this.#showEnd();
    this.#announce();
    this.#markRead();
    this.#loadNear();
    this.conversation.find.drawn();
    return undefined;
  }

  /** What is to be shown, in order: {key, stamp, make}. */
  #wanted() {
    const { entries, outgoing } = this.view;
    const wanted = [];
    const me = this.desk.me.id;
    let day = "";
    let before = null;
    const [first] = entries;
    const isMarkHere = first && (first.seq <= this.#readAt || !this.view.hasBefore);
    let isMarked = !this.#hadUnread || !isMarkHere;
    const marked = this.#marked();
    for (const entry of entries) {
      if (isMark(entry)) continue;
      const date = new Date(entry.created_at).toDateString();
      if (date !== day) {
        day = date;
        before = null;
        wanted.push(dayMark(date, entry.created_at));
      }
      if (!isMarked && entry.seq > this.#readAt && entry.sender_id !== me && COUNTABLE_TYPES.has(entry.type)) {
        isMarked = true;
        before = null;
        wanted.push({ key: "unread", stamp: "", make: unreadMark });
      }
      const isRun = isSameRun(before, entry);
      wanted.push(this.#entry(entry, isRun, entry === marked));
      before = entry;
    }
    const held = new Set(entries.map(({ client_id }) => client_id));
    for (const record of this.view.hasAfter ? [] : outgoing) {
      if (held.has(record.key)) continue;
      wanted.push({
        key: `c:${record.key}`,
        stamp: `${record.problem?.code} ${Boolean(record.entry)}`,
        make: () => outgoingElement(this.conversation, record),
      });
    }
    return wanted;
  }

  /** The last message of the user's, which says whether it was read; not while another is on its way. */
  #marked() {
    const { entries, outgoing, hasAfter } = this.view;
    if (hasAfter || outgoing.some((record) => !record.entry)) return null;
    const me = this.desk.me.id;
    const last = entries.findLast(({ sender_id, type }) => sender_id === me && COUNTABLE_TYPES.has(type));
    return last?.deleted_at ? null : last;
  }

  #entry(entry, isRun, isMarked) {
    const { room } = this.conversation;
    const mark = isMarked && room ? markOf(this.desk, room, entry.seq) : null;
    const original = entry.reply_to ? this.#original(entry.reply_to) : null;
    const reactions = Object.entries(entry.reactions ?? {}).map(([emoji, users]) => [emoji, users.map((id) => this.desk.name(id))]);
    const data = Object.values(entry.data ?? {}).map((value) => (typeof value === "string" ? this.#known(value) : value));
    const stamp = JSON.stringify([
      entry.seq, isRun, entry.edited_at, entry.deleted_at, reactions, this.desk.name(entry.sender_id), data,
      original && [original.text, original.deleted_at, original.isGone, this.desk.name(original.sender_id)],
      entry.mentions?.map((id) => this.desk.name(id)), this.conversation.isOpenToMe, mark?.text,
    ]);
    const isOwn = entry.sender_id === this.desk.me.id;
    return {
      key: isOwn && entry.client_id ? `c:${entry.client_id}` : `e:${entry.seq}`,
      stamp,
      make: () => entryElement(this.conversation, entry, { isRun, original, mark }),
    };
  }

  /** A name, where the text is the id of somebody who is known. */
  #known(id) {
    return this.desk.tidings.nameOf(id) ?? id;
  }

  /** What was replied to; fetched once where it is not in the window. */
  #original(seq) {
    const held = this.view.entries.find((entry) => entry.seq === seq);
    if (held) return held;
    if (!this.#originals.has(seq)) {
      this.#originals.set(seq, null);
      this.#fetch(seq);
    }
    return this.#originals.get(seq);
  }

  async #fetch(seq) {
    const path = `/v1/rooms/${encodeURIComponent(this.conversation.roomId)}/messages`;
    try {
      const { items } = await this.desk.tidings.call("GET", path, { query: { after: seq - 1, limit: 1 } });
      this.#originals.set(seq, items[0]?.seq === seq ? items[0] : { seq, isGone: true });
      this.draw();
    } catch (error) {
      if (!error.code && error.name !== "Unreachable") throw error;
      this.#originals.set(seq, { seq, isGone: true });
    }
  }

  #drawState(hasEntries) {
    const { hasBefore, failure, isLoading } = this.view;
    const name = failure ? "failed" : hasBefore ? "older" : hasEntries ? "beginning" : isLoading ? "older" : "empty";
    if (this.state.dataset.name === name) return;
    this.state.dataset.name = name;
    const again = () => (this.view.entries.length ? this.view.loadBefore() : this.view.open());
    if (name === "failed") {
      this.state.replaceChildren(el("p", {}, t("log.failed")), el("button", { type: "button", onclick: again }, t("again")));
    } else if (name === "empty") {
      this.state.replaceChildren(el("div", { class: "empty" }, icon("open"), el("h3", {}, t("log.empty")), el("p", {}, t("log.empty.more"))));
    } else {
      this.state.replaceChildren(el("p", {}, t(`log.${name}`)));
    }
  }

  /** Arrows go from message to message; what may be done with one is behind it. */
  #walk(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const isHere = event.target === this.scroller || event.target.matches("li");
    if (!by || !isHere || event.altKey || event.ctrlKey || event.metaKey) return;
    const entries = [...this.list.querySelectorAll(".entry")];
    const place = entries.indexOf(event.target);
    const next = place < 0 ? entries.at(-1) : entries[place + by];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  // Where the log is scrolled to

  /** The first element in sight and where it is. */
  #anchor() {
    const top = this.scroller.getBoundingClientRect().top;
    for (const element of this.list.children) {
      const box = element.getBoundingClientRect();
      if (box.bottom > top) return { element, top: box.top };
    }
    return null;
  }

  #place(anchor) {
    if (!this.#isPlaced && this.view.entries.length && !this.view.isLoading) {
      this.#isPlaced = true;
      return this.#placeFirst();
    }
    if (this.#isPinned) return this.#toEnd();
    if (anchor?.element.isConnected) {
      this.scroller.scrollTop += anchor.element.getBoundingClientRect().top - anchor.top;
    }
    return undefined;
  }

  /** Where reading goes on: at what was jumped to, at the unread mark, or at the end. */
  #placeFirst() {
    if (this.#jumpTo !== null) {
      const seq = this.#jumpTo;
      this.#jumpTo = null;
      return this.#flash(seq);
    }
    const mark = this.list.querySelector(".unread-mark");
    this.#toEnd();
    if (mark && this.#isPlacedAtMark && mark.getBoundingClientRect().top < this.scroller.getBoundingClientRect().top) {
      this.#isPinned = false;
      mark.scrollIntoView({ block: "start" });
    } else {
      this.#isPinned = !this.view.hasAfter;
    }
    return undefined;
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  get #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < END_PX;
  }

  #scrolled() {
    this.#isPinned = this.#isAtEnd && !this.view.hasAfter;
    this.#showEnd();
    this.#markRead();
    this.#loadNear();
  }

  #showEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const isFar = scrollHeight - scrollTop - clientHeight > clientHeight / 2;
    this.toNewest.hidden = !(isFar || this.view.hasAfter);
  }

  #loadNear() {
    const { view, scroller } = this;
    if (!this.#isPlaced || view.isLoading || view.failure) return;
    const near = scroller.clientHeight * NEAR;
    if (view.hasBefore && scroller.scrollTop < near) view.loadBefore();
    else if (view.hasAfter && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < near) view.loadAfter();
  }

  // Who reads and hears

  /** What is at the end of the log and looked at is read. */
  #markRead() {
    const { room, roomId } = this.conversation;
    const last = this.view.entries.at(-1);
    const isSeen = document.visibilityState === "visible" && document.hasFocus();
    if (!room?.isMember || !last || !isSeen || this.view.hasAfter || !this.#isAtEnd) return;
    if (last.seq > room.read_seq) this.desk.tidings.read(roomId, last.seq).catch(() => {});
  }

  /** Say new messages of others to who listens instead of looking. */
  #announce() {
    const last = this.view.entries.at(-1);
    if (!last || this.view.isLoading) return;
    const isNews = last.seq > this.#announced && last.sender_id !== this.desk.me.id && last.type === "text";
    if (isNews) this.speech.textContent = `${this.desk.name(last.sender_id)}: ${last.text ?? ""}`;
    this.#announced = last.seq;
  }
}

function isSameRun(before, entry) {
  return (
    before !== null &&
    before.type === "text" &&
    entry.type === "text" &&
    before.sender_id === entry.sender_id &&
    !entry.reply_to &&
    Date.parse(entry.created_at) - Date.parse(before.created_at) < RUN_MS
  );
}

const dayMark = (date, at) => ({
  key: `d:${date}`,
  stamp: dayName(at),
  make: () => el("li", { class: "day" }, el("span", {}, dayName(at))),
});

const unreadMark = () => el("li", { class: "unread-mark" }, el("span", {}, t("log.new")));
