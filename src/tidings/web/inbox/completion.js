/** Names offered while a mention is written (an ARIA listbox that the field owns). */

import { el, set } from "./dom.js";
import { face } from "./faces.js";

const OFFERED_MAX = 6;
const BEGUN = /(?:^|\s)@([\p{L}\p{N}._'-]*(?: [\p{L}\p{N}._'-]*)?)$/u;

export class Completion {
  #offered = [];
  #at = 0;

  /** `people` returns those who may be mentioned, as {id, name}. */
  constructor(field, people) {
    this.field = field;
    this.people = people;
    this.element = el("ul", { class: "completion", role: "listbox", id: "completion", hidden: true, "aria-label": "@" });
    field.addEventListener("input", () => this.#look());
    field.addEventListener("blur", () => setTimeout(() => this.#hide(), 150));
  }

  /** Whether the key was meant for it. */
  key(event) {
    if (!this.#offered.length) return false;
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      this.#at = (this.#at + steps[event.key] + this.#offered.length) % this.#offered.length;
      this.#draw();
    } else if (event.key === "Enter" || event.key === "Tab") {
      this.#take(this.#offered[this.#at]);
    } else if (event.key === "Escape") {
      this.#hide();
    } else {
      return false;
    }
    event.preventDefault();
    return true;
  }

  get #begun() {
    return BEGUN.exec(this.field.value.slice(0, this.field.selectionStart))?.[1] ?? null;
  }

  #look() {
    const begun = this.#begun?.toLocaleLowerCase() ?? null;
    this.#offered =
      begun === null
        ? []
        : this.people()
            .filter(({ name }) => name.toLocaleLowerCase().split(" ").some((_, n, words) => words.slice(n).join(" ").startsWith(begun)))
            .slice(0, OFFERED_MAX);
    this.#at = 0;
    this.#draw();
  }

  #draw() {
    this.element.hidden = !this.#offered.length;
    this.element.replaceChildren(
      ...this.#offered.map((person, n) =>
        el(
          "li",
          {
            role: "option", id: `offered-${n}`, "aria-selected": String(n === this.#at),
            onpointerdown: (event) => {
              event.preventDefault();
              this.#take(person);
            },
          },
          face(person.id, person.name, { size: "small" }), person.name,
        ),
      ),
    );
    const isOpen = this.#offered.length > 0;
    set(this.field, "aria-controls", isOpen ? "completion" : null);
    set(this.field, "aria-activedescendant", isOpen ? `offered-${this.#at}` : null);
  }

  #take({ name }) {
    const end = this.field.selectionStart;
    const start = end - this.#begun.length;
    this.field.setRangeText(`${name} `, start, end, "end");
    this.#hide();
    this.field.dispatchEvent(new Event("input"));
  }

  #hide() {
    this.#offered = [];
    this.#draw();
  }
}
