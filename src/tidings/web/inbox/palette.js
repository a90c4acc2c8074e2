/** Everything by name: rooms, people, lists and commands (an ARIA combobox in a dialog). */

import { forgetDrafts } from "./composer.js";
import { FOLDERS } from "./desk.js";
import { el, keep, set } from "./dom.js";
import { face } from "./faces.js";
import { icon } from "./icons.js";
import { chooseLanguage, language, LANGUAGES, PALETTE_KEY, t } from "./texts.js";

const SHOWN_MAX = 40;
const KEYS = [
  [PALETTE_KEY, "palette"], ["j", "next"], ["k", "previous"], ["r", "write"], ["a", "take"], ["s", "snooze"],
  ["e", "close"], ["n", "notes"], ["/", "find"], ["i", "details"], ["?", "help"],
];
const THEMES = { light: "palette.theme.light", dark: "palette.theme.dark", system: "palette.theme.system" };

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLocaleLowerCase();

export class Palette {
  #items = [];
  #shown = [];
  #at = 0;

  constructor(shell) {
    this.shell = shell;
    this.field = el("input", {
      type: "text", role: "combobox", "aria-expanded": "true", "aria-controls": "palette-list", "aria-autocomplete": "list",
      autocomplete: "off", spellcheck: "false", placeholder: t("palette.hint"),
    });
    this.list = el("ul", { id: "palette-list", role: "listbox", "aria-label": t("palette") });
    this.none = el("p", { class: "soft none", role: "status" });
    this.title = el("h2", { id: "palette-title" });
    this.keys = el("dl", { class: "keys", hidden: true });
    this.element = el(
      "dialog",
      { class: "palette", "aria-labelledby": "palette-title" },
      this.title, this.field, this.list, this.none, this.keys,
    );
    this.field.addEventListener("input", () => this.#look());
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("click", (event) => event.target === this.element && this.element.close());
  }

  /** Offer everything. */
  async open() {
    this.#show(t("palette"), this.#everything([]));
    const team = await this.shell.attempt(() => this.shell.desk.team());
    if (!team || !this.element.open || this.title.textContent !== t("palette")) return;
    this.#items = this.#everything(team);
    this.#look();
  }

  /** Offer some things to choose from: {name, act, sign or face}. */
  choose(title, items) {
    this.#show(title, items);
  }

  showKeys() {
    this.#show(t("palette.keys"), []);
    this.field.hidden = this.list.hidden = this.none.hidden = true;
    this.keys.hidden = false;
    this.keys.replaceChildren(
      ...KEYS.map(([key, name]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, t(`keys.${name}`)))),
    );
  }

  #show(title, items) {
    this.title.textContent = title;
    this.field.setAttribute("aria-label", title);
    this.field.hidden = this.list.hidden = this.none.hidden = false;
    this.keys.hidden = true;
    this.field.value = "";
    this.#items = items;
    this.#look();
    if (!this.element.open) this.element.showModal();
    this.field.focus();
  }

  #everything(team) {
    const { shell } = this;
    const { desk } = shell;
    const { conversation } = shell;
    const { room } = conversation ?? {};
    const command = (key, sign, act) => ({ name: t(key), kind: t("palette.command"), sign, act });
    const acts = conversation?.actions;
    const isSupport = room?.kind === "support";
    const rooms = desk.tidings.rooms.map(({ room_id }) => desk.room(room_id));
    const others = desk.roomsIn("open").filter(({ isMember }) => !isMember);
    return [
      ...(isSupport
        ? [
            command(room.assignee_id === desk.me.id ? "keys.take" : "take", "mine", () => acts.take()),
            command("assign", "mine", () => acts.askAssignee()),
            command("snooze", "snoozed", () => acts.askSnooze()),
            command(room.status === "open" ? "close" : "reopen", "closed", () => acts.toggleClosed()),
            command("notes", "notes", () => acts.notes()),
          ]
        : []),
      ...(room?.isMember ? this.#own(room, command) : []),
      ...[...rooms, ...others].filter(Boolean).map((each) => ({
        name: desk.nameOf(each),
        more: each.kind === "group" ? "" : (each.title ?? ""),
        kind: t("palette.conversation"),
        face: each.kind === "group" ? null : { id: desk.faceOf(each) ?? each.id, name: desk.nameOf(each) },
        sign: each.about ? "notes" : "rooms",
        act: () => shell.open(each.id),
      })),
      ...team.map((person) => ({
        name: t("palette.write", { name: person.name }),
        kind: t("palette.person"),
        face: person,
        act: () => this.#write(person),
      })),
      ...Object.keys(FOLDERS).map((name) => ({ name: t(`folder.${name}`), kind: t("palette.list"), sign: name, act: () => shell.go(name) })),
      ...(shell.notices.isSwitchable ? [this.#notices(command)] : []),
      ...Object.entries(THEMES).map(([name, key]) => command(key, "details", () => chooseTheme(name))),
      ...Object.entries(LANGUAGES)
        .filter(([name]) => name !== language)
        .map(([name, title]) => ({ name: title, kind: t("palette.command"), sign: "edit", act: () => chooseLanguage(name) })),
      command("palette.keys", "more", () => this.showKeys()),
      command("palette.signout", "back", () => {
        forgetDrafts();
        return desk.tidings.signOut();
      }),
    ];
  }

  /** What one may do with one's own row of a room. */
  #own({ id, kind, muted, isHidden }, command) {
    const { shell } = this;
    const { tidings } = shell.desk;
    const attempt = (work) => () => shell.attempt(work);
    return [
      command(muted ? "palette.unmute" : "palette.mute", "bell", attempt(() => tidings.mute(id, !muted))),
      kind !== "support" && !isHidden && command("palette.hide", "close", attempt(() => tidings.hide(id, true))),
    ].filter(Boolean);
  }

  #notices(command) {
    const { shell } = this;
    if (shell.notices.isOn) return command("palette.notify.off", "bell", () => shell.attempt(() => shell.notices.turnOff()));
    return command("palette.notify", "bell", () => shell.notices.turnOn());
  }

  #write(person) {
    return this.shell.attempt(async () => {
      const room = await this.shell.desk.tidings.createRoom({ kind: "direct", member_ids: [person.id] });
      await this.shell.desk.look(room.id);
      this.shell.go("direct", room.id);
    });
  }

  #look() {
    const words = plain(this.field.value).split(/\s+/).filter(Boolean);
    const fits = ({ name, more = "", kind = "" }) => {
      const text = plain(`${name} ${more} ${kind}`);
      return words.every((word) => text.includes(word));
    };
    this.#shown = this.#items.filter(fits).slice(0, SHOWN_MAX);
    this.#at = 0;
    this.none.textContent = this.#shown.length ? "" : t("palette.none");
    this.list.replaceChildren(
      ...this.#shown.map((item, n) =>
        el(
          "li",
          { role: "option", id: `choice-${n}`, onclick: () => this.#take(item), onpointermove: () => this.#choose(n) },
          item.face ? face(item.face.id, item.face.name, { size: "small" }) : icon(item.sign),
          el("span", { class: "name" }, item.name),
          item.more && el("span", { class: "more" }, item.more),
          item.kind && el("span", { class: "kind" }, item.kind),
        ),
      ),
    );
    this.#choose(0);
  }

  #choose(at) {
    this.#at = at;
    [...this.list.children].forEach((element, n) => set(element, "aria-selected", String(n === at)));
    set(this.field, "aria-activedescendant", this.#shown.length ? `choice-${at}` : null);
  }

  #key(event) {
    if (event.isComposing || !this.#shown.length || this.list.hidden) return;
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      this.#choose((this.#at + steps[event.key] + this.#shown.length) % this.#shown.length);
      this.list.children[this.#at].scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter") {
      this.#take(this.#shown[this.#at]);
    } else {
      return;
    }
    event.preventDefault();
  }

  #take(item) {
    this.element.close();
    item.act();
  }
}

function chooseTheme(name) {
  keep("tidings:inbox:theme", name === "system" ? null : name);
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}
