/** The page: lists on the left, the conversation, who it is about; keys and addresses. */

import { Conversation } from "./conversation.js";
import { FOLDERS } from "./desk.js";
import { el, isWriting, keep, kept } from "./dom.js";
import { Lists } from "./lists.js";
import { Notices } from "./notices.js";
import { Palette } from "./palette.js";
import { Profile } from "./profile.js";
import { PALETTE_KEY, t } from "./texts.js";

const DETAILS_KEY = "tidings:inbox:details";
const FIRST_FOLDER = "queue";
const TOAST_MS = 6_000;

export class Shell {
  #ending = new AbortController();
  #toastTimer = null;
  /** Whether the next conversation is opened to read on, with the keys that act on it at hand. */
  #isStepping = false;
  conversation = null;

  constructor(desk) {
    this.desk = desk;
    this.lists = new Lists(this);
    this.profile = new Profile(this);
    this.palette = new Palette(this);
    this.notices = new Notices(this);
    this.toast = el("div", { class: "toast", role: "alert", hidden: true });
    this.connection = el("div", { class: "connection", role: "status", hidden: true });
    this.middle = el("main", { class: "middle", id: "middle", tabindex: "-1" });
    this.element = el(
      "div",
      { class: "shell" },
      el("a", { class: "skip", href: "#middle", onclick: (event) => this.#skip(event) }, t("skip")),
      this.lists.element,
      this.middle,
      this.profile.element,
      this.palette.element,
      this.connection,
      this.toast,
    );
    this.element.dataset.details = kept(DETAILS_KEY) ?? "shown";
    this.element.dataset.pane = "list";
  }

  start() {
    const { signal } = this.#ending;
    const { tidings } = this.desk;
    addEventListener("hashchange", () => this.#follow(), { signal });
    addEventListener("keydown", (event) => this.#key(event), { signal });
    tidings.on("connection", () => this.#showConnection());
    for (const name of ["online", "offline"]) addEventListener(name, () => this.#showConnection(), { signal });
    this.#showConnection();
    this.desk.on(() => this.lists.draw());
    this.desk.on(() => this.profile.draw());
    this.desk.on(() => this.conversation?.draw());
    this.notices.start(signal);
    this.#follow();
  }

  close() {
    this.#ending.abort();
    this.conversation?.close();
    this.notices.stop();
    this.desk.close();
  }

  /** Go to a list, and to a room in it. */
  go(folder, roomId = null) {
    const address = `#/${folder}${roomId ? `/${encodeURIComponent(roomId)}` : ""}`;
    if (location.hash === address) this.#follow();
    else location.hash = address;
  }

  /** Open a room in the list where it is found. */
  open(roomId) {
    const room = this.desk.room(roomId);
    const isIn = (name) => room && FOLDERS[name].has(room, this.desk.me.id);
    const { folder } = this.desk;
    this.go(isIn(folder) ? folder : (Object.keys(FOLDERS).find(isIn) ?? folder), roomId);
  }

  get roomId() {
    return this.conversation?.roomId ?? null;
  }

  /** Do something that may fail, and say so where it does. */
  async attempt(work) {
    try {
      return await work();
    } catch (error) {
      if (!error.code && error.name !== "Unreachable") throw error;
      this.say(t("failed", { why: error.message }));
      return undefined;
    }
  }

  say(text) {
    clearTimeout(this.#toastTimer);
    this.toast.textContent = text;
    this.toast.hidden = false;
    this.#toastTimer = setTimeout(() => (this.toast.hidden = true), TOAST_MS);
  }

  toggleDetails() {
    if (matchMedia("(max-width: 68rem)").matches) {
      const isShown = this.element.dataset.pane === "details";
      this.element.dataset.pane = isShown ? "conversation" : "details";
      if (!isShown) this.profile.element.focus();
    } else {
      const next = this.element.dataset.details === "shown" ? "hidden" : "shown";
      this.element.dataset.details = next;
      keep(DETAILS_KEY, next);
    }
  }

  /** The conversation before or after the chosen one in the list. */
  step(by) {
    const rooms = this.desk.roomsIn(this.desk.folder);
    const place = rooms.findIndex(({ id }) => id === this.roomId);
    const next = rooms[Math.max(0, Math.min(rooms.length - 1, place + by))];
    if (!next || next.id === this.roomId) return;
    this.#isStepping = true;
    this.go(this.desk.folder, next.id);
  }

  #follow() {
    const [, folder, roomId] = location.hash.split("/");
    if (folder === "to" && roomId) return this.open(decodeURIComponent(roomId));
    const name = folder in FOLDERS ? folder : FIRST_FOLDER;
    if (name !== this.desk.folder || !this.desk.list(name).isLoaded) {
      this.desk.folder = name;
      this.desk.load(name);
    }
    this.#show(roomId ? decodeURIComponent(roomId) : null);
    this.lists.draw();
  }

  #show(roomId) {
    this.element.dataset.pane = roomId ? "conversation" : "list";
    if (roomId === this.roomId && (roomId || this.middle.hasChildNodes())) return;
    this.conversation?.close();
    this.conversation = roomId ? new Conversation(this, roomId) : null;
    this.middle.replaceChildren(this.conversation?.element ?? this.#nothing());
    this.conversation?.start({ isWriting: !this.#isStepping });
    this.#isStepping = false;
    this.profile.draw();
    this.notices.showTitle();
  }

  #nothing() {
    const text = t("none.more", { key: PALETTE_KEY });
    return el("div", { class: "empty whole" }, el("h2", {}, t("none.title")), el("p", {}, text));
  }

  #skip(event) {
    event.preventDefault();
    if (this.conversation) this.conversation.focus();
    else this.middle.focus();
  }

  #showConnection() {
    const told = this.desk.tidings.connection.status;
    const status = told === "live" && !navigator.onLine ? "waiting" : told;
    this.connection.hidden = status === "live" || status === "ended";
    const text = status === "waiting" ? "connection.waiting" : "connection.connecting";
    if (!this.connection.hidden) this.connection.textContent = t(text);
    this.connection.dataset.status = status;
  }

  #key(event) {
    const { key } = event;
    if ((event.ctrlKey || event.metaKey) && !event.altKey && key.toLowerCase() === "k") {
      event.preventDefault();
      return this.palette.open();
    }
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]") || isWriting(event.target)) return;
    const acts = {
      j: () => this.step(1),
      k: () => this.step(-1),
      "?": () => this.palette.showKeys(),
      r: () => this.conversation?.composer.focus(),
      a: () => this.conversation?.actions.take(),
      s: () => this.conversation?.actions.askSnooze(),
      e: () => this.conversation?.actions.toggleClosed(),
      n: () => this.conversation?.actions.notes(),
      "/": () => this.conversation?.find.open(),
      i: () => this.toggleDetails(),
      Escape: () => this.roomId && this.element.dataset.pane !== "list" && this.#escape(),
    };
    if (!(key in acts)) return;
    event.preventDefault();
    acts[key]();
  }

  #escape() {
    if (this.element.dataset.pane === "details") this.element.dataset.pane = "conversation";
    else if (matchMedia("(max-width: 46rem)").matches) this.go(this.desk.folder);
  }
}
