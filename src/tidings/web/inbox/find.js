/** Search in what is loaded of a conversation. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./texts.js";

export class Find {
  #found = [];
  #at = -1;
  #marked = null;

  constructor(conversation) {
    this.conversation = conversation;
    this.field = el("input", { type: "search", "aria-label": t("find"), placeholder: t("find") });
    this.count = el("span", { class: "soft", role: "status" });
    const button = (sign, key, act) =>
      el("button", { type: "button", class: "tool", title: t(key), "aria-label": t(key), onclick: act }, icon(sign));
    this.element = el(
      "div",
      { class: "find", role: "search", hidden: true },
      icon("search"), this.field, this.count,
      button("send", "find.previous", () => this.#step(-1)),
      button("down", "find.next", () => this.#step(1)),
      button("close", "cancel", () => this.close()),
    );
    this.field.addEventListener("input", () => this.#look());
    this.field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") {
        event.preventDefault();
        this.#step(event.shiftKey ? 1 : -1);
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.close();
      }
    });
  }

  open() {
    this.element.hidden = false;
    this.field.focus();
    this.field.select();
  }

  close() {
    this.element.hidden = true;
    this.field.value = "";
    this.#look();
    this.conversation.focus();
  }

  #look() {
    const wanted = this.field.value.trim().toLocaleLowerCase();
    const { entries } = this.conversation.log.view;
    this.#found = wanted
      ? entries.filter(({ text, deleted_at }) => !deleted_at && text?.toLocaleLowerCase().includes(wanted)).map(({ seq }) => seq)
      : [];
    this.#at = this.#found.length;
    this.count.textContent = wanted && !this.#found.length ? t("find.none") : "";
    this.#mark(null);
    if (this.#found.length) this.#step(-1);
  }

  /** From the newest to the oldest and round. */
  #step(by) {
    if (!this.#found.length) return;
    this.#at = (this.#at + by + this.#found.length) % this.#found.length;
    this.count.textContent = t("find.count", { at: this.#at + 1, count: this.#found.length });
    this.#mark(this.#found[this.#at]);
    this.conversation.log.list.querySelector(".found")?.scrollIntoView({ block: "center" });
  }

  #mark(seq) {
    this.#marked = seq;
    this.drawn();
  }

  /** The log was drawn anew: what was found is marked again. */
  drawn() {
    const { list } = this.conversation.log;
    for (const element of list.querySelectorAll(".found")) element.classList.remove("found");
    if (this.#marked !== null) list.querySelector(`[data-seq="${Number(this.#marked)}"]`)?.classList.add("found");
  }
}
