/** The left of the page: lists by kind, and the rooms of the chosen one. */

import { arrange, el, set } from "./dom.js";
import { face } from "./faces.js";
import { icon } from "./icons.js";
import { PALETTE_KEY, shortTime, t, wholeTime } from "./texts.js";

const GROUPS = {
  "folders.customers": ["queue", "mine", "open", "snoozed", "closed"],
  "folders.team": ["rooms", "direct"],
};

export class Lists {
  #links = new Map();
  #rows = new Map();

  constructor(shell) {
    this.shell = shell;
    this.total = el("span", { class: "badge", role: "img", hidden: true });
    this.heading = el("h2", {});
    this.rows = el("ul", { class: "rows", role: "list" });
    this.foot = el("div", { class: "foot" });
    const groups = Object.entries(GROUPS).map(([title, names]) =>
      el("div", { class: "group" }, el("h2", {}, t(title)), el("ul", { role: "list" }, names.map((name) => this.#link(name)))),
    );
    this.account = el("button", {
      class: "account", type: "button", title: t("account"),
      onclick: () => shell.palette.open(),
    });
    this.element = el(
      "div",
      { class: "lists" },
      el(
        "nav",
        { class: "folders", "aria-label": t("folders") },
        el("div", { class: "brand" }, el("h1", {}, "Tidings"), this.total),
        el(
          "button",
          { class: "finder", type: "button", title: t("palette"), onclick: () => shell.palette.open() },
          icon("search"), el("span", {}, t("palette")), el("kbd", {}, PALETTE_KEY),
        ),
        groups,
        this.account,
      ),
      el("section", { class: "list", "aria-labelledby": "list-title" }, this.heading, this.rows, this.foot),
    );
    this.heading.id = "list-title";
  }

  #link(name) {
    const count = el("span", { class: "count", hidden: true });
    const title = t(`folder.${name}`);
    const link = el("a", { href: `#/${name}`, title }, icon(name), el("span", { class: "name" }, title), count);
    this.#links.set(name, { link, count });
    return el("li", {}, link);
  }

  draw() {
    const { desk } = this.shell;
    for (const [name, { link, count }] of this.#links) {
      set(link, "aria-current", name === desk.folder ? "page" : null);
      const waiting = name === "queue" ? desk.tidings.queue?.open : 0;
      const isDot = !waiting && name !== "queue" && name !== "open" && desk.hasUnread(name);
      count.hidden = !waiting && !isDot;
      count.className = isDot ? "count dot" : "count";
      count.textContent = waiting ? String(waiting) + (desk.tidings.queue.is_capped ? "+" : "") : "";
    }
    const { unread } = desk.tidings.badge;
    this.total.hidden = !unread;
    this.total.textContent = unread > 999 ? "999+" : String(unread);
    set(this.total, "aria-label", t("unread", { count: unread }));
    this.#drawAccount();
    this.heading.textContent = t(`folder.${desk.folder}`);
    this.#drawRows(desk);
  }

  #drawAccount() {
    const { me } = this.shell.desk;
    if (this.account.dataset.name === me.name) return;
    this.account.dataset.name = me.name;
    this.account.replaceChildren(face(me.id, me.name, { size: "small" }), el("span", { class: "name" }, me.name), icon("more"));
  }

  #drawRows(desk) {
    const { folder } = desk;
    const list = desk.list(folder);
    const rooms = desk.roomsIn(folder);
    arrange(this.rows, rooms.map((room) => this.#row(room)));
    const isMore = folder === "direct" ? desk.tidings.hasMoreRooms && list.isLoaded : Boolean(list.next);
    const state = list.failure ? "failed" : isMore ? "more" : rooms.length ? "" : list.isLoaded ? "empty" : "loading";
    const key = `${folder} ${state}`;
    if (this.foot.dataset.key === key) return;
    this.foot.dataset.key = key;
    const parts = {
      failed: () => [el("p", {}, t("list.failed")), this.#button("again", () => desk.load(folder))],
      more: () => [this.#button("list.more", () => desk.load(folder, { isMore: true }))],
      loading: () => [el("p", { class: "soft" }, t("list.loading"))],
      empty: () => [
        el("div", { class: "empty" }, icon(folder), el("h3", {}, t(`empty.${folder}`)), el("p", {}, t(`empty.${folder}.more`, { key: PALETTE_KEY }))),
      ],
    };
    this.foot.replaceChildren(...(parts[state]?.() ?? []));
  }

  #button(key, act) {
    return el("button", { type: "button", onclick: act }, t(key));
  }

  #row(room) {
    const { desk, roomId } = this.shell;
    const name = desk.nameOf(room);
    const faceId = desk.faceOf(room);
    const isOnline = Boolean(faceId) && desk.tidings.isOnline(faceId);
    const assignee = room.kind === "support" && room.assignee_id ? desk.name(room.assignee_id) : null;
    const isChosen = room.id === roomId || room.id === desk.room(roomId)?.about;
    const stamp = JSON.stringify([
      desk.folder, name, faceId, isOnline, assignee, isChosen, room.title, room.preview, room.updated_at,
      room.unread, room.mentions, room.muted, room.status,
    ]);
    let kept = this.#rows.get(room.id);
    if (!kept) this.#rows.set(room.id, (kept = { element: el("li"), stamp: "" }));
    if (kept.stamp === stamp) return kept.element;
    kept.stamp = stamp;
    const hadFocus = kept.element.contains(document.activeElement);
    const isSupport = room.kind === "support";
    const second = isSupport ? room.title : null;
    const sign = room.kind === "group" ? (room.about ? "notes" : "rooms") : null;
    const link = el(
      "a",
      {
        href: `#/${desk.folder}/${encodeURIComponent(room.id)}`,
        class: room.unread ? "row unread" : "row",
        "aria-current": isChosen ? "true" : null,
      },
      face(faceId ?? room.id, name, { isOnline, sign }),
      el(
        "span",
        { class: "what" },
        el("span", { class: "name" }, name),
        second && el("span", { class: "subject" }, second),
        room.preview !== null && room.preview !== second && el("span", { class: "preview" }, room.preview || "—"),
        isSupport && desk.folder !== "mine" && desk.folder !== "queue" &&
          el("span", { class: "holder" }, assignee ? t("assigned", { name: assignee }) : t("unassigned")),
      ),
      el(
        "span",
        { class: "side" },
        el("time", { datetime: room.updated_at, title: wholeTime(room.updated_at) }, shortTime(room.updated_at)),
        room.mentions > 0 && el("span", { class: "badge at", role: "img", "aria-label": t("mentions", { count: room.mentions }) }, "@"),
        room.unread > 0 &&
          el(
            "span",
            { class: room.muted ? "badge muted" : "badge", role: "img", "aria-label": t("unread", { count: room.unread }) },
            room.unread > 99 ? "99+" : String(room.unread),
          ),
      ),
    );
    kept.element.replaceChildren(link);
    if (hadFocus) link.focus();
    return kept.element;
  }
}
