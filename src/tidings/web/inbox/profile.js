/** The right of the page: who the conversation is with, and how it stands. */

import { el } from "./dom.js";
import { face } from "./faces.js";
import { icon } from "./icons.js";
import { dateText, t, wholeTime } from "./texts.js";

const ATTRIBUTES_MAX = 100;
const MEMBERS_MAX = 200;

export class Profile {
  #stamp = "";
  #members = new Map();

  constructor(shell) {
    this.shell = shell;
    this.element = el("aside", { class: "details", "aria-label": t("details"), tabindex: "-1" });
  }

  draw() {
    const { desk, roomId } = this.shell;
    const room = roomId && desk.room(roomId);
    if (!room) {
      this.#stamp = "";
      return this.element.replaceChildren();
    }
    const personId = desk.faceOf(room);
    const person = personId ? desk.user(personId) : null;
    const isOnline = Boolean(personId) && desk.tidings.isOnline(personId);
    const assignee = room.assignee_id ? desk.name(room.assignee_id) : null;
    const members = room.kind === "group" ? this.#membersOf(room) : [];
    const online = members.map(({ user_id }) => desk.tidings.isOnline(user_id));
    const stamp = JSON.stringify([room.id, person, isOnline, assignee, room.title, room.status, room.snoozed_until, members, online, desk.nameOf(room)]);
    if (stamp === this.#stamp) return undefined;
    this.#stamp = stamp;
    this.element.replaceChildren(
      this.#closer(),
      ...(personId ? this.#person(desk, personId, person, isOnline, room) : this.#group(desk, room, members)),
      ...(room.kind === "support" ? this.#conversation(room, assignee) : []),
    );
    return undefined;
  }

  #closer() {
    const act = () => this.shell.toggleDetails();
    return el("button", { type: "button", class: "tool closer", title: t("details.hide"), "aria-label": t("details.hide"), onclick: act }, icon("close"));
  }

  #person(desk, personId, person, isOnline, room) {
    const name = desk.nameOf(room);
    const attributes = Object.entries(person?.attributes ?? {}).slice(0, ATTRIBUTES_MAX);
    const facts = [
      person?.email && [t("profile.email"), el("a", { href: `mailto:${encodeURIComponent(person.email).replace("%40", "@")}` }, breakable(person.email))],
      person?.created_at && room.kind === "support" && [t("profile.since"), dateText(person.created_at)],
    ].filter(Boolean);
    return [
      el(
        "div",
        { class: "portrait" },
        face(personId, name, { size: "large", isOnline }),
        el("h2", {}, name),
        el("p", { class: isOnline ? "state on" : "state" }, t(isOnline ? "online" : "offline")),
      ),
      section(t("profile"), facts.length ? list(facts) : person && el("p", { class: "soft" }, t("profile.none"))),
      attributes.length > 0 && section(t("profile.attributes"), list(attributes.map(([key, value]) => [key, told(value)]))),
    ].filter(Boolean);
  }

  #conversation(room, assignee) {
    const { actions } = this.shell.conversation;
    const facts = [
      room.title && [t("profile.title"), room.title],
      [t("profile.status"), el("span", { class: `status ${room.status}` }, t(`state.${room.status}`))],
      room.status === "snoozed" && room.snoozed_until && [t("profile.until"), wholeTime(room.snoozed_until)],
      [
        t("profile.assignee"),
        el("button", { type: "button", class: "plain", onclick: () => actions.askAssignee() }, assignee ?? t("unassigned"), icon("edit")),
      ],
    ].filter(Boolean);
    return [section(t("profile.conversation"), list(facts))];
  }

  #group(desk, room, members) {
    return [
      el(
        "div",
        { class: "portrait" },
        face(room.id, desk.nameOf(room), { size: "large", sign: room.about ? "notes" : "rooms" }),
        el("h2", {}, desk.nameOf(room)),
        el("p", { class: "state" }, room.about ? t("notes.about") : t("members", { count: room.member_count ?? members.length })),
      ),
      section(
        t("profile.members"),
        el(
          "ul",
          { class: "people", role: "list" },
          members.map(({ user_id: id, name }) =>
            el("li", {}, face(id, name, { size: "small", isOnline: desk.tidings.isOnline(id) }), el("span", { class: "name" }, name)),
          ),
        ),
      ),
    ];
  }

  #membersOf(room) {
    const kept = this.#members.get(room.id);
    if (kept && kept.count === room.member_count) return kept.items;
    const items = kept?.items ?? [];
    this.#members.set(room.id, { count: room.member_count, items });
    this.shell.desk.tidings.members(room.id, { limit: MEMBERS_MAX }).then(
      (page) => {
        this.#members.set(room.id, { count: room.member_count, items: page.items });
        this.shell.desk.tell();
      },
      () => {}, // asked for again when the room is opened again
    );
    return items;
  }
}

const told = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
const section = (title, ...parts) => el("section", {}, el("h3", {}, title), ...parts);
const list = (facts) => el("dl", {}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, value))));

/** An address that breaks before its @ where it has to. */
function breakable(email) {
  const at = email.lastIndexOf("@");
  return [email.slice(0, at), el("wbr"), email.slice(at)];
}
