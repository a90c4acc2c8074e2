/** What is told while the page is not looked at: its title, its icon, the browser's notices. */

import { keep, kept } from "./dom.js";
import { t } from "./texts.js";
import { closeNotices, onOpen, subscribe, unsubscribe } from "./worker.js";

/** How long counts are waited for before what was read is looked for. */
const CLOSE_AFTER_MS = 1_000;
const SWITCH_KEY = "tidings:inbox:notices";
const PREVIEW_CHARACTERS = 140;
const COUNTABLE_TYPES = new Set(["text", "audio", "campaign"]);

export class Notices {
  #shown = new Map();
  #waiting = null;
  #signal = null;
  #closing = null;

  constructor(shell) {
    this.shell = shell;
    this.desk = shell.desk;
    this.icon = document.getElementById("icon");
    this.icons = [this.icon.getAttribute("href"), this.icon.dataset.unread];
  }

  start(signal) {
    this.#signal = signal;
    const { tidings } = this.desk;
    tidings.on("badge", () => this.showTitle());
    tidings.on("rooms", () => this.#clearRead());
    tidings.on("entry", (entry) => this.#notice(entry));
    tidings.on("queue", () => this.#noticeQueue());
    this.#waiting = tidings.queue?.open ?? null;
    this.showTitle();
    onOpen((roomId) => roomId && this.shell.open(roomId), signal);
    tidings.on("badge", () => this.#closeReadSoon());
    document.addEventListener("visibilitychange", () => this.#closeReadSoon(), { signal });
    if (this.isOn) subscribe(tidings);
  }

  stop() {
    clearTimeout(this.#closing);
    for (const notice of this.#shown.values()) notice.close();
    this.#shown.clear();
    this.icon.setAttribute("href", this.icons[0]);
    navigator.clearAppBadge?.().catch(() => {});
  }

  /** Whether the browser lets them be switched on and off. */
  get isSwitchable() {
    return "Notification" in window && Notification.permission !== "denied";
  }

  get isOn() {
    return "Notification" in window && Notification.permission === "granted" && kept(SWITCH_KEY) !== "off";
  }

  /** Tell of messages, also while the page is closed, as far as the browser does. */
  async turnOn() {
    if ((await Notification.requestPermission()) !== "granted") return;
    keep(SWITCH_KEY, null);
    await subscribe(this.desk.tidings);
  }

  async turnOff() {
    keep(SWITCH_KEY, "off");
    await unsubscribe(this.desk.tidings);
  }

  /** The service's count, in the title, on the icon and on the installed application. */
  showTitle() {
    if (this.#signal?.aborted) return;
    const { unread } = this.desk.tidings.badge;
    const { conversation } = this.shell;
    const name = conversation?.room ? `${this.desk.nameOf(conversation.room)} – Tidings` : "Tidings";
    document.title = unread ? `(${unread > 999 ? "999+" : unread}) ${name}` : name;
    const href = this.icons[unread ? 1 : 0];
    if (this.icon.getAttribute("href") !== href) this.icon.setAttribute("href", href);
    if (unread) navigator.setAppBadge?.(unread).catch(() => {});
    else navigator.clearAppBadge?.().catch(() => {});
  }

  get #mayShow() {
    const isLookedAt = document.visibilityState === "visible" && document.hasFocus();
    return this.isOn && !isLookedAt && this.desk.tidings.connection.isLeader;
  }

  #notice(entry) {
    const room = this.desk.room(entry.room_id);
    const isMine = entry.sender_id === this.desk.me.id;
    const isForMe = room && (!room.muted || entry.mentions?.includes(this.desk.me.id));
    if (!this.#mayShow || isMine || !isForMe || !COUNTABLE_TYPES.has(entry.type)) return;
    const who = this.desk.name(entry.sender_id);
    const where = room.kind === "group" ? `${who} · ${this.desk.nameOf(room)}` : who;
    this.#show(entry.room_id, where, entry.text || entry.blobs?.[0]?.name || "", () => this.shell.open(entry.room_id));
  }

  #noticeQueue() {
    const waiting = this.desk.tidings.queue?.open ?? null;
    const isMore = this.#waiting !== null && waiting > this.#waiting;
    this.#waiting = waiting;
    if (isMore && this.#mayShow) this.#show("queue", t("folder.queue"), String(waiting), () => this.shell.go("queue"));
  }

  #show(key, title, body, act) {
    this.#shown.get(key)?.close();
    const notice = new Notification(title, { body: body.slice(0, PREVIEW_CHARACTERS), tag: `tidings:${key}`, icon: this.icons[0] });
    notice.onclick = () => {
      window.focus();
      notice.close();
      act();
    };
    this.#shown.set(key, notice);
  }

  /** The same for what was pushed while the page was closed. */
  #closeReadSoon() {
    const { tidings } = this.desk;
    this.#closing ??= setTimeout(() => {
      this.#closing = null;
      if (tidings.isSettled) closeNotices((roomId) => !roomId || !tidings.room(roomId)?.unread);
    }, CLOSE_AFTER_MS);
  }

  /** What was read, here or on another device, needs no notice. */
  #clearRead() {
    for (const [roomId, notice] of this.#shown) {
      if (roomId === "queue" || this.desk.tidings.room(roomId)?.unread) continue;
      notice.close();
      this.#shown.delete(roomId);
    }
  }
}
